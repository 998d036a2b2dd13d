"""Methods with an average of the weights, written from their authors' files by the writer of the rules, and run beside
those files in double precision."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np

from .base import Array, Transcription


class AdamCScheduleFreePlus(Transcription):
    """facebookresearch/schedule_free, adamc_schedulefree_plus_paper.py, with the average of the gradients' norm kept as
    it is, not corrected."""

    def __init__(self, params: dict[str, Array], **options: object) -> None:
        super().__init__(params, **options)
        self.norm, self.weights, self.largest = 0.0, 0.0, self.options.eps

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(x=x.copy(), z=x.copy(), m=np.zeros_like(x), v=np.zeros_like(x))

    def step(self, grads: dict[str, Array], lr: float, loss: float) -> None:
        o, done = self.options, self.t
        self.t += 1
        away = math.log(1 - o.sf_beta1)
        if o.sf_beta1_anneal_steps:
            part = min(done / o.sf_beta1_anneal_steps, 1.0)
            away = (1 - part) * away + part * math.log(1 - o.sf_beta1_max)
        share = 1 - math.exp(away)
        inner = sum(share * np.sum(g * (self.state[n].z - self.state[n].x)) for n, g in grads.items())
        size = math.sqrt(math.pi / 2) * sum(np.sum(np.abs(g)) for g in grads.values())
        self.norm = o.polyak_beta * self.norm + (1 - o.polyak_beta) * size
        rate = lr * max(0.0, loss + inner) / (self.norm / (1 - o.polyak_beta**self.t))
        self.largest = max(self.largest, rate)
        new = 1.0
        if done >= o.c_warmup:
            weight = self.t**o.r * self.largest**o.weight_lr_power
            self.weights += weight
            new = weight / self.weights
        for name, g in grads.items():
            s, y = self.state[name], self.params[name]
            s.m = o.betas[0] * s.m + (1 - o.betas[0]) * g
            s.v = o.betas[1] * s.v + (1 - o.betas[1]) * g * g
            first, second = s.m / (1 - o.betas[0] ** self.t), s.v / (1 - o.betas[1] ** self.t)
            s.z = s.z - rate**2 * o.weight_decay * y - rate * first / (np.sqrt(second) + o.eps)
            s.x = (1 - new) * s.x + new * s.z
            self.params[name] = share * s.x + (1 - share) * s.z


class ProdigyPlusScheduleFree(Transcription):
    """LoganBooker/prodigy-plus-schedule-free 2.0.1, core_optimiser.py and prodigy_plus_schedulefree.py, one group: with
    4 / pi where the files have 1.2732395, and the factored moment's mean over its other dimension."""

    def __init__(self, params: dict[str, Array], **options: object) -> None:
        super().__init__(params, **options)
        self.d, self.numerator, self.weights = self.options.d0, 0.0, 0.0

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(z=x.copy(), origin=x.ravel().copy(), s=np.zeros(x.size), v=0.0, of_a=0.0, of_b=0.0)

    def root_of_second(self, s: SimpleNamespace, g: Array, beta2: float) -> Array:
        square = (self.d * g) ** 2
        if not self.options.factored or g.ndim < 2 or max(g.shape) < 32:
            s.v = beta2 * s.v + (1 - beta2) * square
            return np.asarray(np.sqrt(s.v))
        largest = sorted(range(g.ndim), key=lambda i: (g.shape[i], i))
        a, b = largest[-1], largest[-2]
        s.of_a = beta2 * s.of_a + (1 - beta2) * square.mean(axis=a, keepdims=True)
        s.of_b = beta2 * s.of_b + (1 - beta2) * square.mean(axis=b, keepdims=True)
        return np.asarray(np.sqrt(s.of_a / (s.of_a.mean(axis=b, keepdims=True) + 1e-30) * s.of_b))

    def step(self, grads: dict[str, Array], lr: float, loss: float) -> None:
        o, d = self.options, self.d
        self.t += 1
        (beta1, beta2), rate = o.betas, d * lr
        beta3 = beta2**0.5 if o.beta3 is None else o.beta3
        if o.use_bias_correction:
            longest, known = 2 / (1 - beta2) - 1, 1 - beta2**self.t
            n = longest - 2 * self.t * beta2**self.t / known
            ratio = (n - 4) * (n - 2) * longest / ((longest - 4) * (longest - 2) * n) if n > 4 else 0.0
            rate, beta2 = rate * math.sqrt(ratio), 1 - (1 - beta2) / known
        self.weights += rate**2
        share = rate**2 / self.weights if self.weights else 0.0
        if o.schedulefree_c > 0:
            share = min(1.0, share * (1 - beta1) * o.schedulefree_c)
        of_y, found, size = 1 - beta1 * (1 - share), 0.0, 0.0
        for name, g in grads.items():
            s, y = self.state[name], self.params[name]
            root = self.root_of_second(s, g, beta2)
            if o.eps is None:
                u = np.arctan2(d * g, root) * 4 / math.pi
            else:
                u = d * g / (root + d * o.eps)
                if o.use_stableadamw and u.size:
                    u = u / math.sqrt(max(1.0, np.sqrt(np.mean(u * u))))
            some = slice(None, None, o.slice_p)
            weight, flat = d * d / math.sqrt(o.d0), g.ravel()[some]
            s.s[some] = beta3 * s.s[some] + weight * flat
            found += weight * np.sum(flat * (s.origin - s.z.ravel())[some])
            size += np.sum(np.abs(s.s))
            way = rate * u + o.weight_decay * (rate if o.weight_decay_by_lr else 1.0) * y
            self.params[name] = y + share * (s.z - y) - of_y * way
            s.z = s.z - way
        if 0 < o.prodigy_steps <= self.t:
            return
        self.numerator = beta3 * self.numerator + (found if d > o.d0 or found > 0 else 0.0)
        if size > 0:
            bound = self.numerator / size
            self.d = max(d, o.d_coef * (min(bound, d * 2**0.25) if o.d_limiter else bound))
