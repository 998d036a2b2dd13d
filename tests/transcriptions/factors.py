"""Preconditioners with a factor for each side of a tensor, by the writer of the rules.

The rules of KLShampoo and KLSOAP were run beside their author's file in double precision, from which they differ by up
to 4e-14 of the movement: square matrices with the file as it is; other shapes with the same eigenvectors of the first,
singular factors; three dimensions with all eigenvalues those of the step before.

SOAP was run beside its author's file in double precision, from which it differs by rounding wherever every factor has
full rank from the first gradient on; elsewhere the eigenvectors of 0 are anybody's. DistributedShampoo's rule was run
beside its authors' package, with torch's default dtype and its factors in double precision and an lr that float32
holds.
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
