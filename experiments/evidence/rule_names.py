"""The rules of the table in pictures and in words."""

# Name of a table arm -> its name in pictures, and what it does to a gradient g.
RULES: dict[str, tuple[str, str]] = {
  'adamw': ('AdamW', 'm / sqrt(v)'),
  'sage': ('SAGE', 'the sign of a momentum times a damper H <= 1 per feature'),
  'sinkgd': ('SinkGD', 'g with its rows and columns normalized in turn'),
  'lion': ('Lion', 'the sign of a momentum'),
  'lion_mean_h': ('Lion × mean H', 'control: SAGE with the mean of H for H'),
  'sage_shuffled': (
    'SAGE, shuffled H',
    'control: SAGE with the entries of H given to other features',
  ),
  'row_rms': ('RMS per token', 'g / sqrt(v), one v per token'),
  'row_momentum': ('row norm, momentum', 'a momentum over its RMS per token'),
  'coupled_adam': ('Coupled Adam', 'AdamW with one v per feature'),
  'factored': ('factored RMS', 'g / sqrt(v), v from row and column means'),
  'row_norm': ('row norm', 'g over its RMS per token'),
  'column_norm': ('column norm', 'g over its norm per feature (SCALE)'),
  'column_momentum': (
    'column norm, momentum',
    'a momentum over its norm per feature (SCALE)',
  ),
  'adafactor': ('Adafactor', 'as `factored`, with growing decay and clipping'),
  'adafactor_momentum': ('Adafactor, momentum', '`adafactor` and a momentum'),
  'adam_mini': ('Adam-mini', 'AdamW with one v per token'),
}
