"""Sums of squares in a TPU's vector memory, tile by tile.

Scales and sums lie along lanes, [1, :]. Tiles are 128 x 128, so that a tile,
its scale and a sum stay in registers. Tiles at the edge are smaller; nothing is
padded.
"""

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

TILE = 128


def add_squares(x, up, flat, sums, axis, extent):
  """Adds the sums of (x * up * flat)^2 over `axis` to `sums`.

  Args:
    x: reference [rows, lanes] or larger.
    up: reference [1, rows], the scale of rows.
    flat: reference [1, lanes], the scale of lanes.
    sums: reference [1, lanes] for axis 0, [1, rows] for axis 1.
    axis: 0 or 1.
    extent: number of rows and lanes to process.
  """
  rows, lanes = extent

  def band(top, height):
    above = pl.ds(top, height)
    scale = _upright(up[:, above])

    def squares(left, width):
      at = pl.ds(left, width)
      tile = x[above, at].astype(jnp.float32)
      return jnp.square(tile * scale[:, :width] * flat[:, at])

    if axis == 0:

      def add(left, width):
        total = jnp.sum(squares(left, width), axis=0, keepdims=True)
        sums[:, pl.ds(left, width)] += total

      _each_tile(lanes, add)
      return
    total = jnp.zeros((height, 1), jnp.float32)
    if whole := lanes // TILE:
      # Sum over tiles first, because summing over lanes is slower.
      tiles = lax.fori_loop(
        0,
        whole,
        lambda i, acc: acc + squares(pl.multiple_of(i * TILE, TILE), TILE),
        jnp.zeros((height, TILE), jnp.float32),
      )
      total += jnp.sum(tiles, axis=1, keepdims=True)
    if rest := lanes % TILE:
      edge = squares(lanes - rest, rest)
      total += jnp.sum(edge, axis=1, keepdims=True)
    sums[:, above] += _lying(total)

  _each_tile(rows, band)


def _each_tile(length, body):
  """Calls `body(start, size)` for the tiles along an axis."""

  def step(i, _):
    body(pl.multiple_of(i * TILE, TILE), TILE)

  if whole := length // TILE:
    lax.fori_loop(0, whole, step, None)
  if rest := length % TILE:
    body(length - rest, rest)


def _upright(vector):
  """[1, size] -> [size, TILE], equal in all lanes."""
  spread = jnp.where(_diagonal(vector.shape[1]), vector, 0.0)
  total = jnp.sum(spread, axis=1, keepdims=True)
  return jnp.broadcast_to(total, (vector.shape[1], TILE))


def _lying(vector):
  """[size, 1] -> [1, size]."""
  spread = jnp.where(_diagonal(vector.shape[0]), vector, 0.0)
  return jnp.sum(spread, axis=0, keepdims=True)


def _diagonal(size):
  row = lax.broadcasted_iota(jnp.int32, (size, size), 0)
  return row == lax.broadcasted_iota(jnp.int32, (size, size), 1)
