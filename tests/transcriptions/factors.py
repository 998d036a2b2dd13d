"""Preconditioners with a factor for each side of a tensor, by the writer of the rules.

SOAP was run beside its author's file in double precision, from which it differs by rounding wherever every factor has
full rank from the first gradient on; elsewhere the eigenvectors of 0 are anybody's.
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
        back = [None if q is None else q.T for q in s.bases]
        update = through(s.m / (np.sqrt(s.v) + o.eps), back)
        if o.normalize_grads:
            update = update / (1e-30 + math.sqrt(np.mean(update**2)))
        if t % o.precondition_frequency == 0:
            s.m = through(s.m, back)
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
