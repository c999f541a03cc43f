"""Small changes of the code that the tests must notice: see tests/mutate.py."""

from typing import NamedTuple


class Mutation(NamedTuple):
  """A change that makes the code wrong.

  Attributes:
    name: What `--only` takes.
    file: The file that is changed.
    old: Text that occurs in it once.
    new: What replaces it.
    tests: The files of the tests that must fail.
    select: pytest's `-k`: which of their tests.
  """

  name: str
  file: str
  old: str
  new: str
  tests: str
  select: str


_METHODS = 'tests/sage_optax/methods/methods_test.py'
_ORACLE = 'OracleTest and '

MUTATIONS = (
  # Methods.
  Mutation(
    'lion_keeps_the_gradient',
    'sage_optax/core/moments.py',
    '  new = ema(grad, mu, b2)\n',
    '  new = ema(grad, mu, b1)\n',
    _METHODS,
    'LionTest',
  ),
  Mutation(
    'lion_fused_share',
    'sage_optax/core/moments.py',
    'share = b1 / b2',
    'share = b2 * b1',
    _METHODS,
    _ORACLE + 'lion',
  ),
  Mutation(
    'adam_correction_without_root',
    'sage_optax/core/moments.py',
    'jnp.sqrt(1 - jnp.asarray(b2, dtype) ** count) / (',
    '(1 - jnp.asarray(b2, dtype) ** count) / (',
    _METHODS,
    _ORACLE + '(spam or galore)',
  ),
  Mutation(
    'adam_eps_inside_the_root',
    'sage_optax/core/moments.py',
    'return mu / (jnp.sqrt(nu) + eps), mu, nu',
    'return mu / jnp.sqrt(nu + eps), mu, nu',
    _METHODS,
    _ORACLE + '(spam or galore)',
  ),
  Mutation(
    'cosine_one_step_short',
    'sage_optax/core/moments.py',
    'jnp.pi * count / (steps + 1)',
    'jnp.pi * count / steps',
    _METHODS,
    _ORACLE + 'spam',
  ),
  Mutation(
    'sage_without_the_instant_damper',
    'sage_optax/methods/sage.py',
    'jnp.minimum(loudness(average), loudness(now))',
    'loudness(average)',
    _METHODS,
    _ORACLE + 'sage or SageTest',
  ),
  Mutation(
    'sage_biased_average',
    'sage_optax/methods/sage.py',
    'moments.unbiased(abs_mean, b2, count)',
    'abs_mean',
    _METHODS,
    _ORACLE + 'sage or SageTest',
  ),
  Mutation(
    'scale_by_the_sum_of_squares',
    'sage_optax/methods/scale.py',
    'jnp.maximum(jnp.sqrt(mean_square), eps)',
    'jnp.maximum(mean_square, eps)',
    _METHODS,
    _ORACLE + 'scale',
  ),
  Mutation(
    'sinkgd_vectors_by_rms',
    'sage_optax/methods/sinkgd.py',
    'x = x / (linalg.safe_norm(x, axes) + eps)',
    'x = x / (linalg.safe_norm(x, axes) / x.shape[-1] ** 0.5 + eps)',
    _METHODS,
    _ORACLE + 'sinkgd',
  ),
  Mutation(
    'newton_schulz_coefficient',
    'sage_optax/core/orthogonal.py',
    "'standard': ((3.4445, -4.7750, 2.0315),),",
    "'standard': ((3.4445, -4.7750, 2.0310),),",
    _METHODS,
    _ORACLE + 'muon',
  ),
  Mutation(
    'equilibration_of_the_other_side',
    'sage_optax/methods/muon.py',
    "return linalg.FAN_IN if side == 'fan_out' else linalg.FAN_OUT",
    "return linalg.FAN_OUT if side == 'fan_out' else linalg.FAN_IN",
    _METHODS,
    _ORACLE + 'muon_eq',
  ),
  Mutation(
    'stable_spam_reset_keeps_the_count',
    'sage_optax/methods/stable_spam.py',
    'adam_count = optax.safe_increment(old[0])',
    'adam_count = optax.safe_increment(state.adam_count)',
    f'{_METHODS} tests/sage_optax/methods/spam_test.py',
    _ORACLE + 'stable_spam or StableSpamTest',
  ),
  Mutation(
    'spam_clips_at_once',
    'sage_optax/methods/spam.py',
    'since >= grace_steps',
    'since > grace_steps',
    'tests/sage_optax/methods/spam_test.py',
    'grace',
  ),
  Mutation(
    'sgd_sai_measures_again',
    'sage_optax/methods/sgd_sai.py',
    'lambda g, old: jnp.where(old > 0, old, ratio(g).astype(old.dtype)),',
    'lambda g, old: ratio(g).astype(old.dtype),',
    _METHODS,
    _ORACLE + 'sgd_sai',
  ),
  Mutation(
    'growth_limit_remembers_what_was_not_limited',
    'sage_optax/core/linalg.py',
    'jnp.where(now > 1e-3 * old_norm, now / excess, old_norm)',
    'jnp.where(now > 1e-3 * old_norm, now, old_norm)',
    _METHODS,
    _ORACLE + '(apollo or fira)',
  ),
  Mutation(
    'projector_renewed_a_step_late',
    'sage_optax/core/subspace.py',
    'state.count % when.update_proj_gap == 0',
    'state.count % when.update_proj_gap == 1',
    _METHODS,
    _ORACLE + 'galore',
  ),
  Mutation(
    'fira_residual_of_the_whole_projection',
    'sage_optax/methods/fira.py',
    'kept if exact_residual else alpha * kept',
    'kept',
    _METHODS,
    _ORACLE + 'fira',
  ),
  Mutation(
    'units_of_a_stack_share_a_statistic',
    'sage_optax/methods/stable_spam.py',
    'return jnp.max(grad, axis=axes, keepdims=True, initial=0.0)',
    'return jnp.zeros_like(grad[..., :1, :1] if grad.ndim > 1 else grad[:1]) '
    '+ jnp.max(grad)',
    f'{_METHODS} tests/sage_optax/methods/spam_test.py',
    _ORACLE + 'stable_spam or units_do_not',
  ),
  # Recipes, roles and layout.
  Mutation(
    'decay_is_not_multiplied_by_the_rate',
    'sage_optax/recipes.py',
    """      optax.scale_by_learning_rate(learning_rate),
    )
    for role""",
    """      optax.scale_by_learning_rate(1e-3),
    )
    for role""",
    'tests/sage_optax/recipes_test.py',
    'lion_and_adamw or routes',
  ),
  Mutation(
    'vectors_are_seen_as_matrices',
    'sage_optax/recipes.py',
    "1 if role == 'vector' else 2",
    'None',
    'tests/sage_optax/recipes_test.py tests/sage_optax/layout_test.py',
    'stacked_equals_per_layer or test_recipe',
  ),
  Mutation(
    'layout_is_not_undone',
    'sage_optax/leaves/views.py',
    '      _apply(View.from_matrix, seen, updates),\n',
    '      updates,\n',
    'tests/sage_optax/layout_test.py',
    'test_vmap or test_function_of_the_path',
  ),
  # Rounding.
  Mutation(
    'rounding_to_nearest',
    'sage_optax/rounding.py',
    'added = noise.bits(key, x) >> 16',
    'added = jnp.uint32(0x8000)',
    'tests/sage_optax/rounding_test.py',
    'unbiased or does_not_stall',
  ),
  Mutation(
    'the_same_noise_at_every_step',
    'sage_optax/rounding.py',
    'key = jax.random.fold_in(jax.random.key(seed, impl=_IMPL), count)',
    'key = jax.random.key(seed, impl=_IMPL)',
    'tests/sage_optax/rounding_test.py',
    'StochasticRoundUpdatesTest',
  ),
  Mutation(
    'the_same_noise_for_every_leaf',
    'sage_optax/rounding.py',
    'return jax.random.fold_in(key, number)',
    'return jax.random.fold_in(key, 0)',
    'tests/sage_optax/rounding_test.py',
    'noise or leaf',
  ),
  # Sharding.
  Mutation(
    'a_reduced_axis_is_sharded',
    'sage_optax/core/linalg.py',
    'entry if size == other_size else None',
    'entry if size >= other_size else None',
    'tests/sage_optax/layout_test.py',
    'state_specs',
  ),
  Mutation(
    'an_axis_that_is_not_divided_is_sharded',
    'sage_optax/sharding.py',
    'if entry and shape[i] % parts(entry)',
    'if entry and shape[i] < parts(entry)',
    'tests/sage_optax/with_mesh_test.py',
    'not_divided',
  ),
  Mutation(
    'mesh_takes_heads_for_columns',
    'train/mesh.py',
    'count = (units or {}).get(name, size)',
    'count = size',
    'tests/train/mesh_test.py tests/train/step_test.py',
    'MeshTest or SpecsTest or not_columns or replicated',
  ),
  # The model.
  Mutation(
    'attention_sees_the_next_token',
    'models/attention.py',
    'causal = jnp.tri(L, M, M - L, dtype=bool)',
    'causal = jnp.tri(L, M, M - L + 1, dtype=bool)',
    'tests/models/llama_test.py',
    'AttentionTest',
  ),
  Mutation(
    'rotary_positions_start_at_one',
    'models/rope.py',
    'first * cos - second * sin, second * cos + first * sin',
    'first * cos + second * sin, second * cos - first * sin',
    'tests/models/llama_test.py',
    'HuggingFaceTest',
  ),
  Mutation(
    'norm_without_eps',
    'models/layers.py',
    'jax.lax.rsqrt(mean_square + self.config.rms_norm_eps)',
    'jax.lax.rsqrt(mean_square)',
    'tests/models/llama_test.py',
    'HuggingFaceTest',
  ),
  Mutation(
    'gradient_of_the_loss_ignores_weights',
    'models/cross_entropy.py',
    '_is_target(logits, targets)) * weights[..., None]',
    '_is_target(logits, targets))',
    'tests/models/llama_test.py',
    'LossTest',
  ),
  Mutation(
    'kernel_gradient_is_transposed_wrongly',
    'models/layers.py',
    "jnp.einsum('bsf,df->bsd', g, kernel)",
    "jnp.einsum('bsf,df->bsd', g, 2 * kernel)",
    'tests/models/llama_test.py',
    'projection_on_cpu',
  ),
  # The train step.
  Mutation(
    'the_mask_is_that_of_the_inputs',
    'train/step.py',
    '(rows[:, 1:] >= 0)',
    '(rows[:, :-1] >= 0)',
    'tests/train/step_test.py',
    'MaskTest',
  ),
  Mutation(
    'microbatches_are_not_averaged',
    'train/step.py',
    'jax.tree.map(lambda g: g / weight, grads)',
    'grads',
    'tests/train/step_test.py',
    'equals_no_accumulation or moves_every or clipped',
  ),
  Mutation(
    'the_step_is_not_counted',
    'train/step.py',
    'return TrainState(state.step + 1, params, opt_state), metrics',
    'return TrainState(state.step, params, opt_state), metrics',
    'tests/train/step_test.py tests/train/main_test.py',
    'rates or metrics_of_every_step',
  ),
  Mutation(
    'warm_up_starts_at_zero',
    'train/optimizer.py',
    'optax.linear_schedule(peak / warmup, peak, warmup - 1)',
    'optax.linear_schedule(0.0, peak, warmup - 1)',
    'tests/train/schedule_test.py',
    'warm_up',
  ),
  # The order of the data.
  Mutation(
    'windows_overlap_by_no_token',
    'train/data/loader.py',
    'return self._stream.read(start, start + self._seq_len + 1)',
    'return self._stream.read(start + 1, start + self._seq_len + 2)',
    'tests/train/data/loader_test.py',
    'windows',
  ),
  Mutation(
    'resuming_a_step_late',
    'train/data/loader.py',
    'steps = dataset[start_step:]',
    'steps = dataset[start_step and start_step + 1 :]',
    'tests/train/data/loader_test.py',
    'resuming',
  ),
  Mutation(
    'processes_read_the_same_rows',
    'train/data/loader.py',
    'np.stack([self._records[first + int(row)] for row in self._rows])',
    'np.stack([self._records[first + i] for i in range(len(self._rows))])',
    'tests/train/data/loader_test.py',
    'rows',
  ),
  Mutation(
    'padding_counts_in_evaluation',
    'train/data/loader.py',
    'weights[row, : len(window) - 1] = window[1:] >= 0',
    'weights[row] = 1',
    'tests/train/data/loader_test.py',
    'counts_once or fewer_tokens',
  ),
  Mutation(
    'shards_are_read_past_their_end',
    'train/data/shards.py',
    "np.searchsorted(self._ends, start, side='right')",
    "np.searchsorted(self._ends, start, side='left')",
    'tests/train/data/loader_test.py tests/train/data/shards_test.py',
    'cross_shards or stream',
  ),
  Mutation(
    'held_out_text_is_trained_on',
    'train/data/documents.py',
    """    if key in self._keys:
      self.dropped += 1
      return None
""",
    '',
    'tests/train/data/prepare_files_test.py',
    'trained_on or one_split',
  ),
  # Checkpoints and resuming.
  Mutation(
    'another_run_is_resumed',
    'train/workdir.py',
    '    if saved.get(name) != now.get(name)\n',
    '    if name in saved and saved.get(name) != now.get(name)\n',
    'tests/train/main_test.py tests/train/checkpoint_test.py',
    'another_run or no_longer_given',
  ),
  Mutation(
    'fewer_checkpoints_are_kept',
    'train/checkpoint.py',
    'LatestN(n=keep)',
    'LatestN(n=1)',
    'tests/train/checkpoint_test.py tests/train/main_test.py',
    'CheckpointTest or checkpoint or files',
  ),
  Mutation(
    'position_in_the_data_is_forgotten',
    'train/data/loader.py',
    'self.step = start_step\n',
    'self.step = 0\n',
    'tests/train/data/loader_test.py',
    'resuming or late_start',
  ),
  # Checks of the configuration.
  Mutation(
    'bools_are_taken_for_integers',
    'train/config/fields.py',
    'if type(item) not in {*kinds, *((int,) if float in kinds else ())}:',
    'if not isinstance(item, (*kinds, *((int,) if float in kinds else ()))):',
    'tests/train/config_test.py',
    'wrong_type or cannot_train',
  ),
  Mutation(
    'a_microbatch_may_leave_a_rest',
    'train/config/validate.py',
    'if microbatch and batch_size % microbatch:',
    'if microbatch and batch_size < microbatch:',
    'tests/train/config_test.py',
    'cannot_train',
  ),
  Mutation(
    'nan_is_accepted',
    'train/config/fields.py',
    'isinstance(item, float) and not math.isfinite(item)',
    'isinstance(item, float) and math.isinf(item)',
    'tests/train/config_test.py',
    'cannot_train',
  ),
  Mutation(
    'edited_results_are_read',
    'train/results/report.py',
    '    files.check_crc(results)\n',
    '',
    'tests/train/main_test.py',
    'results_that_were_edited',
  ),
)
