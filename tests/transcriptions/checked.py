"""Methods whose transcription is by the writer of the rule, checked against somebody else's code instead.

GrokAdamW and SRMM were run beside their authors' files, from which they differ by rounding; Nero beside
pytorch_optimizer's from balanced weights (tests/optimizers/test_nero.py).
"""

from __future__ import annotations

import math
from types import SimpleNamespace

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
