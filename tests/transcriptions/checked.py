"""Methods whose transcription is by the writer of the rule.

ACProp and COCOB were run beside their authors' files, from which they differ by rounding (6e-15 and 1e-14 of the
movement); MARS-M too, with the file's Newton-Schulz in double precision and nothing added to its norm (8e-14). DoWG is
optax's transform, not run.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np

from .authors import orthogonalized
from .base import Array, Transcription


class ACProp(Transcription):
    """Zhuang et al., arXiv 2110.05454, as juntang-zhuang/ACProp-Optimizer, optimizers/ACProp.py."""

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(m=np.zeros_like(x), v=np.zeros_like(x), largest=np.zeros_like(x))

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o, t = self.options, self.t
        beta1, beta2 = o.betas
        x, g = self.decayed(x, g, lr)
        s.m = beta1 * s.m + (1 - beta1) * g
        m_hat = s.m / (1 - beta1**t)
        if t > 1 or o.amsgrad:
            s.v = s.v + o.eps
        s.largest = np.maximum(s.largest, s.v)
        direction = m_hat if o.momentum_update else g
        if t == 1:
            x = x - lr * m_hat
        elif not o.rectify:
            divisor = np.sqrt(s.largest if o.amsgrad else s.v) / math.sqrt(1 - beta2 ** (t - 1)) + o.eps
            x = x - lr * direction / divisor
        else:
            longest = 2 / (1 - beta2) - 1
            length = longest - 2 * t * beta2**t / (1 - beta2**t)
            if length >= 5:
                ratio = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
                x = x - lr * math.sqrt((1 - beta2**t) * ratio) * direction / (np.sqrt(s.v) + o.eps)
            elif o.degenerated_to_sgd:
                x = x - lr * m_hat
        s.v = beta2 * s.v + (1 - beta2) * (g - s.m) ** 2
        return x


class DoWG(Transcription):
    """Khaled, Mishchenko and Jin, arXiv 2305.16284, algorithm 1, with what optax 0.2.8 has added to its divisor."""

    def step(self, grads: dict[str, Array], lr: float, loss: float) -> None:
        o = self.options
        if self.t == 0:
            self.origin = dict(self.params)
            self.radius_sq = o.init_estim_sq_dist or o.eps
            self.v = 0.0
        self.t += 1
        grads = {name: g + o.weight_decay * self.params[name] for name, g in grads.items()}
        away = sum(float(np.sum((x - self.origin[name]) ** 2)) for name, x in self.params.items())
        self.radius_sq = max(self.radius_sq, away)
        self.v += self.radius_sq * sum(float(np.sum(g**2)) for g in grads.values())
        for name, g in grads.items():
            self.params[name] = self.params[name] - lr * self.radius_sq / (math.sqrt(self.v) + o.eps) * g


class MarsM(Transcription):
    """AGI-Arena/MARS, MARS_M/optimizers/mars_m.py, in its approximate form, with Newton-Schulz in double
    precision, whose norm is kept above eps where the file adds 1e-7."""

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(before=np.zeros_like(x), m=np.zeros_like(x))

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        c = g + o.gamma * o.momentum / (1 - o.momentum) * (g - s.before)
        c = c / max(1.0, float(np.linalg.norm(c)))
        s.before, s.m = g.copy(), o.momentum * s.m + (1 - o.momentum) * c
        flat = s.m.reshape(len(x), -1)
        direction = orthogonalized(flat, o.eps, o.ns_steps).reshape(x.shape)
        return x * (1 - lr * o.weight_decay) - 0.2 * lr * math.sqrt(max(flat.shape)) * direction


class BSAM(Transcription):
    """team-approx-bayes/bayesian-sam, optim.py, the step that follows the two gradients, which are one here."""

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(gm=np.zeros_like(x), s=None)

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        s.s = np.full_like(x, o.s_init) if s.s is None else s.s
        gs = np.sqrt(s.s * g**2)
        s.gm = o.betas[0] * s.gm + (1 - o.betas[0]) * (g + o.weight_decay * x)
        x = x - lr * s.gm / s.s
        s.s = o.betas[1] * s.s + (1 - o.betas[1]) * (gs + o.damping + o.weight_decay)
        return x


class COCOB(Transcription):
    """Orabona and Tommasi, arXiv 1705.07795, algorithm 2 (COCOB-Backprop), as bremen79/parameterfree, cocob.py, with an
    L2 penalty and a factor `lr` of the gradient."""

    def start(self, x: Array) -> SimpleNamespace:
        zeros = np.zeros_like(x)
        return SimpleNamespace(x0=np.array(x), theta=zeros, total=zeros, reward=zeros, scale=zeros)

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        c = -lr * (g + o.weight_decay * x)  # the outcome of the coin
        s.scale = np.maximum(np.maximum(s.scale, np.abs(c)), o.eps)
        s.total = s.total + np.abs(c)
        s.reward = np.maximum(s.reward + (x - s.x0) * c, 0)
        s.theta = s.theta + c
        fraction = s.theta / (s.scale * np.maximum(s.total + s.scale, o.alpha * s.scale))
        return s.x0 + fraction * (s.scale + s.reward)


class DeMo(Transcription):
    """Peng, Quesnelle and Kingma, arXiv 2411.19870, demo.py of bloc97/DeMo, beside which its rule was run."""

    def basis(self, size: int) -> Array:
        rows = [[math.cos(math.pi * (n + 0.5) * k / size) for k in range(size)] for n in range(size)]
        found = np.array(rows) * math.sqrt(2 / size)
        found[:, 0] = math.sqrt(1 / size)
        found[np.abs(found) < 1e-12] = 0.0
        return found

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        flat = x.reshape(x.shape[0], -1) if x.ndim > 1 else x.reshape(1, -1)
        rows, columns = flat.shape
        h, w = (max(d for d in range(1, o.compression_chunk + 1) if n % d == 0) for n in flat.shape)
        s.m = o.compression_decay * s.m + lr * g.reshape(flat.shape) if np.any(s.m) else lr * g.reshape(flat.shape)
        sent = np.zeros_like(flat)
        for i in range(0, rows, h):
            for j in range(0, columns, w):
                f = self.basis(h).T @ s.m[i : i + h, j : j + w] @ self.basis(w)
                least = np.sort(np.abs(f), axis=None)[::-1][: o.compression_topk][-1]
                kept = np.where(np.abs(f) >= least, f, 0.0)
                sent[i : i + h, j : j + w] = self.basis(h) @ kept @ self.basis(w).T
        s.m = s.m - sent
        return x - lr * o.weight_decay * x - lr * np.sign(sent).reshape(x.shape)
