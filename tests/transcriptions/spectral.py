"""Methods of matrices with Newton-Schulz, by the writer of the rules: from papers and authors' code (polargrad.py of
timlautk/polargrad, contrib/muown.py of NVIDIA-NeMo/Emerging-Optimizers, sso.py of Unakar/Spectral-Sphere-Optimizer,
turbo_muon_torch.py of thib-s/flash-newton-schulz), beside which they were run.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np

from .base import Array, Transcription

JORDAN = [(3.4445, -4.7750, 2.0315)] * 5
QUINTIC = [
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]


POLAR_EXPRESS = [
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.0429299351667245, -2.808917465908704, 0.5000178451051299),
    (3.8916678022926563, -2.7724841532176825, 0.5060648178503389),
    (3.285753657755658, -2.3681294933425394, 0.46449024233003117),
    (2.3005307116270983, -1.6111665557258408, 0.3833374427545273),
]


def newton_schulz(y: Array, coefficients: list[tuple[float, float, float]], safety: float = 1.0) -> Array:
    tall = y.shape[0] > y.shape[1]
    y = (y.T if tall else y) / (np.linalg.norm(y) * safety)
    for a, b, c in coefficients:
        square = y @ y.T
        y = a * y + (b * square + c * square @ square) @ y
    return y.T if tall else y


class AdaGO(Transcription):
    """Zhang, Liu and Schaeffer, arXiv 2509.02981, algorithm 1, with decoupled weight decay."""

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(m=np.zeros_like(x), v=None)

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        s.m = o.momentum * s.m + (1 - o.momentum) * g
        y = (1 - o.momentum) * g + o.momentum * s.m if o.nesterov else s.m
        clamped = min(float(np.linalg.norm(g)), o.gamma)
        s.v = (o.v if s.v is None else s.v) + clamped**2
        alpha = max(o.eps, lr * clamped / math.sqrt(s.v))
        return x - lr * o.weight_decay * x - alpha * newton_schulz(y, JORDAN)


class PolarGrad(Transcription):
    """Lau, Long and Su, arXiv 2505.21799, momentum first; NVIDIA's nesterov and coefficients."""

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        s.m = o.momentum * s.m + (1 - o.momentum) * g
        y = (1 - o.momentum) * g + o.momentum * s.m if o.nesterov else s.m
        polar = newton_schulz(y, QUINTIC)
        return x - lr * o.weight_decay * x - lr * np.sum(polar * y) * polar


class Muown(Transcription):
    """arXiv 2605.10797, NVIDIA's contrib/muown.py."""

    def start(self, x: Array) -> SimpleNamespace:
        rows = np.linalg.norm(x, axis=1, keepdims=True)
        return SimpleNamespace(
            size=rows, length=rows, m=np.zeros_like(x), first=np.zeros_like(rows), second=np.zeros_like(rows)
        )

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        b1, b2 = o.betas
        unit = x / s.size
        by_size = np.sum(g * unit, axis=1, keepdims=True)
        by_row = s.size / s.length * (g - unit * by_size)
        s.m = o.momentum * s.m + (1 - o.momentum) * by_row
        rows, columns = x.shape
        factor = 0.2 * math.sqrt(max(rows, columns))
        if o.adjust_lr_fn == "original":
            factor = math.sqrt(max(1, rows / columns))
        new = unit * s.length - lr * factor * newton_schulz(s.m, QUINTIC)
        s.first = b1 * s.first + (1 - b1) * by_size
        s.second = b2 * s.second + (1 - b2) * by_size**2
        s.size = s.size - lr * (s.first / (1 - b1**self.t)) / (np.sqrt(s.second / (1 - b2**self.t)) + o.eps)
        s.size = s.size - lr * o.weight_decay * s.size
        s.length = np.linalg.norm(new, axis=1, keepdims=True)
        return np.asarray(s.size * new / s.length)


class Dion(Transcription):
    """Ahn et al., arXiv 2504.05295, microsoft/dion, dion_reference.py with qr_method="qr"; `bases` has each first Q."""

    def step(self, grads: dict[str, Array], lr: float, loss: float) -> None:
        for name, s in self.state.items():
            s.q = s.q if hasattr(s, "q") else self.options.bases[name]
        super().step(grads, lr, loss)

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        s.m = s.m + g
        rows, columns = x.shape
        b = s.m.T if rows < columns else s.m
        q = s.q
        for _ in range(o.power_iters):
            p = np.linalg.qr(b @ q)[0]
            q = b.T @ p
        low = p @ q.T
        s.m = s.m - (1 - o.mu) * (low.T if rows < columns else low)
        s.q = q / (np.linalg.norm(q, axis=0) + o.eps)
        u = p @ s.q.T
        return x - lr * o.weight_decay * x - lr * math.sqrt(rows / columns) * (u.T if rows < columns else u)


class Dion2(Transcription):
    """Ahn et al., arXiv 2512.16928, microsoft/dion, dion2.py and nordion2.py, of whole matrices."""

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(m=np.zeros_like(x), v=np.zeros(len(x)))

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        rows, columns = x.shape
        normed = o.algo == "nordion2"
        flipped = rows > columns and not normed
        s.m = s.m + g
        m = s.m.T.copy() if flipped else s.m.copy()
        count = max(1, math.ceil(o.fraction * len(m)))
        chosen = np.argsort(-np.abs(m).sum(axis=1))[:count]
        part = newton_schulz(m[chosen], POLAR_EXPRESS, 1.02)
        m[chosen] *= o.ef_decay
        s.m = m.T if flipped else m
        if normed:
            s.v[chosen] = o.beta2 * s.v[chosen] + (1 - o.beta2) * np.mean(part**2, axis=1)
            even = part / (np.sqrt(s.v[chosen]) + 1e-8)[:, None]
            part = even * np.linalg.norm(part) / np.linalg.norm(even)
        u = np.zeros_like(m)
        u[chosen] = part
        factor = math.sqrt(rows / columns)
        if o.adjust_lr_fn == "match_rms_adamw":
            factor = 0.2 * math.sqrt(max(rows, columns))
        return x - lr * o.weight_decay * x - lr * factor * (u.T if flipped else u)


class SinkGD(Transcription):
    """Scetbon, Ma, Gong and Meeds, arXiv 2502.06742, SR-Sinkhorn, with decoupled weight decay."""

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        rows, columns = g.shape
        for _ in range(o.sinkhorn_iterations):
            g = math.sqrt(columns) * g / np.linalg.norm(g, axis=1, keepdims=True)
            g = math.sqrt(rows) * g / np.linalg.norm(g, axis=0, keepdims=True)
        return np.asarray(x - lr * o.weight_decay * x - lr * g)


class TurboMuon(Transcription):
    """Boissin et al., arXiv 2512.04632, turbo_muon_torch.py, which has the scaling in its first iteration."""

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        s.m = o.momentum * s.m + (1 - o.momentum) * g
        y = (1 - o.momentum) * g + o.momentum * s.m if o.nesterov else s.m
        rows, columns = x.shape
        y = y.T if rows > columns else y
        square = y @ y.T
        root = 1 / np.sqrt(np.abs(square).sum(axis=1))
        y, square = np.diag(root) @ y, np.diag(root) @ square @ np.diag(root)
        for i, (a, b, c) in enumerate(QUINTIC[1:]):
            square = square if i == 0 else y @ y.T
            y = a * y + (b * square + c * square @ square) @ y
        y = y.T if rows > columns else y
        return x - lr * o.weight_decay * x - lr * math.sqrt(max(1, rows / columns)) * y


class SpectralSphere(Transcription):
    """Xie et al., arXiv 2601.08393, algorithm 1, sso.py; the multiplier by bisection, or 0."""

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        s.m = o.momentum * s.m + (1 - o.momentum) * g
        y = (1 - o.momentum) * g + o.momentum * s.m if o.nesterov else s.m
        y = y / np.linalg.norm(y)
        rows, columns = x.shape
        v = np.ones(columns)
        for _ in range(o.power_iter_steps):
            u = x @ v / np.linalg.norm(x @ v)
            v = x.T @ u / np.linalg.norm(x.T @ u)
        normal, radius = np.outer(u, v), o.radius_scaler * math.sqrt(rows / columns)

        def msign(multiplier: float) -> Array:
            return newton_schulz(y + multiplier * normal, [o.ns_coefficients] * o.ns_steps)

        low, high = (-3.0, 3.0) if o.solver_max_iter else (0.0, 0.0)
        while high - low > 1e-13:
            middle = (low + high) / 2
            low, high = (low, middle) if np.sum(normal * msign(middle)) > 0 else (middle, high)
        return radius / float(u @ x @ v) * x - lr * radius * msign((low + high) / 2)
