"""Bytes that Muon's update sends between devices, compared with Optax's Muon.

python -m benchmarks.muon_collectives

Compiles the update of the matrices of llama_1_3b, sharded over 8 devices, for
CPUs. Sizes are per device and step, from the compiled program.
"""

import argparse
from typing import Any

import jax
import optax

import sage_optax
from configs import llama_1_3b
from models import llama
from train import mesh as mesh_lib
from train import state as state_lib
from train.config import model_config
from train.plan import cost, hlo

_MESHES = (
  {'data': 1, 'fsdp': 8, 'tensor': 1},
  {'data': 1, 'fsdp': 4, 'tensor': 2},
)


def _optax_muon() -> optax.GradientTransformation:
  """Optax's Muon, with the last two axes as the matrix."""
  axes = optax.contrib.MuonDimensionNumbers(-2, -1)
  return optax.contrib.muon(
    1e-3,
    muon_weight_dimension_numbers=lambda params: jax.tree.map(
      lambda _: axes, params
    ),
  )


def _bytes(tx: Any, params: Any, specs: Any, mesh: Any) -> dict[str, int]:
  """Bytes by kind of collective."""
  where = state_lib.state_shardings(tx, params, specs, mesh)

  def place(tree, shardings):
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      tree,
      shardings,
    )

  grads = place(params, where.params)
  state = place(jax.eval_shape(tx.init, params), where.opt_state)
  update = jax.jit(tx.update, out_shardings=(where.params, where.opt_state))
  compiled = update.lower(grads, state, grads).compile()
  found = cost.find_collectives(hlo.parse(str(compiled.as_text())))
  return cost.bytes_by_kind(found)


def main() -> None:
  """Prints a Markdown table; there have to be 8 devices."""
  model = model_config(llama_1_3b.get_config(), 'cpu')
  axes, params = llama.logical_axes(model), state_lib.abstract_params(model)
  roles = sage_optax.roles.assign(params)
  print('| mesh | optimizer | GB | by kind |')
  print('|---|---|---:|---|')
  for sizes in _MESHES:
    mesh = jax.make_mesh(
      tuple(sizes.values()), tuple(sizes), (jax.sharding.AxisType.Auto,) * 3
    )
    units = mesh_lib.axis_units(model)
    specs, _ = mesh_lib.param_specs(axes, params, mesh, units=units)

    mine, where = (
      [
        leaf
        for leaf, role in zip(
          jax.tree.leaves(tree), jax.tree.leaves(roles), strict=True
        )
        if role == 'matrix'
      ]
      for tree in (params, specs)
    )
    plain = sage_optax.scale_by_muon()
    for name, tx in (
      ('optax.contrib.muon', _optax_muon()),
      ('scale_by_muon', plain),
      ('with_mesh', sage_optax.sharding.with_mesh(plain, mesh, where)),
    ):
      sent = _bytes(tx, mine, where, mesh)
      total = sum(sent.values()) / 1e9
      kinds = ', '.join(f'{k} {v / 1e9:.2f}' for k, v in sent.items())
      title = ', '.join(f'{k}={v}' for k, v in sizes.items() if v > 1)
      print(f'| {title} | {name} | {total:.2f} | {kinds} |', flush=True)


if __name__ == '__main__':
  argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  ).parse_args()
  jax.config.update('jax_num_cpu_devices', 8)
  main()
