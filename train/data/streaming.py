"""Streams files into shards, and resumes an interrupted preparation.

Every 15 seconds, and when stopped, it flushes the shards and replaces the
resume state. After an interruption, it truncates the shards to the recorded
sizes and skips the input up to the recorded position; the result is
bit-identical. Everything that depends on the order of the documents is decided
here, so the result does not depend on the number of workers.
"""

import contextlib
import importlib.metadata
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import tqdm

from train.data import atomic_dir, encoding, readers, workers
from train.data.checksums import DamagedFile
from train.data.documents import BadLines, Holdout
from train.data.source import Source, identities
from train.data.tokenizer import Tokenizer
from train.data.workers import InputBlock
from train.data.writer import Writer
from train.errors import Interrupted, UserError

_COMMIT_SECONDS = 15
_LINE_SECONDS = 30


class Stream:
  """Streams files into the shards of a directory.

  Attributes:
    writer: Writes the shards.
    corpus_hash: Hash of the text written so far.
    holdout: Chooses the documents of the validation split.
    bad: The lines that were skipped.
  """

  def __init__(
    self,
    directory: pathlib.Path,
    model: Tokenizer,
    source: Source,
    held_out: list[pathlib.Path],
    files: list[pathlib.Path],
    log: Callable[[str], None],
  ):
    """Restores the resume state beside the directory, if there is one.

    Args:
      directory: An existing directory to write to.
      model: The tokenizer.
      source: Where the text comes from.
      held_out: Its validation files.
      files: Its other files.
      log: Receives messages.

    Raises:
      UserError: If the resume state belongs to another preparation.
    """
    self._partial = directory.parent
    self._encoder = encoding.Encoder(model, source.instructions)
    self._files = [*held_out, *files]
    self._num_held_out = len(held_out)
    self._log = log
    self._identities = [
      [i < len(held_out), *identity]
      for i, identity in enumerate(identities(self._files))
    ]
    self._settings = {
      'validation': len(held_out) or source.validation_fraction,
      'tokenizer': model.fingerprint,
      **({'instructions': True} if source.instructions else {}),
      # Another version may encode differently.
      'tokenizers': importlib.metadata.version('tokenizers'),
      'sentencepiece': importlib.metadata.version('sentencepiece'),
    }
    self.writer = Writer(directory, model, masked=source.instructions)
    self.corpus_hash = encoding.CorpusHash()
    self.holdout = Holdout(0 if held_out else source.validation_fraction)
    self.bad = BadLines(source.max_bad_lines, log)
    # The position: blocks done of a file, their checksum, lines, bytes read.
    self._place = {'file': 0, 'blocks': 0, 'checksum': 0, 'line': 0, 'read': 0}
    self._text = 0
    if state := atomic_dir.load_state(self._partial):
      self._restore(state)

  def run(self, num_workers: int, should_stop: Callable[[], bool]) -> None:
    """Writes all documents.

    Args:
      num_workers: Processes that encode; 0 encodes in this one.
      should_stop: Polled.

    Raises:
      Interrupted: If should_stop returned True; the resume state is current.
      UserError: If a file cannot be read or has too many bad lines, or a
        worker died.
    """
    sizes = [path.stat().st_size for path in self._files]
    progress = _InputProgress(
      sum(sizes), self._log, done=self._bytes_done(sizes), text=self._text
    )
    committed = time.monotonic()
    encoded = workers.encode(
      self._blocks(should_stop), self._encoder, num_workers, should_stop
    )
    with contextlib.closing(progress), contextlib.closing(encoded):
      while True:
        try:
          item = next(encoded, None)
        except (Interrupted, workers.WorkerDied):
          self.commit()
          raise
        if item is None:
          return
        self._apply(*item)
        progress.update(self._bytes_done(sizes), self._text, self.bad.count)
        if time.monotonic() - committed >= _COMMIT_SECONDS:
          self.commit()
          committed = time.monotonic()

  def commit(self) -> None:
    """Writes the resume state, so that a kill loses no work so far."""
    self.writer.sync()
    atomic_dir.save_state(
      self._partial,
      {
        'settings': self._settings,
        'files': self._identities[: self._place['file']],
        'place': self._place,
        'text': self._text,
        'bad': self.bad.count,
        'corpus_hash': self.corpus_hash.value,
        'holdout': self.holdout.state(),
        'writer': self.writer.state(),
      },
    )

  def _restore(self, state: dict[str, Any]) -> None:
    for name in {**self._settings, **state['settings']}:
      was, now = (s.get(name) for s in (state['settings'], self._settings))
      if was != now:
        raise atomic_dir.cannot_resume(
          self._partial, f'{name} was {was}, not {now}'
        )
    # Only finished files: later ones may be repaired, and files may be added.
    done = state['files']
    for was, now in zip(done, self._identities, strict=False):
      if was != now:
        raise atomic_dir.cannot_resume(
          self._partial,
          f'{was[1]} has been read, and the file in its place differs',
        )
    if len(done) >= len(self._files):
      raise atomic_dir.cannot_resume(self._partial, 'files are missing')
    try:
      self.writer.restore(state['writer'])
    except DamagedFile as error:
      self.writer.close()
      raise atomic_dir.cannot_resume(self._partial, str(error)) from error
    self._place, self._text = state['place'], state['text']
    self.bad.count = state['bad']
    self.corpus_hash.value = state['corpus_hash']
    self.holdout.restore(state['holdout'])
    self._log(
      f'Resuming after {self._text / 1e6:,.1f} MB of text, in '
      f'{self._files[self._place["file"]]}.'
    )

  def _blocks(self, should_stop: Callable[[], bool]) -> Iterator[InputBlock]:
    first, done = self._place['file'], self._place['blocks']
    expected = self._place['checksum']
    for file in range(first, len(self._files)):
      skipped = done if file == first else 0
      checksum = number = 0
      for content, read in readers.blocks(
        self._files[file], self._encoder.instructions
      ):
        checksum = readers.checksum(content, checksum)
        number += 1
        if number > skipped:
          yield InputBlock(file, number, checksum, read, content)
        elif should_stop():
          raise Interrupted
        elif number == skipped and checksum != expected:
          raise self._changed(file)
      if number < skipped:
        raise self._changed(file)

  def _changed(self, file: int) -> UserError:
    return atomic_dir.cannot_resume(
      self._partial, f'{self._files[file]} has changed'
    )

  def _apply(self, block: InputBlock, encoded: encoding.EncodedBlock) -> None:
    line = self._place['line'] if block.file == self._place['file'] else 0
    for number, reason in encoded.bad:
      self.bad.add(self._files[block.file], line + number, reason)
    for document in encoded.documents:
      self._text += document.num_bytes
      split: str | None = 'validation'
      if block.file < self._num_held_out:
        self.holdout.add(document)
      else:
        split = self.holdout.split(document)
      if split:
        self.writer.add(split, document)
        self.corpus_hash.add(split, document)
    self._place = {
      'file': block.file,
      'blocks': block.number,
      'checksum': block.checksum,
      'line': line + encoded.lines,
      'read': block.read,
    }

  def _bytes_done(self, sizes: list[int]) -> int:
    return sum(sizes[: self._place['file']]) + self._place['read']


class _InputProgress:
  """Shows the share of the input processed, the rate and the time left."""

  def __init__(
    self,
    total: int,
    log: Callable[[str], None],
    *,
    done: int = 0,
    text: int = 0,
  ):
    """Starts the clock.

    Args:
      total: Bytes of the input files, as stored.
      log: Receives lines if standard error is not a terminal.
      done: Bytes of the files that were processed before.
      text: Bytes of text in these.
    """
    self._total = max(1, total)
    self._log = log
    self._done, self._text = done, text
    self._start = self._last = time.monotonic()
    # disable=None: no bar without a terminal.
    self._bar = tqdm.tqdm(
      total=self._total,
      initial=done,
      disable=None,
      bar_format='{percentage:3.0f}% |{bar}| {postfix}, {remaining} left',
    )

  def update(self, done: int, text: int, bad: int) -> None:
    """Shows the progress.

    Args:
      done: Bytes of the input files processed.
      text: Bytes of text in these.
      bad: Lines skipped.
    """
    now = time.monotonic()
    seconds = max(now - self._start, 1e-9)
    rate = (text - self._text) / seconds
    state = f'{text / 1e6:,.0f} MB of text, {rate / 1e6:.1f} MB/s'
    if bad:
      state += f', {bad} bad lines'
    self._bar.set_postfix_str(state, refresh=False)
    self._bar.update(done - self._bar.n)
    if self._bar.disable and now - self._last >= _LINE_SECONDS:
      self._last = now
      left = seconds * (self._total - done) / max(1, done - self._done)
      self._log(
        f'{done / self._total:.1%} of the input, {state}, '
        f'{tqdm.tqdm.format_interval(left)} left'
      )

  def close(self) -> None:
    """Ends the bar."""
    self._bar.close()
