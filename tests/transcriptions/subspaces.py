"""Methods of low rank and of row and column scales, by the writer of the rules: RACS and Alice from their paper, LDAdam
from its authors' code (ldadamw_torch of IST-DASLab/LDAdam), beside which it was run.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

from .base import Array, Transcription


class RACS(Transcription):
    """Gong, Scetbon, Ma and Meeds, arXiv 2502.07752, algorithm 1 with equation 16."""

    def start(self, x: Array) -> SimpleNamespace:
        rows, columns = x.shape
        return SimpleNamespace(s=np.zeros(columns), q=np.zeros(rows), phi=None)

    def update(self, x: Array, g: Array, state: SimpleNamespace, lr: float) -> Array:
        o = self.options
        q = np.ones(x.shape[0])
        for _ in range(o.iterations):
            s = np.diag(g.T @ np.diag(q) @ g) / np.sum(q**2)
            q = np.diag(g @ np.diag(s) @ g.T) / np.sum(s**2)
        state.s = o.beta * state.s + (1 - o.beta) * s
        state.q = o.beta * state.q + (1 - o.beta) * q
        scaled = np.diag(state.q**-0.5) @ g @ np.diag(state.s**-0.5)
        norm = np.linalg.norm(scaled)
        eta = 1.0 if state.phi is None else o.gamma / max(norm / (state.phi + 1e-8), o.gamma)
        state.phi = eta * norm
        return x - lr * o.weight_decay * x - lr * o.alpha * eta * scaled


class Alice(Transcription):
    """Gong, Scetbon, Ma and Meeds, arXiv 2502.07752, algorithms 2 to 4, with the numbers that vectors are chosen by.

    `draw(t, name, count)` gives these, and is to be set.
    """

    draw: Callable[[int, str, int], Array]

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(u=None, phi=None)

    def step(self, grads: dict[str, Array], lr: float, loss: float) -> None:
        self.t += 1
        for name, g in grads.items():
            self.name, x, s, o = name, self.params[name], self.state[name], self.options
            wide = x.shape[0] <= x.shape[1] if o.proj_type == "std" else o.proj_type == "left"
            moved = self.moved(g, s) if wide else self.moved(g.T, s).T
            self.params[name] = x - lr * o.weight_decay * x - lr * o.alpha * moved

    def moved(self, g: Array, s: SimpleNamespace) -> Array:
        o, (m, n) = self.options, g.shape
        beta1, beta2, beta3 = o.low_rank_betas
        r = min(o.rank, m)
        if self.t == 1:
            s.q, s.m, s.v, s.p = np.zeros((r, r)), np.zeros((r, n)), np.zeros((r, n)), np.zeros(n)
            s.u = self.switch(np.linalg.eigh(g @ g.T)[1][:, ::-1][:, :r])
        elif self.t % o.update_proj_gap == 0:
            full = beta3 * s.u @ s.q @ s.u.T + (1 - beta3) * g @ g.T
            turned = np.linalg.qr(full @ s.u)[0]
            values, vectors = np.linalg.eigh(turned.T @ full @ turned)
            s.u = self.switch(turned @ vectors[:, np.argsort(values)[::-1]])
        sigma = s.u.T @ g
        s.q = beta3 * s.q + (1 - beta3) * sigma @ sigma.T
        s.m = beta1 * s.m + (1 - beta1) * sigma
        s.v = beta2 * s.v + (1 - beta2) * sigma**2
        step = s.u @ (s.m / (np.sqrt(s.v) + o.eps))
        if r == m:
            return step
        s.p = beta1 * s.p + (1 - beta1) * (np.sum(g**2, axis=0) - np.sum(sigma**2, axis=0))
        c = np.sqrt(m - r) * (g - s.u @ sigma) @ np.diag(s.p**-0.5)
        eta = 1.0 if s.phi is None else o.gamma / max(np.linalg.norm(c) / (s.phi + 1e-8), o.gamma)
        s.phi = eta * np.linalg.norm(c)
        return step + o.alpha_c * eta * c

    def switch(self, found: Array) -> Array:
        m, r = found.shape
        found = found * np.sign(found[np.argmax(np.abs(found), axis=0), np.arange(r)])
        if r <= self.options.leading:
            return found
        others = np.linalg.qr(found, mode="complete")[0][:, r:]
        order = np.argsort(-self.draw(self.t, self.name, m)[: m - r])[: r - self.options.leading]
        return np.concatenate([found[:, : r - len(order)], others[:, order]], axis=1)


class LDAdamW(Transcription):
    """ldadamw_torch, in double precision: what it stores in the gradient is `error` here."""

    def start(self, x: Array) -> SimpleNamespace:
        return SimpleNamespace(basis=None, m=None, v=None, error=np.zeros_like(x))

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        o, done = self.options, self.t - 1
        rows, columns = x.shape
        right = {"right": True, "left": False, "std": rows > columns, "reverse_std": rows < columns}[o.proj_type]
        if right:  # everything is that of the transposed
            s.error = s.error.T
            moved = self._moved(g.T, s, done)
            s.error = s.error.T
            moved = moved.T
        else:
            moved = self._moved(g, s, done)
        return x * (1 - lr * o.weight_decay) - lr * moved

    def _moved(self, g: Array, s: SimpleNamespace, done: int) -> Array:
        o = self.options
        beta1, beta2 = o.betas
        g = g + s.error if o.error_feedback else g
        rank = min(o.rank, *g.shape)
        if done == 0:
            basis = np.linalg.svd(g, full_matrices=False)[0][:, :rank]
            s.basis, s.m = np.zeros_like(basis), np.zeros((rank, g.shape[1]))
            s.v = np.zeros_like(s.m)
        else:
            b = o.rho * (s.basis @ s.m) / (1 - beta1**done) + (1 - o.rho) * g
            if o.proj_method == "svd":
                basis = np.linalg.svd(b, full_matrices=False)[0][:, :rank]
            else:
                basis = np.linalg.qr(b @ (b.T @ s.basis))[0]
        low = basis.T @ g
        change = basis.T @ s.basis
        m = change @ s.m
        s.error = g - basis @ low + beta1 / (1 - beta1) * (s.basis @ s.m - basis @ m)
        if done:
            c1, c2 = 1 - beta1**done, 1 - beta2**done
            s.v = c2 * np.abs(change**2 @ (s.v / c2 - s.m**2 / c1**2) + m**2 / c1**2)
        s.m = beta1 * m + (1 - beta1) * low
        s.v = beta2 * s.v + (1 - beta2) * low**2
        s.basis = basis
        return basis @ (s.m / (1 - beta1 ** (done + 1)) / (np.sqrt(s.v / (1 - beta2 ** (done + 1))) + o.eps))
