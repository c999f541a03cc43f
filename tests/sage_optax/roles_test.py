"""Roles: the names of the common libraries, users' rules, and errors."""

import functools
import re

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized
from flax import nnx

import sage_optax
from sage_optax import roles


def _by_path(params, **kwargs):
  return {m.path: m.role for m in roles.match(params, **kwargs)}


def _leaf(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


class NamesTest(parameterized.TestCase):
  def test_linen(self):
    class Model(nn.Module):
      @nn.compact
      def __call__(self, tokens):
        x = nn.Embed(11, 8, name='embed')(tokens)
        x = nn.LayerNorm(name='norm')(x)
        x = nn.MultiHeadDotProductAttention(2, name='attention')(x, x)
        x = nn.Dense(16, name='mlp')(x)
        return nn.Dense(11, name='lm_head')(x)

    tokens = jnp.zeros((1, 3), jnp.int32)
    params = jax.eval_shape(Model().init, jax.random.key(0), tokens)
    self.assertEqual(
      _by_path(params),
      {
        'params/embed/embedding': 'embedding',
        'params/norm/scale': 'vector',
        'params/norm/bias': 'vector',
        'params/attention/query/kernel': 'matrix',
        'params/attention/query/bias': 'vector',
        'params/attention/key/kernel': 'matrix',
        'params/attention/key/bias': 'vector',
        'params/attention/value/kernel': 'matrix',
        'params/attention/value/bias': 'vector',
        'params/attention/out/kernel': 'matrix',
        'params/attention/out/bias': 'vector',
        'params/mlp/kernel': 'matrix',
        'params/mlp/bias': 'vector',
        'params/lm_head/kernel': 'head',
        'params/lm_head/bias': 'vector',
      },
    )

  def test_nnx_state(self):
    class Model(nnx.Module):
      def __init__(self, rngs):
        self.embed = nnx.Embed(11, 8, rngs=rngs)
        self.norm = nnx.RMSNorm(8, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs)])
        self.lm_head = nnx.Linear(8, 11, use_bias=False, rngs=rngs)

    state = nnx.state(Model(nnx.Rngs(0)), nnx.Param)
    self.assertEqual(
      _by_path(state),
      {
        'embed/embedding': 'embedding',
        'norm/scale': 'vector',
        'layers/0/kernel': 'matrix',
        'layers/0/bias': 'vector',
        'lm_head/kernel': 'head',
      },
    )

  def test_value_is_a_name_or_a_box(self):
    names = ('query', 'key', 'value')
    bare = {'attn': {name: _leaf(8, 4) for name in names}}
    found = [m.path for m in roles.match(bare, default_role='matrix')]
    self.assertEqual(found, ['attn/key', 'attn/query', 'attn/value'])

    class Attention(nnx.Module):
      def __init__(self):
        self.query, self.value = (nnx.Param(jnp.ones((8, 4))) for _ in '12')

    state = nnx.state(Attention())
    found = [m.path for m in roles.match(state, default_role='matrix')]
    self.assertEqual(found, ['query', 'value'])
    # NNX's state restored from a checkpoint.
    restored = {'value': {'kernel': {'value': _leaf(8, 4)}}}
    self.assertEqual(_by_path(restored), {'value/kernel': 'matrix'})

  def test_haiku(self):
    def model(tokens):
      x = hk.Embed(11, 8)(tokens)
      x = hk.LayerNorm(-1, True, True)(x)
      return hk.Linear(4)(x)

    params = hk.transform(model).init(
      jax.random.key(0), np.zeros((1, 3), np.int32)
    )
    self.assertEqual(
      _by_path(params),
      {
        'embed/embeddings': 'embedding',
        'layer_norm/scale': 'vector',
        'layer_norm/offset': 'vector',
        'linear/w': 'matrix',
        'linear/b': 'vector',
      },
    )

  @parameterized.parameters(
    ('model.embed_tokens.weight', 'embedding'),
    ('model.layers.0.self_attn.q_proj.weight', 'matrix'),
    ('model.layers.0.mlp.down_proj.weight', 'matrix'),
    ('lm_head.weight', 'head'),
    ('transformer.wte.weight', 'embedding'),
    ('transformer.wpe.weight', 'embedding'),
    ('transformer.h.0.attn.c_attn.weight', 'matrix'),
    ('embed_out.weight', 'head'),
    ('tok_embeddings.weight', 'embedding'),
    ('layers.0.attention.wq.weight', 'matrix'),
    ('layers.0.feed_forward.w1.weight', 'matrix'),
    ('output.weight', 'head'),
    ('bert.encoder.layer.0.output.dense.weight', 'matrix'),
    ('bert.embeddings.word_embeddings.weight', 'embedding'),
  )
  def test_hugging_face_and_meta(self, name, role):
    flat = {name: _leaf(8, 8)}
    nested = _leaf(8, 8)
    for part in reversed(name.split('.')):
      nested = {part: nested}
    for params in (flat, nested):
      self.assertEqual(list(_by_path(params).values()), [role])

  @parameterized.parameters(
    'model.norm.weight',
    'model.layers.0.input_layernorm.weight',
    'model.layers.0.self_attn.q_proj.bias',
    'transformer.h.0.ln_1.weight',
    'transformer.ln_f.weight',
    'layers.0.attention_norm.weight',
    'layers.0.attn_norm.weight',
    'bert.embeddings.LayerNorm.bias',
  )
  def test_vectors(self, name):
    self.assertEqual(
      _by_path({name: _leaf(8)}), {name.replace('.', '/'): 'vector'}
    )

  @parameterized.parameters(
    # T5X and MaxText, fairseq and DistilBERT, EasyLM, ViT
    ('decoder/logits_dense/kernel', 'head'),
    ('decoder.output_projection.weight', 'head'),
    ('vocab_projector.weight', 'head'),
    ('generator_lm_head.weight', 'head'),
    ('transformer/h/0/attention_norm/kernel', 'vector'),
    ('transformer/ln_f/kernel', 'vector'),
    ('params/heads/kernel', 'head'),
    # BART, BLOOM, DeBERTa, ELECTRA, ALBERT, BERT, NeoX, T5
    ('decoder.layernorm_embedding.weight', 'vector'),
    ('word_embeddings_layernorm.weight', 'vector'),
    ('deberta.embed_proj.weight', 'matrix'),
    ('electra.embeddings_project.weight', 'matrix'),
    ('encoder.embedding_hidden_mapping_in.weight', 'matrix'),
    ('bert.embeddings.LayerNorm.weight', 'vector'),
    ('attention.query_key_value.weight', 'matrix'),
    ('encoder.block.0.layer.0.SelfAttention.q.weight', 'matrix'),
    ('encoder.block.0.layer.1.DenseReluDense.wi_0.weight', 'matrix'),
    ('encoder.block.0.layer.0.layer_norm.weight', 'vector'),
    ('shared.weight', 'embedding'),
    ('tok_emb.weight', 'embedding'),
    ('SelfAttention.relative_attention_bias.weight', 'embedding'),
    ('pos_embedding', 'embedding'),
    ('patch_embed/kernel', 'matrix'),
    ('self_attn/query/weight', 'matrix'),
    ('mlp/gate/weight', 'matrix'),
    ('norm/gamma', 'vector'),
    ('norm/beta', 'vector'),
  )
  def test_other_libraries(self, name, role):
    self.assertEqual(list(_by_path({name: _leaf(3, 8)}).values()), [role])

  def test_no_default_rules_disagree(self):
    # Every pair of a parent's and a leaf's common names has at most one role.
    parents = 'lm_head head output embed wte wpe unembed embed_out q_proj norm'
    parents += ' ln_f attn_norm logits dense pos_embedding output_head kernel'
    leaves = 'kernel weight w bias b scale embedding embeddings offset'
    for parent in parents.split():
      for leaf in leaves.split():
        for root in ({}, {'params': 0}):
          params = {parent: {leaf: _leaf(4, 4)}}
          params = {'params': params} if root else params
          roles.match(params, default_role='matrix')

  def test_unnamed(self):
    params = (_leaf(3), [_leaf(3, 4), _leaf()])
    self.assertEqual(roles.assign(params), ('vector', ['matrix', 'vector']))
    self.assertEqual(roles.assign(_leaf(2, 3)), 'matrix')
    self.assertEqual(roles.match(_leaf(2, 3))[0].rule, 'no name, 2 axes')


class RulesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.params = {
      'embed': {'embedding': _leaf(8, 4)},
      'router': _leaf(3, 4, 2),
    }

  def test_users_rules_come_first(self):
    rules = [('embed/', 'head'), ('^router$', 'matrix')]
    found = roles.match(self.params, rules=rules)
    self.assertEqual([m.role for m in found], ['head', 'matrix'])
    self.assertEqual([m.rule for m in found], ['embed/', '^router$'])

  def test_compiled_patterns(self):
    head = [(re.compile('EMBED/', re.IGNORECASE), 'head')]
    found = roles.match(self.params, rules=head, default_role='auto')
    self.assertEqual([m.role for m in found], ['head', 'matrix'])
    self.assertEqual(found[0].rule, 'EMBED/')

  def test_logical_axes(self):
    axes = {
      'embed': {'embedding': ('vocab', 'embed')},
      'router': ('layers', 'embed', 'experts'),
    }
    rules = [
      (('vocab', 'embed'), 'embedding'),
      (('layers', '*', '*'), 'matrix'),
      (('embed',), 'vector'),
    ]
    assigned = roles.assign(self.params, rules=rules, logical_axes=axes)
    self.assertEqual(
      assigned, {'embed': {'embedding': 'embedding'}, 'router': 'matrix'}
    )

  def test_logical_axes_that_do_not_match(self):
    axes = {
      'embed': {'embedding': ('vocab', 'embed')},
      'router': ('red', 'green', 'blue'),
    }
    # Another name, fewer axes, more axes: none of these is the router's.
    rules = [
      (('red', 'vocab', '*'), 'vector'),
      (('red', '*'), 'vector'),
      (('*', '*', '*', '*'), 'vector'),
    ]
    with self.assertRaisesRegex(
      ValueError, 'router .*no rule matches the name'
    ):
      roles.assign(self.params, rules=rules, logical_axes=axes)
    with self.assertRaisesRegex(ValueError, 'no entry for router'):
      roles.assign(self.params, logical_axes={'embed': axes['embed']})
    with self.assertRaisesRegex(ValueError, 'needs logical_axes='):
      roles.assign(self.params, rules=rules)

  def test_logical_axes_inside_a_mask(self):
    axes = {
      'embed': {'embedding': ('vocab', 'embed')},
      'router': ('layers', 'embed', 'experts'),
    }
    assign = functools.partial(
      roles.assign,
      rules=[(('layers', 'embed', 'experts'), 'matrix')],
      logical_axes=axes,
    )
    params = jax.tree.map(lambda x: jnp.ones(x.shape), self.params)
    mask = {'embed': {'embedding': False}, 'router': True}
    tx = optax.masked(sage_optax.sage_hybrid(0.1, roles=assign), mask)
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(updates['embed']['embedding'], 1.0)
    np.testing.assert_allclose(updates['router'], -0.033, rtol=1e-5)

  def test_malformed_rules(self):
    for rules, message in (
      ({'router': 'matrix'}, 'rules must be .* pairs'),
      (['router'], 'rules must be .* pairs'),
      ([('*router', 'matrix')], 'is not a regular expression'),
      ([(None, 'matrix')], 'is not a regular expression'),
      (zip(['router'], ['matrix'], strict=True), 'rules .* not an iterator'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        roles.assign(self.params, rules=rules)

  @parameterized.parameters(
    ({'preset': 'TORCH'}, "preset must be one of .* got 'TORCH'"),
    ({'matrix_axes': iter([])}, 'matrix_axes .* not an iterator'),
    ({'stacked': iter(['router'])}, 'stacked .* not an iterator'),
    ({'stacked': None}, 'stacked must be a pattern or .* got None'),
  )
  def test_malformed_options(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      sage_optax.sage_hybrid(0.1, **options)

  def test_roles_that_do_not_fit(self):
    params = jax.tree.map(lambda x: jnp.ones(x.shape), self.params)
    for given, message in (
      ([('router', 'matrix')], 'roles must be a callable or a tree'),
      ({'embed': 'dense', 'router': 'matrix'}, "Unknown role 'dense'"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        sage_optax.sage_hybrid(0.1, roles=given).init(params)
      with self.assertRaisesRegex(ValueError, message):
        sage_optax.explain('sage_hybrid', params, roles=given)

  def test_unknown_leaf_is_an_error_that_lists_it(self):
    params = {**self.params, 'gate': {'z': _leaf(5)}}
    with self.assertRaisesRegex(
      ValueError, r'(?s)gate/z \(5,\): .*router \(3, 4, 2\): .*default_role='
    ):
      roles.assign(params)
    self.assertEqual(
      roles.assign(params, default_role='vector')['gate'], {'z': 'vector'}
    )

  @parameterized.parameters(
    ([('router', 'matrix'), ('rout', 'vector')],),
    ([('router', 'matrix'), ('router', 'vector')],),
  )
  def test_rules_that_disagree(self, rules):
    with self.assertRaisesRegex(ValueError, 'disagree about router.*narrower'):
      roles.assign(self.params, rules=rules)

  def test_rules_that_agree_are_fine(self):
    rules = [('router', 'matrix'), ('rout', 'matrix')]
    self.assertEqual(roles.assign(self.params, rules=rules)['router'], 'matrix')

  @parameterized.parameters(
    {'rules': [('router', 'dense')]}, {'default_role': 'dense'}
  )
  def test_unknown_role(self, **kwargs):
    with self.assertRaisesRegex(ValueError, "Unknown role 'dense': use one of"):
      roles.assign(self.params, **kwargs)

  def test_flat_matrix(self):
    params = {'a': {'kernel': _leaf(4)}}
    with self.assertRaisesRegex(ValueError, r'a/kernel \(4,\): its name means'):
      roles.assign(params)
    self.assertEqual(
      roles.assign(params, default_role='auto'), {'a': {'kernel': 'vector'}}
    )
    with self.assertRaisesRegex(ValueError, r'a/kernel \(4,\) is matrix by'):
      sage_optax.adamw(0.1, rules=[('kernel', 'matrix')]).init(
        {'a': {'kernel': jnp.ones(4)}}
      )

  def test_placeholder_of_map_params(self):
    # map_params initializes with an empty tree: labels must not index into it.
    params = {'embed': {'embedding': jnp.ones((8, 4))}}
    tx = sage_optax.sage_hybrid(1e-3)
    doubled = optax.tree.map_params(tx, lambda x: x + 1, tx.init(params))
    mu = doubled.inner_states['embedding'].inner_state[0].mu
    np.testing.assert_array_equal(mu['embed']['embedding'], 1.0)
