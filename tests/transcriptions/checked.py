"""Methods whose transcription is by the writer of the rule, checked against somebody else's code instead.

GrokAdamW and SRMM were run beside their authors' files, from which they differ by rounding; Nero beside
pytorch_optimizer's from balanced weights (tests/optimizers/test_nero.py). The Emo family's files are written out with
`use_shadow`, without which pytorch_optimizer's are followed. The optimistic methods are optax's transforms. NorMuon was
run beside its authors' file, with the eps of the norm where torch.optim.Muon has it: 9e-11.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from .base import Array, Transcription


class GrokAdamW(Transcription):
    """Hartford, cognitivecomputations/grokadamw, grokadamw.py, while the signal is 0."""

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(slow=0.0, m=0.0, v=0.0)

    def step(self, grads: dict[str, Array], lr: float, loss: float) -> None:
        o = self.options
        beta1, beta2 = o.betas
        self.t += 1
        for i, (name, x) in enumerate(self.params.items()):
            s, g = self.state[name], grads[name]
            if o.gradient_clipping > 0:
                g = g * min(1.0, o.gradient_clipping / (math.sqrt(float(np.sum(g**2))) + 1e-6))
            s.slow = o.alpha_init * s.slow + (1 - o.alpha_init) * g
            g = g + o.lamb * s.slow
            b = beta1 * (1 - o.gamma) ** i
            s.m = b * s.m + (1 - b) * g
            s.v = beta2 * s.v + (1 - beta2) * g**2
            size = lr * math.sqrt(1 - beta2**self.t) / (1 - beta1**self.t)
            self.params[name] = x * (1 - lr * o.weight_decay) - size * s.m / (np.sqrt(s.v) + o.eps)


class SRMM(Transcription):
    """Lyu, HanbaekLyu/SRMM, src/SRMM.py, with lr = 1 / (ilr + pr) and the memory that its documentation speaks of."""

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(grad=0.0, param=0.0)

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        steps = self.t if o.memory_length is None else self.t % o.memory_length
        w = (steps + 1) ** -o.beta
        s.grad = (1 - w) * s.grad + w * g
        s.param = (1 - w) * s.param + w * x
        held = o.proximal * lr
        return (1 - held) * s.param + held * x - lr * s.grad


class Nero(Transcription):
    """Liu et al., arXiv 2102.07227, algorithm 1, neuron by neuron."""

    def start(self, x: Array) -> SimpleNamespace:
        scale = float(np.mean(np.abs(x))) or self.bias_scale
        return SimpleNamespace(scale=scale, squares=[0.0] * (len(x) if x.ndim > 1 else 1))

    bias_scale = 0.01

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        beta, fade = o.beta, 1 - o.beta**self.t
        if x.ndim < 2 or x.size == len(x):
            s.squares[0] = beta * s.squares[0] + (1 - beta) * g**2
            return x - lr * s.scale / (np.sqrt(s.squares[0] / fade) + o.eps) * g
        neurons = []
        for n, (w, gw) in enumerate(zip(x, g, strict=True)):
            s.squares[n] = beta * s.squares[n] + (1 - beta) * float(np.sum(gw**2))
            w = w - lr * math.sqrt(float(np.sum(w**2))) / (math.sqrt(s.squares[n] / fade) + o.eps) * gw
            if o.constraints:
                w = w - np.mean(w)
                w = w / math.sqrt(float(np.sum(w**2)))
            neurons.append(w)
        return np.stack(neurons)


class EmoNavi(Transcription):
    """muooon/EmoNavi, emonavi.py 3.6, with the long average as the divisor of the scalar."""

    def __init__(self, params: dict[str, Array], **options: Any) -> None:
        super().__init__(params, **options)
        self.short, self.long, self.scalar = 0.0, 0.0, 0.0

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(m=np.zeros_like(x), v=np.zeros_like(x), shadow=None)

    def step(self, grads: dict[str, Array], lr: float, loss: float) -> None:
        self.short = 0.3 * loss + 0.7 * (self.short if self.t else loss)
        self.long = 0.01 * loss + 0.99 * (self.long if self.t else loss)
        self.scalar = math.tanh((self.long - self.short) / max(self.long, 1e-5))
        super().step(grads, lr, loss)

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        size, trust = abs(self.scalar), math.copysign(1 - abs(self.scalar), self.scalar)
        if self.options.use_shadow:
            s.shadow = x if s.shadow is None else s.shadow
            ratio = 1 - size if size > 0.625 else 0.0
            if ratio > 0:
                x = (1 - ratio) * x + abs(trust) * s.shadow
            else:
                s.shadow = s.shadow + 0.1 * abs(trust) * (x - s.shadow)
        drive = 8 * abs(trust) * (1 + 0.1 * trust) if 0.25 < size < 0.5 else 1 - size if size > 0.75 else 1.0
        return x - lr * self.options.weight_decay * x - lr * drive * self.direction(g, s)

    def direction(self, g: Array, s: SimpleNamespace) -> Array:
        """What is stepped along."""
        beta1, beta2 = self.options.betas
        s.m = beta1 * s.m + (1 - beta1) * g
        s.v = beta2 * s.v + (1 - beta2) * g**2
        return np.asarray(s.m / (np.sqrt(s.v) + self.options.eps))


class EmoLynx(EmoNavi):
    """muooon/EmoNavi, emolynx.py."""

    def direction(self, g: Array, s: SimpleNamespace) -> Array:
        beta1, beta2 = self.options.betas
        blended = beta1 * s.m + (1 - beta1) * g
        s.m = beta2 * s.m + (1 - beta2) * g
        return np.asarray(np.sign(blended))


class EmoFact(EmoNavi):
    """muooon/EmoNavi, emofact.py: the sign of the gradient over what is positive."""

    def direction(self, g: Array, s: SimpleNamespace) -> Array:
        return np.asarray(np.sign(g))


class OptimisticGradientDescent(Transcription):
    """optax, scale_by_optimistic_gradient, with decoupled weight decay."""

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(m=np.zeros_like(x), v=np.zeros_like(x), previous=None)

    def scaled(self, g: Array, s: SimpleNamespace) -> Array:
        """What comes before that in the chain."""
        return g

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        u = self.scaled(g, s)
        previous = u if s.previous is None else s.previous
        s.previous = u
        return x - lr * ((o.alpha + o.beta) * u - o.beta * previous) - lr * o.weight_decay * x


class OptimisticAdam(OptimisticGradientDescent):
    """optax, optimistic_adam_v2: scale_by_adam before it."""

    def scaled(self, g: Array, s: SimpleNamespace) -> Array:
        o = self.options
        b1, b2 = o.betas
        s.m = (1 - b1) * g + b1 * s.m
        s.v = (1 - b2) * g**2 + b2 * s.v
        if o.nesterov:
            mu_hat = b1 * (s.m / (1 - b1 ** (self.t + 1))) + (1 - b1) * (g / (1 - b1**self.t))
        else:
            mu_hat = s.m / (1 - b1**self.t)
        nu_hat = s.v / (1 - b2**self.t)
        return np.asarray(mu_hat / (np.sqrt(nu_hat) + o.eps))


class NorMuon(Transcription):
    """Li et al., arXiv 2510.05491, algorithm 1 ("match_rms_adamw"), and zichongli5/NorMuon, normuon.py (else)."""

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(m=np.zeros_like(x), v=np.zeros(len(x)))

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        rows, columns = x.shape
        s.m = o.momentum * s.m + (1 - o.momentum) * g
        y = (1 - o.momentum) * g + o.momentum * s.m
        y = y / np.linalg.norm(y)
        y = y if rows <= columns else y.T
        for _ in range(5):
            square = y @ y.T
            y = 3.4445 * y + (-4.7750 * square + 2.0315 * square @ square) @ y
        y = y if rows <= columns else y.T
        s.v = o.betas[1] * s.v + (1 - o.betas[1]) * np.mean(y**2, axis=1)
        even = y / (np.sqrt(s.v) + 1e-10)[:, None]
        size = float(np.linalg.norm(y)) * math.sqrt(max(1, rows / columns))
        if o.adjust_lr_fn == "match_rms_adamw":
            size = 0.2 * math.sqrt(rows * columns)
        return x - lr * o.weight_decay * x - lr * size * even / np.linalg.norm(even)
