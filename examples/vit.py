"""A vision transformer on scikit-learn's digits: python examples/vit.py."""

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn import datasets

import sage_optax

WIDTH, HEADS, DEPTH, BATCH_SIZE = 32, 4, 2, 64


class Block(nnx.Module):
  def __init__(self, rngs: nnx.Rngs):
    self.norm1 = nnx.LayerNorm(WIDTH, rngs=rngs)
    self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, rngs=rngs)
    self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs)
    self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
    self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

  def __call__(self, x):
    x = x + self.attention(self.norm1(x), decode=False)
    return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class ViT(nnx.Module):
  def __init__(self, rngs: nnx.Rngs):
    self.patch_embed = nnx.Conv(1, WIDTH, (2, 2), strides=2, rngs=rngs)
    self.pos_embedding = nnx.Param(0.02 * rngs.params.normal((1, 16, WIDTH)))
    self.blocks = nnx.List(Block(rngs) for _ in range(DEPTH))
    self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
    self.head = nnx.Linear(WIDTH, 10, rngs=rngs)

  def __call__(self, images):
    x = self.patch_embed(images).reshape(-1, 16, WIDTH) + self.pos_embedding
    for block in self.blocks:
      x = block(x)
    return self.head(self.norm(x).mean(axis=1))


def data():
  """Images [N, 8, 8, 1] and labels [N] for training, validation and test."""
  images, labels = datasets.load_digits(return_X_y=True)
  images = images.reshape(-1, 8, 8, 1).astype(np.float32) / 8 - 1
  order = np.random.default_rng(0).permutation(1797)
  return [(images[i], labels[i]) for i in np.split(order, [1197, 1497])]


def loss_fn(model, images, labels):
  losses = optax.softmax_cross_entropy_with_integer_labels
  return losses(model(images), labels).mean()


def main(steps: int = 400, rate: float = 2e-3) -> list[float]:
  model = ViT(nnx.Rngs(0))
  print(sage_optax.explain('sage_hybrid', nnx.state(model, nnx.Param)))
  schedule = optax.warmup_cosine_decay_schedule(0, rate, steps // 10, steps)
  tx = sage_optax.sage_hybrid(schedule)
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

  @nnx.jit
  def train_step(model, optimizer, images, labels):
    loss, grads = nnx.value_and_grad(loss_fn)(model, images, labels)
    optimizer.update(model, grads)
    return loss

  (images, labels), _, test = data()
  rng, losses = np.random.default_rng(0), []
  for _ in range(steps):
    rows = rng.integers(0, 1197, BATCH_SIZE)
    losses.append(train_step(model, optimizer, images[rows], labels[rows]))
  print(f'loss {losses[0]:.2f} -> {losses[-1]:.2f}')
  wrong = jnp.argmax(model(test[0]), axis=-1) != test[1]
  print(f'{100 * wrong.mean():.1f} % of the test images wrong')
  return losses


if __name__ == '__main__':
  main()
