"""Methods whose direction is the sign of an average, and whose length comes from elsewhere."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np

from .base import Array, Transcription


class Tiger(Transcription):
    """Su, bojone/tiger, tiger.py: weights step in units of their root mean square, one for each row of an embedding,
    biases and scales by half the learning rate. These do not decay there, and are told by their names."""

    def step(self, grads: dict[str, Array], lr: float, loss: float) -> None:
        o = self.options
        for name, g in grads.items():
            x, s = self.params[name], self.state[name]
            s.m = o.beta * s.m + (1 - o.beta) * g
            size = np.asarray(0.5)
            if x.ndim > 1:
                size = np.sqrt(np.mean(x**2, axis=-1 if "embed" in name else None, keepdims=True))
            if not o.scale_parameter:
                size = np.asarray(1.0)
            self.params[name] = x - lr * size * (np.sign(s.m) + o.weight_decay * x)


class Ano(Transcription):
    """Kegreisz, arXiv 2508.18258, as Adrienkgz/ano-experiments, optimizers/ano.py, with the rate of anolog.py."""

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        beta1, beta2 = o.betas
        if o.logarithmic_schedule:
            beta1 = 1 - 1 / math.log(max(2, self.t))
        s.m = beta1 * s.m + (1 - beta1) * g
        s.v = beta2 * s.v + (1 - beta2) * np.sign(g**2 - s.v) * g**2
        v_hat = s.v / (1 - beta2**self.t)
        x = x * (1 - lr * o.weight_decay)
        return x - lr * np.abs(g) / np.sqrt(v_hat + o.eps) * np.sign(s.m)


class SophiaG(Transcription):
    """Liu et al., arXiv 2305.14342, algorithm 3, as Liuhong99/Sophia, sophia.py, with `rho * bs` where the paper has
    gamma, and the squares of gradients of sampled labels as the estimate."""

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(m=np.zeros_like(x), h=np.zeros_like(x))

    def curvature(self, grads: dict[str, Array]) -> None:
        """Take in gradients of the loss of sampled labels."""
        beta2 = self.options.betas[1]
        for name, g in grads.items():
            self.state[name].h = beta2 * self.state[name].h + (1 - beta2) * g**2

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        beta1 = o.betas[0]
        x = x * (1 - lr * o.weight_decay)
        s.m = beta1 * s.m + (1 - beta1) * g
        return x - lr * np.sign(s.m) * np.minimum(np.abs(s.m) / (o.rho * o.bs * s.h + 1e-15), 1)
