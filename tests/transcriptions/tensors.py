"""Methods that look at a tensor as a whole: at its norm, or at the angle between its gradient and its momentum."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np

from .base import Array, Transcription


class Aida(Transcription):
    """Zhang et al., arXiv 2203.13273, as guoqiang-zhang-x/Aida-Optimizer, optimizers/Aida.py."""

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        beta1, beta2 = o.betas
        g = g + o.weight_decay * x
        s.m = beta1 * s.m + (1 - beta1) * g
        first, second = g, s.m
        for _ in range(o.K):
            product = np.sum(first * second)
            first, second = (
                product / (np.sum(second**2) + o.xi) * second,
                product / (np.sum(first**2) + o.xi) * first,
            )
        s.v = beta2 * s.v + (1 - beta2) * (second - first) ** 2 + o.eps
        return x - lr * s.m / (1 - beta1**self.t) / np.sqrt(s.v / (1 - beta2**self.t))


class TAM(Transcription):
    """Malviya et al., arXiv 2412.18790: the equations of TAM, which junaidaliop/zij, docs/math/tam.md, prints."""

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(m=np.zeros_like(x), v=np.zeros_like(x), s=0.0)

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        x, g = self.decayed(x, g, lr)
        s.m = self.options.momentum * s.m + self.damped(g, s)
        return x - lr * s.m

    def damped(self, g: Array, s: SimpleNamespace) -> Array:
        """The gradient by how well it agrees with the momentum of the step before."""
        o = self.options
        norms = math.sqrt(np.sum(s.m**2)) * math.sqrt(np.sum(g**2))
        agreement = float(np.sum(s.m * g)) / norms if norms > 0 else 0.0
        s.s = o.decay_rate * s.s + (1 - o.decay_rate) * agreement
        return (o.eps + (1 + s.s) / 2) * g


class AdaTAM(TAM):
    """The same with the root of a second moment below. That nothing is corrected is what pytorch_optimizer 4.1 has: the
    only witness."""

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        beta1, beta2 = o.betas
        x, g = self.decayed(x, g, lr)
        s.m = beta1 * s.m + self.damped(g, s)
        s.v = beta2 * s.v + (1 - beta2) * g**2
        return x - lr * s.m / (np.sqrt(s.v) + o.eps)


class Kourkoutas(Transcription):
    """Kassinos, arXiv 2508.12996, as sck-at-ucy/kbeta, optim/kbeta_softmax.py, with a tensor as a layer."""

    def start(self, x: Array) -> SimpleNamespace:
        zeros = np.zeros_like(x)
        return SimpleNamespace(m=zeros, v=zeros, largest=zeros, average_norm=0.0, product=1.0)

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        norm = math.sqrt(np.sum(g**2))
        s.average_norm = o.alpha * s.average_norm + (1 - o.alpha) * norm
        if self.t <= o.warmup_steps:
            beta2 = (o.beta2_min + o.beta2_max) / 2
        else:
            raw = norm / (s.average_norm + o.tiny_spike)
            beta2 = o.beta2_max - (o.beta2_max - o.beta2_min) * raw / (1 + raw)
        s.product = s.product * beta2
        s.m = o.beta1 * s.m + (1 - o.beta1) * g
        s.v = beta2 * s.v + (1 - beta2) * g**2
        v = s.v
        if o.max_decay is not None or o.max_ratio is not None:
            kept = 1.0 if o.max_decay is None else o.max_decay
            v = s.largest = np.maximum(kept * s.largest, s.v)
        tiny = o.tiny_denom * max(float(np.mean(np.abs(x))), 1.0) if o.adaptive_tiny else 0.0
        correction1 = correction2 = 1.0
        if o.bias_correction != "none":
            correction1 = 1 - o.beta1**self.t
            correction2 = 1 - (s.product if o.bias_correction == "exact" else o.beta2_max**self.t)
        direction = s.m / correction1 / (np.sqrt(v / correction2) + tiny + o.eps)
        if o.max_ratio is not None:
            direction = np.clip(direction, -o.max_ratio, o.max_ratio)
        return x - lr * o.weight_decay * x - lr * direction
