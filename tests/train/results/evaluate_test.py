"""Tests of evaluation, samples and plots."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import axes

from tests.support import runs
from train import errors
from train.data import encoding, shards, tokenizer
from train.data import writer as writer_lib
from train.results import evaluate, plot, sample

_SEQ_LEN = 16


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return runs.write_data(tmp_path_factory.mktemp('evaluate') / 'data')


def _open(data, batch_size=4):
  return evaluate.Validation(
    data,
    seq_len=_SEQ_LEN,
    batch_size=batch_size,
    token_bytes=tokenizer.load(data).token_bytes(),
  )


def _previous_token_costs(tokens, weights):
  """A stand-in for a model: pair (u, w) costs 1 + u / 1000 + w / 100 nats."""
  costs = 1 + tokens[:, :-1] / 1000 + tokens[:, 1:] / 100
  return jnp.asarray(costs * weights, jnp.float32)


@pytest.mark.parametrize('batch_size', [1, 4, 64])
def test_every_target_counts_once(data, batch_size):
  scores = _open(data, batch_size).score(_previous_token_costs)
  model = tokenizer.load(data)
  totals = np.zeros(3)
  for subset in runs.SUBSETS:
    ids, size = [], 0
    for text in runs.texts('validation', subset):
      ids += [*model.encode_batch([text])[0].tolist(), model.eot_id]
      size += len(text.encode())
    size -= len(model.decode(ids[:1]).encode())  # nothing predicts the first
    nats = sum(1 + u / 1000 + w / 100 for u, w in itertools.pairwise(ids))
    score = scores[subset]
    assert (score.tokens, score.bytes) == (len(ids) - 1, size)
    assert math.isclose(score.nats, nats, rel_tol=1e-6)
    totals += [nats, len(ids) - 1, size]
  nats, tokens, size = totals
  total = scores['total']
  assert total.tokens == tokens
  assert math.isclose(total.loss, nats / tokens, rel_tol=1e-6)
  assert math.isclose(total.perplexity, math.exp(nats / tokens), rel_tol=1e-5)
  assert math.isclose(
    total.bits_per_byte, nats / math.log(2) / size, rel_tol=1e-6
  )


def test_a_subset_called_total_is_not_the_total(data):
  plain = _open(data).score(_previous_token_costs)
  validation = _open(data)
  name = runs.SUBSETS[0]
  for table in (validation._streams, validation._scales):
    table['total'] = table.pop(name)
  scores = validation.score(_previous_token_costs)
  assert scores['total'].tokens == plain['total'].tokens
  assert scores['total (subset)'] == plain[name]


def test_beginnings_are_not_padded(data):
  found = dict(_open(data).beginnings(10**6))
  assert list(found) == list(runs.SUBSETS)
  for subset, tokens in found.items():
    stream = shards.open_split(data, evaluate.SPLIT, subset=subset)
    np.testing.assert_array_equal(tokens, stream.read(0, stream.num_tokens))
    np.testing.assert_array_equal(
      dict(_open(data).beginnings(3))[subset], tokens[:3]
    )


def test_part_of_the_split_comes_from_every_subset(data):
  scores = _open(data).score(_previous_token_costs, max_windows=4)
  assert scores['total'].tokens == 4 * _SEQ_LEN
  assert scores['prose'].tokens == scores['verse'].tokens == 2 * _SEQ_LEN
  everything = _open(data).score(_previous_token_costs, max_windows=10**6)
  assert everything == _open(data).score(_previous_token_costs)


@pytest.mark.parametrize(
  ('max_windows', 'trained', 'wanted'),
  [
    (None, 50, (50, 50)),
    (50, 50, (50, 50)),
    (10, 50, (10, 50)),
    (None, 10**9, (39063, 39063)),  # 256 x 39062.5 = 10,000,000
    (10**9, 10**9, (39063, 39063)),
    (10, 10**9, (10, 39063)),
    (50000, 10**9, (50000, 50000)),
  ],
)
def test_windows_while_the_run_goes_on_and_at_its_end(
  max_windows, trained, wanted
):
  assert wanted == evaluate.windows(max_windows, trained=trained, seq_len=256)


def test_number_of_windows(data):
  found = _open(data).batches()
  rows = sum(int(weights.any(axis=1).sum()) for _, _, weights in found)
  assert _open(data).num_windows == rows


def test_bytes_are_scaled_where_the_tokenizer_normalizes(data, monkeypatch):
  plain = _open(data).score(_previous_token_costs)
  scales = dict.fromkeys(runs.SUBSETS[:1], 2.0) | {runs.SUBSETS[1]: 1.0}
  monkeypatch.setattr(shards, 'byte_scales', lambda *_: scales)
  scaled = _open(data).score(_previous_token_costs)
  first, second = (plain[name].bytes for name in runs.SUBSETS)
  assert scaled[runs.SUBSETS[0]].bytes == 2 * first
  assert scaled[runs.SUBSETS[1]].bytes == second
  assert scaled['total'].bytes == 2 * first + second


def test_windows_of_prompts_alone(data, monkeypatch):
  batches = list(_open(data).batches())
  first = runs.SUBSETS[0]

  def score(masked):
    found = [(n, t, w * (n not in masked)) for n, t, w in batches]
    with monkeypatch.context() as patch:
      patch.setattr(evaluate.Validation, 'batches', lambda *_: iter(found))
      return _open(data).score(_previous_token_costs)

  scores = score({first})
  assert set(scores) == {'total', runs.SUBSETS[1]}
  assert scores['total'] == scores[runs.SUBSETS[1]]
  with pytest.raises(errors.UserError, match='contain only prompts'):
    score(set(runs.SUBSETS))
  _open(data).check(4)
  monkeypatch.setattr(
    evaluate.Validation,
    'batches',
    lambda *_: ((n, t, 0 * w) for n, t, w in batches),
  )
  with pytest.raises(errors.UserError, match='contain only prompts'):
    _open(data).check(4)


def test_stops_when_told(data):
  def check():
    raise errors.Interrupted

  with pytest.raises(errors.Interrupted):
    _open(data).score(_previous_token_costs, check=check)


def test_a_split_of_one_token_is_a_user_error(tmp_path):
  data = tmp_path / 'data'
  runs.write_data(data, splits=('train',))
  writer_dir = tmp_path / 'empty'
  writer_dir.mkdir()
  model = tokenizer.load(data)
  writer = writer_lib.Writer(writer_dir, model)
  for document in encoding.Encoder(model).encode([('prose', '')]):
    writer.add('validation', document)
  writer.finish(corpus_hash='')
  with pytest.raises(errors.UserError, match='prepare more'):
    _open(writer_dir)


def test_metrics_of_scores():
  scores = {
    'total': evaluate.Score(nats=4.0, tokens=2, bytes=8),
    'code': evaluate.Score(nats=1e6, tokens=1, bytes=0),
  }
  flat = evaluate.flatten(scores)
  assert flat['eval/loss'] == 2.0
  assert flat['eval/perplexity'] == math.exp(2.0)
  assert flat['eval/bits_per_byte'] == 0.5 / math.log(2)
  assert flat['eval/perplexity/code'] == math.inf
  assert flat['eval/tokens/code'] == 1


def _successor_logits(params, tokens):
  """Prefers token + 1 by `params`, whatever stands elsewhere."""
  return params * jax.nn.one_hot(tokens + 1, 10)


def _generator(**kwargs):
  settings = {'window': 6, 'vocab_size': 8, 'temperature': 0.0, **kwargs}
  return sample.Generator(_successor_logits, **settings)


@pytest.mark.parametrize('window', [2, 6])
def test_greedy_sample_continues_beyond_the_window(window):
  added = _generator(window=window)(
    jnp.float32(1), [0, 1], key=jax.random.key(0), num_tokens=6
  )
  assert added[:5] == [2, 3, 4, 5, 6]


def test_sample_ends_at_the_token_and_leaves_it_out():
  added = _generator()(
    jnp.float32(1), [1], key=jax.random.key(0), num_tokens=9, stop_at=4
  )
  assert added == [2, 3]


def test_sampling_depends_on_the_key_and_keeps_to_the_vocabulary():
  generator = _generator(temperature=1.0)

  def draw(seed):
    return generator(
      jnp.float32(0), [1], key=jax.random.key(seed), num_tokens=60
    )

  assert draw(0) == draw(0)
  assert draw(0) != draw(1)
  assert set(draw(0)) | set(draw(1)) == set(range(8))  # never 8 or 9


def test_temperature_sharpens():
  def share(temperature):
    generator = _generator(temperature=temperature)
    tokens = [
      generator(jnp.float32(1), [1], key=jax.random.key(i), num_tokens=1)[0]
      for i in range(200)
    ]
    return tokens.count(2) / len(tokens)

  # e^(1/T) / (e^(1/T) + 7), with a standard error of 0.035.
  for temperature in (0.5, 1.0):
    wanted = math.exp(1 / temperature) / (math.exp(1 / temperature) + 7)
    assert abs(share(temperature) - wanted) < 0.12


def test_smoothing_keeps_lines_and_averages_noise():
  line = np.linspace(3.0, 1.0, 200)
  np.testing.assert_allclose(plot.smooth(line, 2.0)[10:-10], line[10:-10])
  noisy = line + np.random.default_rng(0).normal(size=200)
  assert np.std(plot.smooth(noisy, 8.0) - line) < 0.3
  np.testing.assert_allclose(plot.smooth([2.0], 1.0), [2.0])


def test_plot_without_records_or_with_strings_for_nan(tmp_path):
  path = tmp_path / 'loss.png'
  for records in ([], [{'step': 1, 'tokens': 8, 'loss': 'nan'}]):
    plot.loss_curve(records, path, title='none')
    assert path.read_bytes().startswith(b'\x89PNG')
    assert [p.name for p in tmp_path.iterdir()] == ['loss.png']


@pytest.mark.parametrize('tokens', [8, 16])
def test_plot_keeps_a_sample_and_the_whole_apart(tmp_path, monkeypatch, tokens):
  records = [
    {'step': i, 'tokens': i, 'eval/loss': 3.0 - i, 'eval/tokens': 8}
    for i in (0, 1)
  ]
  drawn = []
  monkeypatch.setattr(
    axes.Axes,
    'plot',
    lambda self, x, y, *_, label, **kwargs: drawn.append((y, label)),
  )
  final = evaluate.Score(nats=2.5 * tokens, tokens=tokens, bytes=tokens)
  plot.loss_curve(records, tmp_path / 'x.png', title='', final=final)
  *whole, (curve, label) = drawn
  np.testing.assert_array_equal(curve, [3.0, 2.0])
  if tokens == 8:
    assert (whole, label) == ([], 'validation: 2.000 (perplexity 7.4)')
  else:
    assert whole == [(2.5, 'validation: 2.500 (perplexity 12.2)')]
    assert label == 'validation, a sample: 2.000'
