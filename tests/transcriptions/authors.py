"""Methods written from their authors' files or their papers' algorithms, and run beside those files where they run.

GrokAdamW, SRMM and the Emo family step as their authors' files do in double precision; NorMuon too, with the norm's eps
as a least norm, where the file adds it. Of Nero and of the optimistic methods there is the paper's algorithm, or
optax's transforms, and no file that runs here.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from .base import Array, Transcription


class GrokAdamW(Transcription):
    """cognitivecomputations/grokadamw, grokadamw.py, `_update_group`, with neither of its losses known."""

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(first=np.zeros_like(x), second=np.zeros_like(x), grok=np.zeros_like(x))

    def step(self, grads: dict[str, Array], lr: float, loss: float) -> None:
        o = self.options
        self.t += 1
        layer = 0
        for name in self.params:
            if name not in grads:
                continue
            gradient, state = grads[name], self.state[name]
            if o.gradient_clipping > 0:
                coefficient = o.gradient_clipping / (np.linalg.norm(gradient.ravel()) + 1e-6)
                gradient = gradient * min(coefficient, 1.0)
            layer_beta = o.betas[0] * (1 - o.gamma) ** layer
            layer += 1
            state.grok += (1 - o.alpha_init) * (gradient - state.grok)
            amplified = gradient + o.lamb * state.grok
            state.first += (1 - layer_beta) * (amplified - state.first)
            state.second += (1 - o.betas[1]) * (amplified**2 - state.second)
            corrections = [1 - beta**self.t for beta in o.betas]
            size = lr * corrections[1] ** 0.5 / corrections[0]
            x = self.params[name] * (1 - lr * o.weight_decay)
            self.params[name] = x - size * (state.first / (np.sqrt(state.second) + o.eps))


class SRMM(Transcription):
    """HanbaekLyu/SRMM, src/SRMM.py: 1 / (ilr + pr) is the learning rate here, and the memory length is taken as its
    docstring has it, for what the file writes, t + 1 % L, is t + 1."""

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(gradients=np.zeros_like(x), parameters=np.zeros_like(x))

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        age = self.t if o.memory_length is None else self.t % o.memory_length
        weight = 1.0 / (1.0 + age) ** o.beta
        s.gradients = s.gradients + weight * (g - s.gradients)
        s.parameters = s.parameters + weight * (x - s.parameters)
        share = o.proximal * lr  # pr / (ilr + pr)
        centre = s.parameters + share * (x - s.parameters)
        return centre - lr * s.gradients


class Nero(Transcription):
    """Liu et al., arXiv 2102.07227, algorithm 1: weights by neurons, biases one by one; with Adam's correction."""

    def start(self, x: Array) -> SimpleNamespace:
        of_biases = np.mean(np.abs(x))
        return SimpleNamespace(average=0.0, of_biases=of_biases if of_biases > 0 else self.bias_scale)

    # Where biases begin at 0.
    bias_scale = 0.01

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        rows, gradients = x.reshape(len(x) if x.ndim else 1, -1), g.reshape(len(x) if x.ndim else 1, -1)
        weights = x.ndim > 1 and rows.shape[1] > 1
        squares = np.sum(gradients**2, axis=1, keepdims=True) if weights else gradients**2
        s.average = o.beta * s.average + (1 - o.beta) * squares
        typical = np.sqrt(s.average / (1 - o.beta**self.t)) + o.eps
        scale = np.linalg.norm(rows, axis=1, keepdims=True) if weights else s.of_biases
        rows = rows - lr * scale / typical * gradients
        if weights and o.constraints:
            rows = rows - rows.mean(axis=1, keepdims=True)
            rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return np.asarray(rows.reshape(x.shape))


class NorMuon(Transcription):
    """zichongli5/NorMuon, normuon.py, with Newton-Schulz in double precision; "match_rms_adamw" is the step size of Li
    et al., arXiv 2510.05491, algorithm 1, in place of the file's factors."""

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(momentum=np.zeros_like(x), rows=np.zeros((len(x), 1)))

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        s.momentum = s.momentum + (1 - o.momentum) * (g - s.momentum)
        whole = orthogonalized(g + o.momentum * (s.momentum - g), 1e-7)
        s.rows = s.rows + (1 - o.betas[1]) * (np.mean(whole**2, axis=1, keepdims=True) - s.rows)
        even = whole / (np.sqrt(s.rows) + 1e-10)
        if o.adjust_lr_fn == "match_rms_adamw":
            size = 0.2 * math.sqrt(x.size) / np.linalg.norm(even)
        else:
            size = np.linalg.norm(whole) / (np.linalg.norm(even) + 1e-10) * max(1.0, x.shape[0] / x.shape[1]) ** 0.5
        return x * (1 - lr * o.weight_decay) - lr * size * even


def orthogonalized(x: Array, least: float, iterations: int = 5) -> Array:
    """Newton-Schulz with the coefficients of the file."""
    wide = x.T if x.shape[0] > x.shape[1] else x
    wide = wide / max(float(np.linalg.norm(wide)), least)
    for _ in range(iterations):
        gram = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return wide.T if x.shape[0] > x.shape[1] else wide


class EmoNavi(Transcription):
    """muooon/EmoNavi, optimizer/emonavi.py 3.6.1, where the scalar is that of the long average."""

    averages: dict[str, float] | None = None

    def step(self, grads: dict[str, Array], lr: float, loss: float) -> None:
        if self.averages is None:
            self.averages = {"short": loss, "long": loss}
        for name, rate in (("short", 0.3), ("long", 0.01)):
            self.averages[name] = rate * loss + (1 - rate) * self.averages[name]
        short, long = self.averages["short"], self.averages["long"]
        self.scalar = math.tanh((long - short) / max(long, 1e-5))
        super().step(grads, lr, loss)

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        size = abs(self.scalar)
        if o.use_shadow:
            shadow = vars(s).setdefault("shadow", x.copy())
            if size > 0.625:
                x = size * x + (1 - size) * shadow
            else:
                s.shadow = shadow + 0.1 * (1 - size) * (x - shadow)
        trust = math.copysign(1 - size, self.scalar)
        drive = 1.0
        if 0.25 < size < 0.5:
            drive = 8 * abs(trust) * (1 + 0.1 * trust)
        elif size > 0.75:
            drive = 1 - size
        return x - lr * o.weight_decay * x - lr * drive * self.direction(g, s)

    def direction(self, g: Array, s: SimpleNamespace) -> Any:
        beta1, beta2 = self.options.betas
        s.m = s.m * beta1 + g * (1 - beta1)
        s.v = s.v * beta2 + g * g * (1 - beta2)
        return s.m / (np.sqrt(s.v) + self.options.eps)


class EmoLynx(EmoNavi):
    """The same, optimizer/emolynx.py."""

    def direction(self, g: Array, s: SimpleNamespace) -> Any:
        beta1, beta2 = self.options.betas
        blended = g * (1 - beta1) + s.m * beta1
        s.m = s.m * beta2 + g * (1 - beta2)
        return np.sign(blended)


class EmoFact(EmoNavi):
    """The same, optimizer/emofact.py, where what the gradient is divided by does not change its sign."""

    def direction(self, g: Array, s: SimpleNamespace) -> Any:
        return np.sign(g)


class OptimisticGradientDescent(Transcription):
    """optax 0.2.8, `scale_by_optimistic_gradient`, and a decoupled weight decay behind it."""

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        u = self.before(g, s)
        last = u if self.t == 1 else s.last
        s.last = u
        return x - lr * ((o.alpha + o.beta) * u - o.beta * last + o.weight_decay * x)

    def before(self, g: Array, s: SimpleNamespace) -> Any:
        """What it is made of."""
        return g


class OptimisticAdam(OptimisticGradientDescent):
    """optax 0.2.8, `optimistic_adam_v2`: the same after `scale_by_adam`."""

    def before(self, g: Array, s: SimpleNamespace) -> Any:
        o, t = self.options, self.t
        beta1, beta2 = o.betas
        s.m = beta1 * s.m + (1 - beta1) * g
        s.v = beta2 * s.v + (1 - beta2) * g**2
        if o.nesterov:
            m_hat = beta1 * s.m / (1 - beta1 ** (t + 1)) + (1 - beta1) * g / (1 - beta1**t)
        else:
            m_hat = s.m / (1 - beta1**t)
        return m_hat / (np.sqrt(s.v / (1 - beta2**t)) + o.eps)
