"""Methods in which all tensors decide one number: a step size, or when to change from one method to another."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from .base import Array, Transcription


class SWATS(Transcription):
    """Keskar and Socher, arXiv 1712.07628, algorithm 1, with the options that pytorch_optimizer has beside it. What a
    schedule makes of the learning rate after the switch, it makes of the one that was found."""

    def __init__(self, params: dict[str, Array], **options: Any) -> None:
        super().__init__(params, **options)
        self.average, self.found, self.lr_then = 0.0, 0.0, 0.0

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(m=np.zeros_like(x), v=np.zeros_like(x), largest=np.zeros_like(x))

    def step(self, grads: dict[str, Array], lr: float, loss: float) -> None:
        o = self.options
        beta1, beta2 = o.betas
        self.t += 1
        for name, g in grads.items():
            self.params[name], grads[name] = self.decayed(self.params[name], g, lr)
        if self.lr_then:
            for name, g in grads.items():
                s = self.state[name]
                s.m = beta1 * s.m + g
                ahead = g + beta1 * s.m if o.nesterov else s.m
                self.params[name] = self.params[name] - (1 - beta1) * self.found * lr / self.lr_then * ahead
            return
        squares, product = 0.0, 0.0
        for name, g in grads.items():
            s = self.state[name]
            s.m = beta1 * s.m + (1 - beta1) * g
            s.v = beta2 * s.v + (1 - beta2) * g**2
            s.largest = np.maximum(s.largest, s.v) if o.amsgrad else s.v
            p = -lr * math.sqrt(1 - beta2**self.t) / (1 - beta1**self.t) * s.m / (np.sqrt(s.largest) + o.eps)
            self.params[name] = self.params[name] + p
            squares += float(np.sum(p**2))
            product += float(np.sum(p * g))
        if product != 0:
            gamma = squares / -product
            self.average = beta2 * self.average + (1 - beta2) * gamma
            corrected = self.average / (1 - beta2**self.t)
            if self.t > 1 and abs(corrected - gamma) < o.eps:
                self.found, self.lr_then = corrected, lr
                for s in self.state.values():
                    s.m = np.zeros_like(s.m)


class Momo(Transcription):
    """Schaipp et al., arXiv 2305.07583, as fabian-sp/MoMo, momo/momo.py."""

    def __init__(self, params: dict[str, Array], **options: Any) -> None:
        super().__init__(params, **options)
        self.loss, self.product, self.bound = 0.0, 0.0, self.options.lb

    def step(self, grads: dict[str, Array], lr: float, loss: float) -> None:
        o = self.options
        self.t += 1
        product = sum(float(np.sum(g * self.params[name])) for name, g in grads.items())
        rho = 1 - o.beta**self.t if o.bias_correction else 1.0
        if self.t == 1 and not o.bias_correction:
            self.loss, self.product = loss, product
            for name, g in grads.items():
                self.state[name].m = g
        self.loss = o.beta * self.loss + (1 - o.beta) * loss
        self.product = o.beta * self.product + (1 - o.beta) * product
        for name, g in grads.items():
            self.state[name].m = o.beta * self.state[name].m + (1 - o.beta) * g
        tau = self.size(lr, rho, {name: np.ones_like(g) for name, g in grads.items()})
        for name in grads:
            self.params[name] = (self.params[name] - tau * self.state[name].m) / (1 + lr * o.weight_decay)

    def size(self, lr: float, rho: float, scales: dict[str, Array]) -> float:
        """The step size, by the model of the loss that truncates at a lower bound, which may be estimated."""
        o = self.options
        ahead = sum(float(np.sum(self.state[name].m * self.params[name])) for name in scales)
        norm = sum(float(np.sum(self.state[name].m ** 2 / scale)) for name, scale in scales.items())
        grown = 1 + lr * o.weight_decay
        if o.use_fstar and grown * self.loss + ahead - grown * self.product < grown * rho * self.bound:
            self.bound = (grown * self.loss + ahead - grown * self.product) / (2 * grown * rho)
            self.bound = max(self.bound, o.lb)
        above = grown * (self.loss - rho * self.bound) + ahead - grown * self.product
        tau = min(lr / rho, max(above, 0.0) / norm)
        if o.use_fstar:
            self.bound = max((self.loss + ahead - self.product - tau * norm / 2) / rho, o.lb)
        return tau


class MomoAdam(Momo):
    """The same with Adam's scales, as momo/momo_adam.py there."""

    def step(self, grads: dict[str, Array], lr: float, loss: float) -> None:
        o = self.options
        beta1, beta2 = o.betas
        self.t += 1
        product = sum(float(np.sum(g * self.params[name])) for name, g in grads.items())
        self.loss = beta1 * self.loss + (1 - beta1) * loss
        self.product = beta1 * self.product + (1 - beta1) * product
        scales = {}
        for name, g in grads.items():
            s: SimpleNamespace = self.state[name]
            s.m = beta1 * s.m + (1 - beta1) * g
            s.v = beta2 * s.v + (1 - beta2) * g**2
            scales[name] = np.sqrt(s.v / (1 - beta2**self.t)) + o.eps
        tau = self.size(lr, 1 - beta1**self.t, scales)
        for name, scale in scales.items():
            x, move = self.params[name], tau * self.state[name].m / scale
            if o.divide:
                self.params[name] = (x - move) / (1 + lr * o.weight_decay)
            else:
                self.params[name] = x * (1 - lr * o.weight_decay) - move
