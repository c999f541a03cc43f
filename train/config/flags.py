"""Reads configurations from a file and overrides from the command line."""

import contextlib
import difflib
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

import sage_optax
from train.config import fields
from train.config.resolve import complete
from train.config.schema import Config
from train.config.validate import validate
from train.errors import UserError


class _FloatOrNone(flags.FloatParser):
  """Parses a number, or 'none'; `validate` checks whether None is accepted."""

  def convert(self, argument: Any) -> Any:
    none = str(argument).lower() == 'none'
    return None if none else super().convert(argument)


class _IntegerOrNone(flags.IntegerParser):
  """As _FloatOrNone, for integers."""

  def convert(self, argument: Any) -> Any:
    none = str(argument).lower() == 'none'
    return None if none else super().convert(argument)


class _TextOrNone(flags.ArgumentParser):
  """As _FloatOrNone, for text."""

  syntactic_help = 'a string, or none'

  def parse(self, argument: Any) -> Any:
    none = str(argument).lower() == 'none'
    return None if none else str(argument)


config_flags.register_flag_parser_for_type(str, _TextOrNone())
config_flags.register_flag_parser_for_type(float, _FloatOrNone())
config_flags.register_flag_parser_for_type(int, _IntegerOrNone())


def define_flag(
  flag_values: flags.FlagValues = flags.FLAGS,
  argv: Sequence[str] | None = None,
) -> None:
  """Defines `--config`; with `argv` instead of `sys.argv` if given."""
  argv = list(sys.argv if argv is None else argv)
  config_flags.DEFINE_config_dataclass(
    'config',
    Config(),
    'Configuration file, e.g. configs/quickstart.py; --config.train.steps=10 '
    'and the like override its fields.',
    flag_values=flag_values,
    # Without a file, ignore the overrides; parse_flags rejects them.
    sys_argv=argv if _file_of(argv) else argv[:1],
    parse_fn=_load_file,
  )


def parse_flags(
  argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS
) -> list[str]:
  """Parses the command line, for `app.run(main, flags_parser=parse_flags)`.

  Returns:
    The program's name and the positional arguments.

  Raises:
    UserError: For any error, in one line.
  """
  path = _file_of(argv)
  if path is None and any(re.match('--?config', arg) for arg in argv[1:]):
    raise UserError('give a configuration first: --config=configs/FILE.py')
  try:
    return flag_values(list(argv))
  # The flag library raises KeyError and IndexError for unknown fields,
  # TypeError for sections, and flags.Error for values.
  except (KeyError, IndexError, TypeError, ValueError, flags.Error) as error:
    message = path and _unknown_field(argv, path)
    text = ' '.join(str(error).split())[:300]
    raise UserError(message or f'{text} (see {path or "--help"})') from error


def read_flag(flag_values: flags.FlagValues = flags.FLAGS) -> Config:
  """Returns the configuration of the command line, checked and completed."""
  if not flag_values.is_parsed():
    parse_flags(sys.argv, flag_values)
  if not flag_values['config'].present:
    raise UserError('no configuration: give --config=configs/quickstart.py')
  config: Any = flag_values['config'].value
  if config.model.remat is None:  # Here 'none' is a word.
    config.model.remat = 'none'
  validate(config)
  complete(config)
  return config


def load(path: str, *overrides: str) -> Config:
  """Returns the configuration of a file, as the command line does.

  Args:
    path: The file.
    *overrides: For example 'train.steps=10'.

  Raises:
    UserError: As from the command line.
  """
  argv = ['load', f'--config={path}', *(f'--config.{o}' for o in overrides)]
  flag_values = flags.FlagValues()
  define_flag(flag_values, argv)
  parse_flags(argv, flag_values)
  return read_flag(flag_values)


def _file_of(argv: Sequence[str]) -> str | None:
  """Returns the argument of --config on a command line."""
  for arg, following in zip(argv, [*argv[1:], None], strict=True):
    if re.fullmatch('--?config', arg):
      return following
    if re.match('--?config=', arg):
      return arg.split('=', 1)[1]
  return None


def _load_file(path: str) -> Config:
  """Runs a configuration file."""
  if not os.path.isfile(path):
    raise UserError(f'no configuration file {path!r}{_close_file(path)}')
  spec = importlib.util.spec_from_file_location('_config_file', path)
  if spec is None or spec.loader is None:
    raise UserError(f'{path!r} is not a Python file: give configs/FILE.py')
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    config = module.get_config()
  except (Exception, SystemExit) as error:  # The file may raise anything.
    text = ' '.join(str(error).split())[:300]
    raise UserError(f'{path} failed: {type(error).__name__}: {text}') from error
  if not isinstance(config, Config):
    raise UserError(f'{path}: get_config() must return a train.config.Config')
  # The flag library infers an override's type from the value in the file.
  for declared in fields.walk(config):
    if isinstance(declared.value, dict):
      for key, value in declared.value.items():
        with contextlib.suppress(OverflowError):
          declared.value[key] = float(value) if type(value) is int else value
  return config


def _close_file(path: str) -> str:
  folder = os.path.dirname(path) or '.'
  files = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
  files = [f for f in files if f.endswith('.py') and not f.startswith('_')]
  close = difflib.get_close_matches(os.path.basename(path), files, 1)
  if close:
    return f': did you mean {os.path.join(os.path.dirname(path), close[0])}?'
  return f'; {folder} has {", ".join(files)}' if files else ''


def _unknown_field(argv: Sequence[str], path: str) -> str | None:
  """Returns a message about the first override of an unknown field."""
  config = _load_file(path)
  known = list(fields.settings(config))
  tables = [d.path for d in fields.walk(config) if isinstance(d.value, dict)]
  for arg in argv[1:]:
    match = re.match(r'--?(?:no)?config\.([^=]*)', arg)
    if match is None or match[1] in known:
      continue
    got = match[1]
    below = [f for f in known if f.startswith(f'{got}.')]
    if below:
      return f'config.{got} is a section: give one of its fields, {below[0]}'
    table, _, entry = got.rpartition('.')
    if table in tables:
      close = (
        []  # Another name was not meant.
        if entry in sage_optax.recipe_names()
        else difflib.get_close_matches(got, known, 1, 0.9)
      )
      hint = (
        f'did you mean config.{close[0]}?' if close else f'add it to {path}'
      )
      return f'config.{table} has no entry {entry!r}: {hint}'
    named = [f for f in known if _name(f) == _name(got)]
    close = named or [
      field
      for field in difflib.get_close_matches(got, known, 3, 0.5)
      if difflib.get_close_matches(_name(got), [_name(field)], 1, 0.5)
    ]
    hint = f': did you mean config.{close[0]}?' if close else ''
    return f'unknown field config.{got}{hint} (--helpfull lists all fields)'
  return None


def _name(field: str) -> str:
  return field.rpartition('.')[2]
