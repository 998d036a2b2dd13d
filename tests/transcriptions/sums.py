"""Methods that accumulate over all steps, or that derive their scale from few numbers of the last one."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np

from .base import Array, Transcription


class MirrorMADGRAD(Transcription):
    """Defazio and Jelassi, arXiv 2101.11075, as facebookresearch/madgrad, mirror_madgrad.py, which has mirror descent
    in place of the paper's dual averaging."""

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(z=np.array(x), squares=np.zeros_like(x))

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        k = self.t - 1
        rate = lr + o.eps if lr != 0 else 0.0
        if o.decouple_decay:
            s.z = s.z - rate * o.weight_decay * s.z
        else:
            g = g + o.weight_decay * x
        s.squares = math.sqrt(k / (k + 1)) * s.squares + g**2
        scale = np.cbrt(s.squares) + o.eps
        scale = np.where(scale == 0, np.inf, scale)
        s.z = s.z - rate * (k + 1) ** (1 / 3) * g / scale
        return o.momentum * x + (1 - o.momentum) * s.z


class Kate(Transcription):
    """Choudhury et al., arXiv 2403.02648, as nazya/KATE, codes/optimizers.py; `delta` is the paper's eta."""

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        x, g = self.decayed(x, g, lr)
        s.v = s.v + g**2
        s.m = s.m + o.delta * g**2 + g**2 / (s.v + o.eps)
        return x - lr * np.sqrt(s.m) * g / (s.v + o.eps)


class A2Grad(Transcription):
    """Deng, Cheng and Lan, arXiv 1810.00553, algorithms 4, 5 and 6 in 7, with the mean gradient of section 5, which is
    per coordinate, a factor `lr` of the step size, and an L2 penalty."""

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(mean=np.zeros_like(x), x=np.array(x), v=np.zeros_like(x), average=None, alpha=1.0)

    def update(self, y: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        k = self.t - 1
        g = g + o.weight_decay * y
        s.mean = (k * s.mean + g) / (k + 1)
        deviation = (g - s.mean) ** 2
        if o.variant == "uni":
            s.v = s.v + deviation
            h = np.sqrt(s.v)
        elif o.variant == "inc":
            s.v = (k / (k + 1)) ** 2 * s.v + deviation
            h = np.sqrt(s.v)
        else:
            s.average = deviation if k == 0 else o.rho * s.average + (1 - o.rho) * deviation
            s.v = np.maximum(s.average, s.v)
            h = np.sqrt((k + 1) * s.v)
        move = lr * g / (2 * o.lips / (k + 1) + o.beta * h)
        alpha = 2 / (k + 3)
        s.x = s.x - move
        y = (1 - alpha) * y + alpha * s.x - (1 - alpha) * s.alpha * move
        s.alpha = alpha
        return y


class AdaSmooth(Transcription):
    """Lu, arXiv 2204.00825, equations of the effective ratio and of the step, with all steps so far as the window."""

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(before=np.array(x), moved=np.zeros_like(x), path=np.zeros_like(x), v=np.zeros_like(x))

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        fast, slow = o.betas
        s.moved = s.moved + (x - s.before)
        s.path = s.path + np.abs(x - s.before)
        s.before = x
        x, g = self.decayed(x, g, lr)
        c = (slow - fast) * np.abs(s.moved) / (s.path + o.eps) + 1 - slow
        s.v = c**2 * g**2 + (1 - c**2) * s.v
        return x - lr * g / np.sqrt(s.v + o.eps)


class BCOS(Transcription):
    """Jiang and Xiao, arXiv 2507.08963, as facebookresearch/bcos, bcos.py."""

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(m=None, v=None)

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        beta = o.beta
        if self.t == 1:  # before the decay goes into the gradient
            s.m, s.v = g, g**2
        if o.decouple_wd:
            x = x * (1 - lr * o.weight_decay)
        else:
            g = g + o.weight_decay * x
        before = s.m
        s.m = beta * s.m + (1 - beta) * g
        d = g if o.mode == "g" else s.m
        if o.mode != "c":
            beta2 = beta if o.beta2 is None else o.beta2
            v = s.v = beta2 * s.v + (1 - beta2) * d**2
        elif o.simple_cond:
            beta2 = 1 - (1 - beta) ** 2 if o.beta2 is None else o.beta2
            v = beta2 * before**2 + (1 - beta2) * g**2
        else:
            v = (
                (3 * beta**2 - 2 * beta**3) * before**2
                + (1 - beta) ** 2 * g**2
                + 2 * beta * (1 - beta) ** 2 * before * g
            )
        return x - lr * d / (np.sqrt(v) + o.eps)
