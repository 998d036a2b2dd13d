"""Preconditioners with a factor for each side of a tensor, by the writer of the rules.

The rules of KLShampoo and KLSOAP were run beside their author's file in double precision, from which they differ by up
to 4e-14 of the movement: square matrices with the file as it is; other shapes with the same eigenvectors of the first,
singular factors; three dimensions with all eigenvalues those of the step before.

SOAP was run beside its author's file in double precision, from which it differs by rounding wherever every factor has
full rank from the first gradient on; elsewhere the eigenvectors of 0 are anybody's. DistributedShampoo's rule was run
beside its authors' package, with torch's default dtype and its factors in double precision and an lr that float32
holds. SOAPMuon was written from the paper and a copy of nanogpt_optimizer.py of nikhilvyas/SOAP_Muon, PSGDPro from
psgd.py of NVIDIA-NeMo/Emerging-Optimizers, beside which its rule was run with equal draws.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from .base import Array, Transcription


def gram(g: Array, i: int) -> Array:
    """Products of the slices of a tensor along one side."""
    others = [j for j in range(g.ndim) if j != i]
    product: Array = np.tensordot(g, g, axes=(others, others))
    return product


def through(g: Array, matrices: list[Any]) -> Array:
    """The tensor with each side turned by its matrix."""
    for i, q in enumerate(matrices):
        if q is not None:
            g = np.moveaxis(np.tensordot(g, q, axes=(i, 0)), -1, i)
    return g


def back(matrices: list[Any]) -> list[Any]:
    """The way back from bases."""
    return [None if q is None else q.T for q in matrices]


class SOAP(Transcription):
    """Vyas et al., nikhilvyas/SOAP, soap.py."""

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(m=0.0, v=0.0, factors=None, bases=None)

    def seen(self, g: Array) -> tuple[Array, tuple[int, ...]]:
        """The gradient with small dimensions merged, and the shape before that."""
        o = self.options
        if g.ndim < 2 or not o.merge_dims:
            return g, g.shape
        if o.data_format == "channels_last" and g.ndim == 4:
            g = np.moveaxis(g, 3, 1)
        new, size = [], 1
        for n in g.shape:
            if size * n <= o.max_precond_dim:
                size *= n
            elif size > 1:
                new.append(size)
                size = n
            else:
                new.append(n)
        if size > 1 or not new:
            new.append(size)
        return g.reshape(new), g.shape

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        g, before = self.seen(g)
        beta = o.shampoo_beta if o.shampoo_beta >= 0 else o.betas[1]
        sizes = [n <= o.max_precond_dim and (x.ndim > 1 or o.precondition_1d) for n in g.shape]
        if s.factors is None:
            s.factors = [np.zeros((n, n)) if has else None for n, has in zip(g.shape, sizes, strict=True)]
        grams = [None if f is None else beta * f + (1 - beta) * gram(g, i) for i, f in enumerate(s.factors)]
        s.factors = grams
        if s.bases is None:
            s.bases = [None if f is None else np.linalg.eigh(f)[1][:, ::-1] for f in grams]
            return x
        t, (beta1, beta2) = self.t - 1, o.betas
        turned = through(g, s.bases)
        s.m = beta1 * s.m + (1 - beta1) * turned
        s.v = beta2 * s.v + (1 - beta2) * turned**2
        update = through(s.m / (np.sqrt(s.v) + o.eps), back(s.bases))
        if o.normalize_grads:
            update = update / (1e-30 + math.sqrt(np.mean(update**2)))
        if t % o.precondition_frequency == 0:
            s.m = through(s.m, back(s.bases))
            for i, (f, q) in enumerate(zip(grams, s.bases, strict=True)):
                if f is not None:
                    order = np.argsort(-np.diag(q.T @ f @ q))
                    s.v = np.take(s.v, order, axis=i)
                    s.bases[i] = np.linalg.qr(f @ q[:, order])[0]
            s.m = through(s.m, s.bases)
        size = lr * (math.sqrt(1 - beta2**t) / (1 - beta1**t) if o.correct_bias else 1.0)
        update = update.reshape(before)
        if x.shape != before:
            update = np.moveaxis(update, 1, 3)
        x = x - size * update
        return x - lr * o.weight_decay * x


class KLShampoo(Transcription):
    """Lin et al., yorkerlin/KL-Methods, optim/kl_opt.py, for any number of sides; vectors take Adam's step."""

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(m=0.0, v=0.0, s=None, q=None, d=None)

    def step_of(self, g: Array, s: SimpleNamespace) -> Array:
        """The average of gradients times the inverse square root of the factors' product."""
        beta1 = self.options.betas[0]
        s.m = beta1 * s.m + (1 - beta1) * g
        roots = np.ones(g.shape)
        for i, d in enumerate(s.d):
            if d is not None:
                roots = np.moveaxis(np.moveaxis(roots, i, -1) * np.sqrt(d), -1, i)
        return through(through(s.m, s.q) / (roots + self.options.eps), back(s.q))

    def turn(self, s: SimpleNamespace, bases: list[Any]) -> None:
        s.q = bases

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o, whole = self.options, x.shape
        g = g.squeeze()
        has = [n <= o.max_precond_dim for n in g.shape]
        if g.ndim < 2 or not any(has):
            beta1, beta2 = o.betas
            g = g.reshape(whole)
            s.m, s.v = beta1 * s.m + (1 - beta1) * g, beta2 * s.v + (1 - beta2) * g**2
            x = x - lr * s.m / (1 - beta1**self.t) / (np.sqrt(s.v / (1 - beta2**self.t)) + o.eps)
            return x - lr * o.weight_decay * x
        beta = o.shampoo_beta if o.shampoo_beta >= 0 else o.betas[1]
        if s.q is None:
            s.s = [(1 - beta) * gram(g, i) * n / g.size if has[i] else None for i, n in enumerate(g.shape)]
            s.q = [None if each is None else np.linalg.eigh(each)[1][:, ::-1] for each in s.s]
            s.d = [np.full(n, o.init_factor) if has[i] else None for i, n in enumerate(g.shape)]
            return x
        x = x - lr * self.step_of(g, s).reshape(whole)
        inverse_roots = [None if q is None else q @ np.diag(d**-0.5) @ q.T for q, d in zip(s.q, s.d, strict=True)]
        d_new = list(s.d)
        for i, n in enumerate(g.shape):
            if not has[i]:
                continue
            new = gram(through(g, [None if j == i else each for j, each in enumerate(inverse_roots)]), i) * n / g.size
            s.s[i] = beta * s.s[i] + (1 - beta) * new
            d = beta * s.d[i] + (1 - beta) * np.diag(s.q[i].T @ new @ s.q[i])
            d_new[i] = 1 / np.minimum(1 / np.sqrt(d), max(10, min(n, o.max_clamp_value))) ** 2
        s.d = d_new
        if (self.t - 1) % o.precondition_frequency == 0:
            self.turn(s, [None if q is None else np.linalg.qr(each @ q)[0] for each, q in zip(s.s, s.q, strict=True)])
        return x - lr * o.weight_decay * x


class KLSOAP(KLShampoo):
    """The same file with `using_klsoap`."""

    def step_of(self, g: Array, s: SimpleNamespace) -> Array:
        (beta1, beta2), turned = self.options.betas, through(g, s.q)
        s.m = beta1 * s.m + (1 - beta1) * turned
        s.v = beta2 * s.v + (1 - beta2) * turned**2
        return through(s.m / (np.sqrt(s.v) + self.options.eps), back(s.q))

    def turn(self, s: SimpleNamespace, bases: list[Any]) -> None:
        s.m = through(through(s.m, back(s.q)), bases)
        s.q = bases


def inverse_root(a: Array, root: int, eps: float) -> Array:
    """Of a symmetric matrix with something added to its eigenvalues."""
    values, vectors = np.linalg.eigh(a)
    values = values - min(float(values.min()), 0.0) + eps
    product: Array = vectors @ np.diag(values ** (-1.0 / root)) @ vectors.T
    return product


class DistributedShampoo(Transcription):
    """Shi et al., facebookresearch/optimizers, distributed_shampoo.py, with eigendecompositions and decoupled decay."""

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(m=0.0, v=0.0, blocks={})

    def step(self, grads: dict[str, Array], lr: float, loss: float) -> None:
        self.t += 1
        for name, g in grads.items():
            x = self.params[name]
            direction = self.direction(g.reshape(self.merged(g.shape)), self.state[name]).reshape(x.shape)
            self.params[name] = x - lr * (direction + self.options.weight_decay * x)

    def merged(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Sides of 1 left out, the others multiplied from the last on while the product is small enough."""
        sides: list[int] = []
        for n in reversed([n for n in shape if n != 1] or [1]):
            if sides and sides[0] * n <= self.options.max_preconditioner_dim:
                sides[0] *= n
            else:
                sides.insert(0, n)
        return tuple(sides)

    def direction(self, g: Array, s: SimpleNamespace) -> Array:
        o, t = self.options, self.t
        beta1 = o.betas[0]
        beta3 = beta1 if o.beta3 < 0 else o.beta3
        f = beta3 * s.m + (1 - beta3) * g
        s.m = beta1 * s.m + (1 - beta1) * g
        if o.use_bias_correction:
            f = f / (1 - beta3 * beta1 ** (t - 1))
        q = f
        if o.grafting in ("adagrad", "rmsprop", "adam"):
            keep, new = (1.0, 1.0) if o.grafting == "adagrad" else (o.grafting_beta2, 1 - o.grafting_beta2)
            s.v = keep * s.v + new * g**2
            corrected = s.v / (1 - o.grafting_beta2**t) if o.grafting == "adam" else s.v
            q = f / (np.sqrt(corrected) + o.grafting_epsilon)
        out = np.empty_like(g)
        starts = [range(0, n, o.max_preconditioner_dim) for n in g.shape]
        for corner in np.ndindex(*[len(each) for each in starts]):
            place = tuple(
                slice(begins[i], begins[i] + o.max_preconditioner_dim) for begins, i in zip(starts, corner, strict=True)
            )
            out[place] = self.block(g[place], f[place], q[place], s.blocks.setdefault(corner, {}))
        return out

    def block(self, g: Array, f: Array, q: Array, kept: dict[str, Any]) -> Array:
        o, t, k = self.options, self.t, g.ndim
        beta2, every = o.betas[1], o.precondition_frequency
        start = o.start_preconditioning_step if o.start_preconditioning_step > 0 else every
        new = 1 - beta2 if beta2 < 1 else 1.0
        correction = 1 - beta2**t if o.use_bias_correction and beta2 < 1 else 1.0
        factors = kept.get("factors", [0.0] * k)
        kept["factors"] = [beta2 * factor + new * gram(g, i) for i, factor in enumerate(factors)]
        if t == start or (t > start and t % every == 0):
            kept["roots"] = [inverse_root(factor / correction, 2 * k, o.epsilon) for factor in kept["factors"]]
        if o.grafting and t < start:
            return q
        d = through(f, kept.get("roots", [None] * k))
        if o.grafting:
            d = d * (math.sqrt(np.sum(q**2)) / (math.sqrt(np.sum(d**2)) + 1e-16))
        return d


class SOAPMuon(Transcription):
    """Vyas et al., nikhilvyas.github.io/SOAP_Muon.pdf, a basis for the shorter side, the square root, unit size."""

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        b1, b2 = o.betas
        beta = b2 if o.shampoo_beta < 0 else o.shampoo_beta
        if x.shape[0] < x.shape[1]:
            return self.update(x.T, g.T, s, lr).T
        if not hasattr(s, "q"):
            s.r = (1 - beta) * g.T @ g
            s.q, s.m, s.v = np.linalg.eigh(s.r)[1][:, ::-1], np.zeros_like(x), np.zeros_like(x)
            return x
        t = self.t - 1
        s.m = b1 * s.m + (1 - b1) * g
        s.v = b2 * s.v + (1 - b2) * (g @ s.q) ** 2
        y = s.m @ s.q / (np.sqrt(s.v) + o.eps)
        y = y / np.linalg.norm(y)
        for a, b, c in [(3.4445, -4.7750, 2.0315)] * o.newton_schulz_steps + [(1.5, -0.5, 0.0)] * 2:
            y = a * y + b * y @ y.T @ y + c * y @ y.T @ y @ y.T @ y
        y = (np.sign(y) * np.sqrt(np.abs(y)) if o.sqrt_correction else y) @ s.q.T
        step = lr * math.sqrt(1 - b2**t) / (1 - b1**t) / math.sqrt(np.mean(y**2))
        s.r = beta * s.r + (1 - beta) * g.T @ g
        if t % o.precondition_frequency == 0:
            order = np.argsort(-np.diag(s.q.T @ s.r @ s.q))
            s.v = s.v[:, order]
            s.q = np.linalg.qr(s.r @ s.q[:, order])[0]
        return np.asarray((x - step * y) * (1 - lr * o.weight_decay))


class PSGDPro(Transcription):
    """Li, arXiv 2402.11858, as psgd_pro of NVIDIA; `noise(t, place, shape)` and `vectors(n)` are the draws."""

    def step(self, grads: dict[str, Array], lr: float, loss: float) -> None:
        for place, s in enumerate(self.state.values()):
            s.place = place
        super().step(grads, lr, loss)

    def bound(self, x: Array) -> float:
        size = np.abs(x).max()
        if size == 0:
            return 0.0
        x = x / size
        row = x[np.argmax((x**2).sum(axis=1))]
        v = self.options.vectors(len(x))
        v = row + np.sign(v @ row)[:, None] * v
        for _ in range(2):
            v = v @ x
            v = v / np.linalg.norm(v, axis=1, keepdims=True) @ x
        return float(size * np.linalg.norm(v, axis=1).max())

    def turned(self, q: Array) -> Array:
        r = q.T - q
        r = r / (self.bound(r) or 1.0)
        slope, bend = np.trace(r @ q), np.trace(r @ r @ q)
        a = min(max(-slope / bend, 0.0), 0.125) if bend < 0 else 0.125
        return q + a * r @ q + a * a / 2 * r @ r @ q

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o = self.options
        shape = x.shape or (1,)
        if not hasattr(s, "qs"):
            longest = math.sqrt(math.inf if o.preconditioner_max_skew is None else o.preconditioner_max_skew * x.size)
            longest = min(longest, o.preconditioner_max_size or math.inf)
            s.flat = [n == 1 or n > longest for n in shape]
            s.qs, s.ls = [o.precond_init_scale * np.eye(n) for n in shape], [1.0 for _ in shape]
        s.m = o.momentum * s.m + (1 - o.momentum) * g
        m = s.m.reshape(shape)
        noise = o.noise(self.t, s.place, shape)
        white = m + (o.damping_noise_scale + 1e-7 * np.abs(m)) * noise
        for i, q in enumerate(s.qs):
            white = np.moveaxis(np.tensordot(q.T @ q, white, axes=(1, i)), 0, i)
        rate = max(o.precond_lr / math.sqrt(1 + (self.t - 1) / o.warmup_steps), o.min_precond_lr)
        for i, q in enumerate(s.qs):
            second, even = gram(white, i), x.size / shape[i]
            second = np.diag(np.diag(second)) if s.flat[i] else second
            ell = (second.max() if s.flat[i] else self.bound(second)) + even
            s.ls[i] = max(o.beta_lip * s.ls[i] + (1 - o.beta_lip) * ell, ell)
            q = q - rate / s.ls[i] * (second @ q - even * q)
            s.qs[i] = q if s.flat[i] else self.turned(q)
        tops = [np.abs(q).max() for q in s.qs]
        s.qs = [q * np.prod(tops) ** (1 / len(tops)) / top for q, top in zip(s.qs, tops, strict=True)]
        u = m
        for i, q in enumerate(s.qs):
            u = np.moveaxis(np.tensordot(q.T @ q, u, axes=(1, i)), 0, i)
        if o.max_update_rms:
            u = u * min(1.0, o.max_update_rms / (math.sqrt(np.mean(u**2)) + 1e-7))
        return x - lr * o.weight_decay * x - lr * u.reshape(x.shape)
