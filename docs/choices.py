"""Differences between papers and released code, for docs/conformance.md."""

# Methods without a recorded run, and their references.
NOT_RECORDED: dict[str, str] = {
  'adafactor': "Optax's scale_by_factored_rms and clipping",
}

# method: (paper, released code, ours). Sizes are in the tables of the page.
CHOICES: dict[str, tuple[str, str, str]] = {
  'adamw': (
    'eps after the bias correction; decay of the old parameter',
    'as the paper (PyTorch)',
    'as the paper, with Optax; moments in float32',
  ),
  'lion': (
    'sign computed from the old momentum',
    'as the paper',
    'as the paper',
  ),
  'sage': (
    'sign computed from the old momentum; damper of two terms',
    'momentum updated before the sign; two of three classes have one term',
    'as the paper',
  ),
  'sinkgd': (
    'no eps',
    'eps added to the norms; two of three classes omit the square roots',
    'eps added to the norms; `unit_norm=True` omits the square roots',
  ),
  'muon': (
    'Newton-Schulz of the Nesterov momentum; MuonEq divides by norms first',
    'in bfloat16; MuonEq adds 1e-8 to the squared norms of summed gradients; '
    'low-rank Muon uses a QR of the sampled columns, which of tall matrices it '
    'takes from the first ones only; NorMuon has Nesterov momentum and keeps '
    'the norm; symmetry-compatible Muon is per attention head, with Polar '
    'Express polynomials for 5 steps and a margin of 2 %',
    'bfloat16 on accelerators, float32 or wider on CPU; 1e-8 added to norms; '
    'polar factor of columns sampled from all; the recipe `normuon` is that of '
    'the paper, with rms 0.2 and without Nesterov; whole matrices, and the '
    'polynomials printed in the Polar Express paper, from which those that its '
    'code computes differ by about 1 %',
  ),
  'scale': (
    'division by the L2 norm',
    'by the rms, at least 1e-8; the symmetry-compatible method adds 1e-8',
    'by the rms, at least 1e-8; `unit_norm=True` for the L2 norm',
  ),
  'swan': (
    'exact inverse root of the Gram matrix',
    'not by the authors: Newton-Schulz of the Gram matrix over its trace',
    'Newton-Schulz of the Gram matrix over its Frobenius norm',
  ),
  'stable_spam': (
    "a reset sets moments to zero before use; the averages' count continues",
    "a reset step uses the old moments; the averages' count restarts, too",
    'as the paper',
  ),
  'spam': (
    'clip by the second moment; momentum on a random part of the entries',
    'entries without a second moment are frozen, without decay',
    'as the code, but such entries are updated and decayed',
  ),
  'sgd_sai': (
    'momentum starts at zero; ratios divided by their maximum',
    'momentum starts as the first gradient; ratios not divided',
    'as the code, but the ratio is that of the first non-zero gradient; '
    '`normalize_by_max=True` divides the ratios',
  ),
  'apollo': (
    'factors from Adam of a projected gradient; a norm may grow by 1 % per '
    'step',
    'root of `scale`; limiter before the bias correction; after a zero '
    'gradient the norm grows from 0',
    'as the code, but a zero gradient keeps the previous norm',
  ),
  'adafactor': (
    'steps relative to the rms of the parameter',
    'an option',
    'not relative; `optax.scale_by_param_block_rms` makes them so',
  ),
  'adam_mini': (
    'one second moment per attention head for queries and keys',
    'as the paper; one for each norm scale; one per element for biases',
    'one per fan-out unit for queries and keys; one per element of vectors; '
    'per feature in Coupled Adam',
  ),
  'soap': (
    'orthogonal iteration every f steps',
    'first step without update and decay, for vectors, too; directions and '
    'second moment sorted by eigenvalue before each iteration; decay after the '
    'step',
    'the code, but AdamW for vectors, and decay as everywhere',
  ),
  'galore': (
    'Adam in the leading subspace of the gradient',
    'eps added before the bias correction; moments kept when P is renewed',
    "as the code; `projector='subspace'` instead of an SVD for TPUs",
  ),
  'fira': (
    'the residual is the gradient minus its projection',
    'minus `alpha` times its projection; norms as in APOLLO',
    'as the code, with zero gradients as in our APOLLO; '
    '`exact_residual=True` follows the paper',
  ),
}
