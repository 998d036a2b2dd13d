"""Adam and what was made of it: two averages per parameter, and another way to divide them."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np

from .base import Array, Transcription


class AdamAtan2(Transcription):
    """Everett et al., arXiv 2407.05872, with factors and decay of lucidrains/adam-atan2-pytorch, adam_atan2.py."""

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(m=np.zeros_like(x), v=np.zeros_like(x), begin=None)

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        beta1, beta2 = o.betas
        s.m = beta1 * s.m + (1 - beta1) * g
        s.v = beta2 * s.v + (1 - beta2) * g**2
        m_hat = s.m / (1 - beta1**self.t)
        v_hat = s.v / (1 - beta2**self.t)
        rate = lr / o.max_lr if o.decouple_lr else lr
        s.begin = x if s.begin is None else s.begin
        x = (1 - rate * o.regen_reg_rate) * x + rate * o.regen_reg_rate * s.begin
        direction = np.arctan2(m_hat, o.b * np.sqrt(v_hat))
        share = np.where(direction * g > 0, 1.0, o.cautious_factor)
        direction = direction * share / max(np.mean(share), 1e-5)
        return (1 - rate * o.weight_decay) * x - lr * o.a * direction


class SimplifiedAdEMAMix(Transcription):
    """Morwani et al., arXiv 2502.02431, as DepenM/Simplified-AdEMAMix, simplified_AdEMAMix.py."""

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(m=np.zeros_like(x), v=np.zeros_like(x), num_sum=0.0)

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        beta1, beta2 = o.betas
        if o.beta1_warmup is not None and self.t < o.beta1_warmup:
            beta1 = self.between(o.min_beta1, beta1, self.t / o.beta1_warmup)
        s.m = beta1 * s.m + g
        s.v = beta2 * s.v + (1 - beta2) * g**2
        s.num_sum = beta1 * s.num_sum + 1
        den_sum = 1 - beta2**self.t
        direction = (o.alpha * g + s.m) / (np.sqrt(s.v) + o.eps * math.sqrt(den_sum))
        if o.bias_correction1:
            direction = direction / s.num_sum
        if o.bias_correction2:
            direction = direction * math.sqrt(den_sum)
        return x - lr * direction - (lr / o.max_lr if o.decouple_lr else lr) * o.weight_decay * x

    @staticmethod
    def between(first: float, last: float, share: float) -> float:
        """The rate whose half-life lies between those of two rates; 1e-8 keeps the logarithm finite."""

        def half_life(beta: float) -> float:
            return math.log(0.5) / math.log(beta + 1e-8) - 1

        return 0.5 ** (1 / ((1 - share) * half_life(first) + share * half_life(last) + 1))


class Padam(Transcription):
    """Chen et al., arXiv 1806.06763, as uclaml/Padam, Padam.py: with Adam's step size and an L2 penalty."""

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(m=np.zeros_like(x), v=np.zeros_like(x), largest=np.zeros_like(x))

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        beta1, beta2 = o.betas
        g = g + o.weight_decay * x
        s.m = beta1 * s.m + (1 - beta1) * g
        s.v = beta2 * s.v + (1 - beta2) * g**2
        s.largest = np.maximum(s.largest, s.v)
        scale = (np.sqrt(s.largest if o.amsgrad else s.v) + o.eps) ** (2 * o.partial)
        return x - lr * math.sqrt(1 - beta2**self.t) / (1 - beta1**self.t) * s.m / scale


class AdaPNM(Transcription):
    """Xie et al., arXiv 2103.17182, as zeke-xie/Positive-Negative-Momentum, pnm_optim/adapnm.py."""

    def start(self, x: Array) -> SimpleNamespace:
        # Two momenta; one of odd steps and one of even steps.
        return SimpleNamespace(m=[np.zeros_like(x), np.zeros_like(x)], v=np.zeros_like(x), largest=np.zeros_like(x))

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        beta1, beta2, beta3 = o.betas
        if o.decoupled:
            x = x * (1 - lr * o.weight_decay)
        else:
            g = g + o.weight_decay * x
        now, before = self.t % 2, 1 - self.t % 2
        s.m[now] = beta1**2 * s.m[now] + (1 - beta1**2) * g
        s.v = beta2 * s.v + (1 - beta2) * g**2
        s.largest = np.maximum(s.largest, s.v)
        v_hat = (s.largest if o.amsgrad else s.v) / (1 - beta2**self.t)
        m = ((1 + beta3) * s.m[now] - beta3 * s.m[before]) / math.sqrt((1 + beta3) ** 2 + beta3**2)
        return x - lr * m / (1 - beta1**self.t) / (np.sqrt(v_hat) + o.eps)


class DualAdam(Transcription):
    """Shi et al., arXiv 2603.07122, as LongJin-lab/DualAdam, DualAdam.py, which adds eps to the factor of the inverse
    part, too, and leaves that part out where less than one unit of it is left."""

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        beta1, beta2 = o.betas
        inverse = 1 - self.t * o.switch_rate
        if inverse < o.switch_rate:
            inverse = 0.0
        x, g = self.decayed(x, g, lr)
        s.m = beta1 * s.m + (1 - beta1) * g
        s.v = beta2 * s.v + (1 - beta2) * g**2
        m_hat = s.m / (1 - beta1**self.t)
        scale = np.sqrt(s.v / (1 - beta2**self.t)) + o.eps
        return x - lr * (inverse * m_hat * scale + (1 - inverse) * m_hat / scale)


class AdamG(Transcription):
    """Pang et al., arXiv 2405.04376: the equations of AdamG, which junaidaliop/zij, docs/math/adamg.md, prints; no code
    of the authors was found."""

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(m=np.zeros_like(x), v=np.zeros_like(x), r=np.zeros_like(x))

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        beta1, beta2, beta3 = o.betas
        x, g = self.decayed(x, g, lr)
        s.v = beta2 * s.v + (1 - beta2) * g**2
        s.r = beta3 * s.r + (1 - beta3) * o.p * s.v**o.q
        s.m = beta1 * s.m + (1 - beta1) * s.r * g
        m_hat = s.m / (1 - beta1**self.t)
        v_hat = s.v / (1 - beta2**self.t)
        return x - min(lr, 1 / math.sqrt(self.t)) * m_hat / (np.sqrt(v_hat) + o.eps)


class FAdam(Transcription):
    """Hwang, arXiv 2405.12807: lessw2020/FAdam_PyTorch, fadam.py, with eps and clipping as later versions of the paper
    have them, of which pytorch_optimizer 4.1 is the only witness."""

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        beta1, beta2 = o.betas
        beta2 = beta2 * (1 - beta2 ** (self.t - 1)) / (1 - beta2**self.t)
        s.v = beta2 * s.v + (1 - beta2) * g**2
        eps = min(o.eps, o.eps_2 * rms(g))
        fisher = s.v**o.p + eps ** (2 * o.p)
        natural = g / fisher
        natural = natural / max(1.0, rms(natural) / o.clip)
        s.m = beta1 * s.m + (1 - beta1) * natural
        decay = x / fisher
        decay = decay / max(1.0, rms(decay) / o.clip)
        return x - lr * (s.m + o.weight_decay * decay)


def rms(x: Array) -> float:
    """Root of the mean square."""
    return math.sqrt(np.mean(x**2))
