"""Slow float64 NumPy forms of the methods, one matrix or vector at a time.

Written from the papers' equations, step by step and without the library's
vectorisation, as something to compare with. Each takes the gradients of all
steps (a list of arrays of one unit) and returns the updates of all steps.
"""

import numpy as np


def _rms(x):
  return np.sqrt(np.mean(x**2))


def lion(grads, b1=0.9, b2=0.99):
  mu, updates = np.zeros_like(grads[0]), []
  for g in grads:
    updates.append(np.sign(b1 * mu + (1 - b1) * g))
    mu = b2 * mu + (1 - b2) * g
  return updates


def sage(grads, b1=0.9, b2=0.99, eps=1e-8, axis=-2):
  mu, updates = np.zeros_like(grads[0]), []
  average = None
  for t, g in enumerate(grads, 1):
    # One number per feature, in a plain vector.
    stat = np.abs(g) if g.ndim == 1 else np.abs(g).mean(axis)
    average = np.zeros_like(stat) if average is None else average
    average = b2 * average + (1 - b2) * stat
    unbiased = average / (1 - b2**t)
    damper = np.minimum(_rms(unbiased) / (unbiased + eps), 1)
    damper = np.minimum(damper, _rms(stat) / (stat + eps))
    if g.ndim == 2:
      damper = np.expand_dims(damper, axis)
    updates.append(np.sign(b1 * mu + (1 - b1) * g) * damper)
    mu = b2 * mu + (1 - b2) * g
  return updates


def sinkgd(grads, num_iters=5, eps=1e-8, unit_norm=False):
  updates = []
  for g in grads:
    if g.ndim == 1:
      updates.append(g / (np.linalg.norm(g) + eps))
      continue
    x = g.copy()
    fan_in, fan_out = x.shape
    for _ in range(num_iters):
      for j in range(fan_out):
        x[:, j] /= np.linalg.norm(x[:, j]) + eps
      x *= 1 if unit_norm else np.sqrt(fan_in)
      for i in range(fan_in):
        x[i] /= np.linalg.norm(x[i]) + eps
      x *= 1 if unit_norm else np.sqrt(fan_out)
    updates.append(x)
  return updates


def adamw(grads, b1=0.9, b2=0.999, eps=1e-8):
  mu = nu = np.zeros_like(grads[0])
  updates = []
  for t, g in enumerate(grads, 1):
    mu = b1 * mu + (1 - b1) * g
    nu = b2 * nu + (1 - b2) * g**2
    mu_hat, nu_hat = mu / (1 - b1**t), nu / (1 - b2**t)
    updates.append(mu_hat / (np.sqrt(nu_hat) + eps))
  return updates


def scale(
  grads,
  momentum=None,
  eps=1e-8,
  unit_norm=False,
  axis=-2,
  nesterov=False,
  center=False,
  shape_factor=False,
):
  mu, updates = np.zeros_like(grads[0]), []
  for g in grads:
    mu = g if momentum is None else momentum * mu + (1 - momentum) * g
    x = momentum * mu + (1 - momentum) * g if nesterov else mu.copy()
    turned = axis == -1 and g.ndim == 2
    x = x.T.copy() if turned else x.reshape(len(g), -1).copy()
    if center and g.ndim == 2:
      x -= x.mean(1, keepdims=True)
    for j in range(x.shape[1]):
      size = np.linalg.norm(x[:, j]) if unit_norm else _rms(x[:, j])
      x[:, j] /= max(size, eps)
    if center and g.ndim == 2:
      x -= x.mean(1, keepdims=True)
    if shape_factor and g.ndim == 2:
      x *= np.sqrt(max(1, g.shape[1] / g.shape[0]))
    updates.append(x.T if turned else x.reshape(g.shape))
  return updates


def swan(grads, ns_steps=10, center=True, rescale=True, size_of=np.linalg.norm):
  updates = []
  for g in grads:
    x = g.copy()
    for j in range(x.shape[1]):
      x[:, j] -= x[:, j].mean() if center else 0
      x[:, j] /= np.sqrt(np.mean(x[:, j] ** 2) + 1e-8)
    # The inverse root by its effect on each singular value: in the basis of
    # its eigenvectors the iteration is one of numbers.
    u, s, vh = np.linalg.svd(x, full_matrices=False)
    size = size_of(s**2)
    y, z = s**2 / size, np.ones_like(s)
    for _ in range(ns_steps):
      t = (3 - z * y) / 2
      y, z = y * t, t * z
    w = u @ np.diag(z * s / np.sqrt(size)) @ vh
    if rescale:
      w *= np.linalg.norm(x) / np.linalg.norm(w)
    updates.append(w)
  return updates


# Polynomials of each step: Jordan et al.; Dion's repository; the listing of
# Polar Express, at x / 1.01.
_NS_COEFFS = {
  'standard': [(3.4445, -4.7750, 2.0315)] * 5,
  'dion': [
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
  ],
  'polar_express': [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
  ],
}


def newton_schulz(x, ns_steps=5, ns_coeffs='standard', order=2):
  # An odd polynomial of a matrix is that of its singular values.
  u, s, vh = np.linalg.svd(x, full_matrices=False)
  if order == 2:
    s = s / (np.linalg.norm(s) + 1e-7)
  elif s.any():
    s = s / np.sum(s**order) ** (1 / order)
  for a, b, c in _NS_COEFFS[ns_coeffs][:ns_steps]:
    z = s / 1.01 if ns_coeffs == 'polar_express' else s
    s = a * z + b * z**3 + c * z**5
  return u @ np.diag(s) @ vh


def muon(
  grads,
  momentum=0.95,
  ns_steps=5,
  nesterov=True,
  consistent_rms=None,
  equilibrate=None,
  normalize_after=None,
  nuclear_power=None,
  unit_decay=None,
  **polynomial,
):
  mu, nu, updates = np.zeros_like(grads[0]), 0.0, []
  for g in grads:
    x = g
    if momentum is not None:
      mu = momentum * mu + (1 - momentum) * g
      x = (1 - momentum) * g + momentum * mu if nesterov else mu
    fan_in, fan_out = x.shape
    left, right = np.eye(fan_in), np.eye(fan_out)
    if equilibrate in ('fan_out', 'both'):
      right = np.diag([1 / (np.linalg.norm(c) + 1e-8) for c in x.T])
    if equilibrate in ('fan_in', 'both'):
      left = np.diag([1 / (np.linalg.norm(r) + 1e-8) for r in x])
    x = left @ x @ right
    update = newton_schulz(x, ns_steps, **polynomial)
    if nuclear_power is not None:
      update = update * np.sum(x * update) ** nuclear_power
    if normalize_after is not None:
      axis = {'fan_out': 0, 'fan_in': 1}[normalize_after]
      size = np.linalg.norm(update, axis=axis, keepdims=True)
      update = update / (size + 1e-8)
    norm = np.linalg.norm(update)
    if unit_decay is not None:
      nu = unit_decay * nu + (1 - unit_decay) * np.mean(update**2, 0)
      update = update / (np.sqrt(nu) + 1e-10)
      update *= norm / np.linalg.norm(update)
    if consistent_rms is None:
      update = update * np.sqrt(max(1, fan_out / fan_in))
    elif unit_decay is not None:
      update = update * consistent_rms / _rms(update)
    else:
      update = update * consistent_rms * np.sqrt(max(fan_in, fan_out))
    updates.append(update)
  return updates


def stable_spam(
  grads,
  b1=0.9,
  b2=0.999,
  eps=1e-8,
  gammas=(0.7, 0.9, 0.999),
  reset_interval=None,
  total_steps=None,
  min_scale=0.5,
):
  adam, updates = 0, []
  m = v = np.zeros_like(grads[0])
  sums = {'max': 0.0, 'norm': 0.0, 'square': 0.0}
  for t, g in enumerate(grads, 1):
    scale = 1.0
    if total_steps is not None:
      angle = np.pi * t / (total_steps + 1)
      scale = min_scale + (1 - min_scale) * (1 + np.cos(angle)) / 2
      scale = scale if t < total_steps else min_scale
    gamma1, gamma2, gamma3 = gammas[0] * scale, *gammas[1:]

    def average(name, new, gamma, t=t):
      sums[name] = gamma * sums[name] + (1 - gamma) * new
      return sums[name] / (1 - gamma**t)

    flat = g.ravel().copy()
    peak = max(abs(x) for x in flat)
    limit = average('max', peak, gamma3)
    for i, x in enumerate(flat):
      if abs(x) > limit:
        flat[i] = x / peak * limit
    size = np.sqrt(sum(x * x for x in flat))
    mean = average('norm', size, gamma1)
    square = average('square', size**2, gamma2)
    if size > 0:
      flat = flat / size * mean / (np.sqrt(square) + eps)
    g = flat.reshape(g.shape)
    if reset_interval and t % reset_interval == 0:
      adam, m, v = 0, np.zeros_like(g), np.zeros_like(g)
    adam += 1
    m = b1 * scale * m + (1 - b1 * scale) * g
    v = b2 * v + (1 - b2) * g**2
    m_hat, v_hat = m / (1 - (b1 * scale) ** adam), v / (1 - b2**adam)
    updates.append(m_hat / (np.sqrt(v_hat) + eps))
  return updates


def spam(
  grads,
  b1=0.9,
  b2=0.999,
  eps=1e-6,
  threshold=5000.0,
  reset_interval=500,
  warmup_steps=150,
  grace_steps=20,
):
  m = v = np.zeros_like(grads[0])
  last_reset, updates = 0, []
  for t, g in enumerate(grads, 1):
    factor = 1.0
    if t % reset_interval == 0:
      m = v = np.zeros_like(g)
      last_reset = t
    since = t - last_reset
    if last_reset and since < warmup_steps:
      factor = 1 - 0.99 * (1 + np.cos(np.pi * since / (warmup_steps + 1))) / 2
    if since >= grace_steps:
      g = g.copy()
      for i in np.ndindex(g.shape):
        if v[i] > 0 and g[i] ** 2 > threshold * v[i]:
          g[i] = np.sign(g[i]) * np.sqrt(threshold * v[i])
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g**2
    correction = np.sqrt(1 - b2**t) / (1 - b1**t)
    updates.append(factor * m / (np.sqrt(v) + eps) * correction)
  return updates


def sgd_sai(grads, momentum=0.9, eps=1e-8):
  gsnr = m = None
  updates = []
  for g in grads:
    if gsnr is None and g.any():
      gsnr = np.linalg.norm(g) / (np.std(g, ddof=1) + eps)
      m = g
    elif gsnr is not None:
      m = momentum * m + (1 - momentum) * g
    updates.append(np.zeros_like(g) if gsnr is None else gsnr * m)
  return updates


def projection(key, matrix, count):
  """A projector of rank 2 that knows gradient and step, in JAX and NumPy.

  Its columns belong to the smaller side's indices: permuted, they go with them.
  """
  del key
  wide = matrix.shape[1] >= matrix.shape[0]
  total = matrix.sum(1 if wide else 0, keepdims=True).reshape(1, -1)
  share = total / (1 + abs(total))
  signs = np.array([[0.7], [-0.4]])
  return 1 + count % 5 * signs + share * (signs - 0.5) + share**2 * signs


def _low_rank_adam(grads, gap, b1, b2, eps, project=projection):
  """For each step: gradient, P, R, N and the correction; smaller side first."""
  mu = nu = 0
  for t, g in enumerate(grads):
    if t % gap == 0:
      p = project(None, g, t)
    g = g if g.shape[1] >= g.shape[0] else g.T
    low = p @ g
    mu = b1 * mu + (1 - b1) * low
    nu = b2 * nu + (1 - b2) * low**2
    correction = np.sqrt(1 - b2 ** (t + 1)) / (1 - b1 ** (t + 1))
    yield g, p, low, mu / (np.sqrt(nu) + eps), correction


def _limited(x, old, limit):
  """`x` and its norm, which exceeds `old` by a factor `limit` at most."""
  size = np.linalg.norm(x)
  if size == 0:
    return x, old
  if old and limit and size > limit * (old + 1e-8):
    return x * (limit * (old + 1e-8) / size), limit * (old + 1e-8)
  return x, size


def apollo(
  grads,
  update_proj_gap,
  scale=1.0,
  b1=0.9,
  b2=0.999,
  eps=1e-6,
  norm_growth_limit=1.01,
  per_unit=True,
  scale_front=False,
):
  old, updates = 0, []
  steps = _low_rank_adam(grads, update_proj_gap, b1, b2, eps)
  for g, _, low, direction, correction in steps:
    x = g.copy()
    for j in range(g.shape[1]):
      at = slice(j, j + 1) if per_unit else slice(None)
      size = np.linalg.norm(low[:, at]) + 1e-8
      x[:, j] *= np.linalg.norm(direction[:, at]) / size
    x *= np.sqrt(scale) if scale_front else 1
    x, old = _limited(x, old, norm_growth_limit)
    x = x * (1 if scale_front else np.sqrt(scale)) * correction
    updates.append(x if x.shape == grads[0].shape else x.T)
  return updates


def galore(grads, update_proj_gap, scale=0.25, b1=0.9, b2=0.999, eps=1e-6):
  updates = []
  steps = _low_rank_adam(grads, update_proj_gap, b1, b2, eps)
  for _, p, _, direction, correction in steps:
    x = scale * correction * (p.T @ direction)
    updates.append(x if x.shape == grads[0].shape else x.T)
  return updates


def fira(
  grads,
  update_proj_gap,
  alpha=0.25,
  b1=0.9,
  b2=0.999,
  eps=1e-6,
  norm_growth_limit=1.01,
  exact_residual=False,
):
  old, updates = 0, []
  steps = _low_rank_adam(grads, update_proj_gap, b1, b2, eps)
  for g, p, low, direction, correction in steps:
    residual = g - (1 if exact_residual else alpha) * (p.T @ low)
    for j in range(g.shape[1]):
      size = np.linalg.norm(low[:, j]) + 1e-8
      residual[:, j] *= np.linalg.norm(direction[:, j]) / size
    residual, old = _limited(residual, old, norm_growth_limit)
    x = correction * (alpha * (p.T @ direction) + residual)
    updates.append(x if x.shape == grads[0].shape else x.T)
  return updates


def adam_mini(grads, b1=0.9, b2=0.999, eps=1e-8, axis=-2):
  mu, nu, updates = np.zeros_like(grads[0]), 0.0, []
  for t, g in enumerate(grads, 1):
    square = g**2
    if g.ndim == 2:
      square = np.broadcast_to(square.mean(axis, keepdims=True), g.shape)
    nu = b2 * nu + (1 - b2) * square
    root = np.sqrt(nu / (1 - b2**t)) + eps
    if b1 is None:
      updates.append(g / root)
      continue
    mu = b1 * mu + (1 - b1) * g
    updates.append(mu / (1 - b1**t) / root)
  return updates


def adafactor(grads, momentum=None, decay_rate=0.8, clip=1.0):
  rows = columns = whole = 0.0
  mu, updates = np.zeros_like(grads[0]), []
  for t, g in enumerate(grads, 1):
    beta, square = 1 - t**-decay_rate, g**2 + 1e-30
    if g.ndim == 1:
      estimate = whole = beta * whole + (1 - beta) * square
    else:
      rows = beta * rows + (1 - beta) * square.mean(1)
      columns = beta * columns + (1 - beta) * square.mean(0)
      estimate = np.outer(rows, columns) / rows.mean()
    update = g / np.sqrt(estimate)
    if clip is not None:
      update = update / max(1.0, _rms(update) / clip)
    if momentum is not None:
      update = mu = momentum * mu + (1 - momentum) * update
    updates.append(update)
  return updates


def soap(grads, b1=0.95, b2=0.95, eps=1e-8, gap=10, one_sided=False):
  m, n = grads[0].shape
  left, right = not one_sided or m <= n, not one_sided or n < m
  gram = [np.zeros((m, m)), np.zeros((n, n))]
  basis = [np.eye(m), np.eye(n)]
  mu = nu = np.zeros((m, n))
  updates = []
  for t, g in enumerate(grads):
    q, r = basis
    update = np.zeros_like(g)
    if t > 0:
      mu = b1 * mu + (1 - b1) * g
      nu = b2 * nu + (1 - b2) * (q.T @ g @ r) ** 2
      update = q @ ((q.T @ mu @ r) / (np.sqrt(nu) + eps)) @ r.T
      update *= np.sqrt(1 - b2**t) / (1 - b1**t)
    updates.append(update)
    for i, (used, square) in enumerate(((left, g @ g.T), (right, g.T @ g))):
      gram[i] = b2 * gram[i] + (1 - b2) * square
      if used and t == 0:
        basis[i] = np.linalg.eigh(gram[i])[1][:, ::-1]
      elif used and t % gap == 0:
        sizes = np.diag(basis[i].T @ gram[i] @ basis[i])
        order = np.argsort(-sizes)
        nu = np.take(nu, order, axis=i)
        basis[i] = np.linalg.qr(gram[i] @ basis[i][:, order])[0]
  return updates


def multi_norm(grads, norms, num_iters):
  updates = []
  for g in grads:
    x = g.copy()
    for name in list(norms) * num_iters:
      if name == 'spectral':
        u, _, vt = np.linalg.svd(x, full_matrices=False)
        x = u @ vt * np.sqrt(max(x.shape))
      elif name == 'frobenius':
        x = x / (_rms(x) + 1e-8 / np.sqrt(x.size))
      elif name == 'max':
        x = np.sign(x)
      else:
        axis = {'fan_out': 0, 'fan_in': 1}[name]
        size = np.linalg.norm(x, axis=axis, keepdims=True) + 1e-8
        x = x / size * np.sqrt(x.shape[axis])
    updates.append(x)
  return updates
