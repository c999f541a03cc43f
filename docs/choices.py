"""Differences of papers and released codes, for docs/conformance.md."""

# Methods without a recorded run, and what they are compared with instead.
NOT_RECORDED: dict[str, str] = {
  'adafactor': "Optax's scale_by_factored_rms and its clip",
  'soap': 'its equations in float64',
  'adam_mini': 'optax.scale_by_adam where slices are constant',
}

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
  'muon': (
    'Newton-Schulz of the Nesterov momentum; MuonEq divides by norms first',
    'in bfloat16; MuonEq adds 1e-8 to the squared norms of summed gradients; '
    'low-rank Muon takes a QR of the columns drawn',
    'bfloat16 on accelerators, float32 or wider on CPU; 1e-8 added to norms; '
    'a polar factor of the columns',
  ),
  'scale': (
    'division by the L2 norm',
    'by the rms, at least 1e-8; the symmetry-compatible one adds 1e-8',
    'by the rms, at least 1e-8; `unit_norm=True` for the L2 norm',
  ),
  'swan': (
    'exact inverse root of the Gram matrix',
    'an independent one: Newton-Schulz from the Gram matrix over its trace',
    'Newton-Schulz from the Gram matrix over its Frobenius norm',
  ),
  'stable_spam': (
    "zero moments at a reset, before use; the averages' count continues",
    'old moments at a reset; the count starts again for the averages too',
    'the paper',
  ),
  'spam': (
    'clip by the second moment; momentum on a random part of the entries',
    'entries without a second moment set to zero, and frozen; no decay there',
    'the code, but such entries are not clipped; decay as everywhere',
  ),
  'sgd_sai': (
    'zero momentum at the start; ratios over their maximum',
    'momentum starts as the first gradient; ratios as they are',
    'the code; `normalize_by_max=True`; ratio of the first non-zero gradient',
  ),
  'apollo': (
    'Adam of a projected gradient gives the factors; a norm may grow by 1 %',
    'the root of `scale`; limited before the bias correction; a zero gradient '
    'leaves 0 as the norm to grow from',
    'the code, but a zero gradient leaves the norm from before',
  ),
  'adafactor': (
    'relative step sizes, by the rms of the parameter',
    'an option',
    'left out; `optax.scale_by_param_block_rms` adds them',
  ),
  'adam_mini': (
    'a second moment per head for queries and keys',
    'as the paper',
    'per fan-out unit there too; per feature in Coupled Adam',
  ),
  'soap': (
    'orthogonal iteration every f steps',
    'no first step; directions and second moment sorted anew each time',
    'no first step; sorted once, by the eigenvectors of the first gradient',
  ),
  'galore': (
    'Adam in the leading subspace of the gradient',
    'eps added before the bias correction; moments kept at a refresh',
    "the code; `projector='subspace'` instead of an SVD for TPUs",
  ),
  'fira': (
    'the residual is the gradient less its projection',
    'less `alpha` times its projection; norms as in APOLLO',
    'the code, zero gradients as in APOLLO; `exact_residual=True` for the '
    'paper',
  ),
}
