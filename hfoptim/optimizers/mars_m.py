"""MARS-M: Muon of gradients corrected by how far they have changed."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from hfoptim.engine import Group, Name, Rule, Scalars, hyper, zeros
from hfoptim.optimizers.muon import muon
from hfoptim.optimizers.shared import newton_schulz
from hfoptim.optimizers.shared.matrices import Form, MatrixOptimizer
from hfoptim.optimizers.shared.newton_schulz import NewtonSchulz
from hfoptim.optimizers.shared.spectral import norm_of_matrix


def _correction(group: Group) -> Scalars:
    momentum = group["momentum"]
    return {"correction": group["gamma"] * momentum / (1.0 - momentum)}


@cache
def corrected(inner: Rule) -> Rule:
    """A rule for matrices, given gradients with a share of their change on top, of a norm of at most 1."""

    def per_step(t: int, group: Group) -> Scalars:
        return {**inner.per_step(t, group), **_correction(group)}

    def fn(grad: Any, param: Any, last_grad: Any, *args: Any) -> tuple[Any, ...]:
        reduced = grad + (grad - last_grad) * args[-1].correction
        update, *state = inner.fn(reduced / norm_of_matrix(reduced).clamp(min=1.0), param, *args)
        return update, grad, *state

    fn.__name__ = "mars_m"
    return replace(inner, fn=fn, state={"last_grad": zeros, **inner.state}, per_step=per_step)


class MarsM(MatrixOptimizer):
    """Variance reduction for Muon: matrices' gradients are corrected by how far they have changed.

    With G the gradient of a matrix P of r rows and c columns, G' the one before (0 at first):

        C = G + gamma momentum / (1 - momentum) (G - G');  C = C / max(1, |C|)
        M = momentum M + (1 - momentum) C
        O = NewtonSchulz(M), about the U V^T of its singular value decomposition
        P = P - 0.2 lr sqrt(max(r, c)) O - lr weight_decay P

    Everything else takes AdamW's step with `betas`, as in Muon, where it is told which parameters are matrices: give
    the model's named parameters. This is the form that takes G' from the batch before; the exact one runs backward
    twice.

    State: `last_grad` (G'), `momentum_buffer` (M); for everything else `exp_avg`, `exp_avg_sq`.

    The numbers are the author's, who iterates in bfloat16, with 1e-7 added to the norm that Newton-Schulz begins with
    (here its least value), and adds eps to AdamW's root before its bias correction.

    Raises:
        ValueError: no hidden matrix among the parameters, one with fewer than two dimensions, or parameters that need
            names and have none.
        TypeError: a complex matrix.

    Source:
        Liu et al., MARS-M: When Variance Reduction Meets Matrices, arXiv 2510.21800; AGI-Arena/MARS, MARS_M.
    """

    hidden_matrices = True
    names = (Name("mars_m"),)
    lr: float = hyper(1e-3, "learning rate")
    weight_decay: float = hyper(0.1, "decoupled weight decay, per step and unit of lr")
    momentum: float = hyper(0.95, "decay rate of M", below=1.0)
    gamma: float = hyper(0.025, "strength of the correction")
    ns_steps: int = hyper(5, "iterations of Newton-Schulz", low=1, most=99)
    eps: float = hyper(1e-8, "least norm that Newton-Schulz divides by; AdamW's eps")

    def matrix_rule(self, form: Form, group: dict[str, Any]) -> Rule:
        iteration = NewtonSchulz(newton_schulz.iterations("original", group["ns_steps"]), None, 1.0)
        return corrected(muon(form, iteration, False, "match_rms_adamw", "muon"))
