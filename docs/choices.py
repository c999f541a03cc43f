"""Where papers and released codes part, in a line each; docs/conformance.md."""

# method: (paper, released code, ours). Sizes are in the tables of the page.
CHOICES: dict[str, tuple[str, str, str]] = {
  'adamw': (
    'eps after the bias correction, decay of the old parameter',
    'as the paper (PyTorch)',
    "the paper, Optax's code; moments in float32",
  ),
  'lion': ('sign of the old momentum', 'as the paper', 'the paper'),
  'sage': (
    'sign of the old momentum; damper of two terms',
    'momentum moved before the sign; two of three classes have one term',
    'the paper',
  ),
  'sinkgd': (
    'no eps',
    'eps added to the norms; two of three classes without the square roots',
    'eps added to the norms; `unit_norm=True` for the form without roots',
  ),
}
