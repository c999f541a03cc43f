"""Slow float64 NumPy forms of the methods, one matrix or vector at a time.

Written from the papers' equations, step by step and without the library's
vectorisation, as something to compare with. Each takes the gradients of all
steps (a list of arrays of one unit) and returns the updates of all steps.
"""

import numpy as np


def _rms(x):
  return np.sqrt(np.mean(x**2))


def lion(grads, b1=0.9, b2=0.99):
  mu, updates = np.zeros_like(grads[0]), []
  for g in grads:
    updates.append(np.sign(b1 * mu + (1 - b1) * g))
    mu = b2 * mu + (1 - b2) * g
  return updates


def sage(grads, b1=0.9, b2=0.99, eps=1e-8, axis=-2):
  mu, updates = np.zeros_like(grads[0]), []
  average = None
  for t, g in enumerate(grads, 1):
    # One number per feature, in a plain vector.
    stat = np.abs(g) if g.ndim == 1 else np.abs(g).mean(axis)
    average = np.zeros_like(stat) if average is None else average
    average = b2 * average + (1 - b2) * stat
    unbiased = average / (1 - b2**t)
    damper = np.minimum(_rms(unbiased) / (unbiased + eps), 1)
    damper = np.minimum(damper, _rms(stat) / (stat + eps))
    if g.ndim == 2:
      damper = np.expand_dims(damper, axis)
    updates.append(np.sign(b1 * mu + (1 - b1) * g) * damper)
    mu = b2 * mu + (1 - b2) * g
  return updates


def sinkgd(grads, num_iters=5, eps=1e-8, unit_norm=False):
  updates = []
  for g in grads:
    if g.ndim == 1:
      updates.append(g / (np.linalg.norm(g) + eps))
      continue
    x = g.copy()
    fan_in, fan_out = x.shape
    for _ in range(num_iters):
      for j in range(fan_out):
        x[:, j] /= np.linalg.norm(x[:, j]) + eps
      x *= 1 if unit_norm else np.sqrt(fan_in)
      for i in range(fan_in):
        x[i] /= np.linalg.norm(x[i]) + eps
      x *= 1 if unit_norm else np.sqrt(fan_out)
    updates.append(x)
  return updates


def adamw(grads, b1=0.9, b2=0.999, eps=1e-8):
  mu = nu = np.zeros_like(grads[0])
  updates = []
  for t, g in enumerate(grads, 1):
    mu = b1 * mu + (1 - b1) * g
    nu = b2 * nu + (1 - b2) * g**2
    mu_hat, nu_hat = mu / (1 - b1**t), nu / (1 - b2**t)
    updates.append(mu_hat / (np.sqrt(nu_hat) + eps))
  return updates
