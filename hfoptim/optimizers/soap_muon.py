"""SOAP-Muon: SOAP's update of a matrix's shorter side made orthogonal, which whitens the other side, too."""

from __future__ import annotations

from dataclasses import KW_ONLY
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hfoptim.engine import Decay, Group, Name, Rule, hyper
from hfoptim.optimizers.shared import newton_schulz
from hfoptim.optimizers.shared.kronecker import Folding
from hfoptim.optimizers.shared.low_rank import SIDES, side_of
from hfoptim.optimizers.shared.matrices import HiddenMatrices, matrices_of
from hfoptim.optimizers.shared.newton_schulz import NS_DTYPES, NewtonSchulz, iterations
from hfoptim.optimizers.soap import soap, without_factors

# Follows Jordan's iterations: singular values between 0.7 and 1.2 come near 1.
_LAST = ((1.5, -0.5, 0.0),) * 2
_LEAST_NORM = 1e-7


class _Whitened(NamedTuple):
    """What is made of SOAP's update in its bases.

    Args:
        iteration: makes it orthogonal.
        root: whether the signed root of every entry follows.
    """

    iteration: NewtonSchulz
    root: bool

    def __call__(self, update: Tensor) -> Tensor:
        update = self.iteration(update, _LEAST_NORM)
        return update.sign() * update.abs().sqrt() if self.root else update


@cache
def _whitened(steps: int, dtype: Any, root: bool) -> _Whitened:
    return _Whitened(NewtonSchulz((*iterations("original", steps), *_LAST), NS_DTYPES.get(dtype, dtype), 1.0), root)


class SOAPMuon(HiddenMatrices):
    """SOAP's update of a matrix's shorter side made orthogonal, which whitens the other side, too.

    With G the gradient of a matrix P of r rows and c columns, r >= c, at step t + 1, the first one apart:

        G' = G Q
        M = beta1 M + (1 - beta1) G'
        V = beta2 V + (1 - beta2) G'^2
        O = NewtonSchulz(M / (sqrt(V) + eps)), about the U V^T of its singular value decomposition
        D = sign(O) sqrt(|O|) Q^T, entry by entry, divided by its root mean square     (O Q^T without sqrt_correction)
        R = beta R + (1 - beta) G^T G
        every precondition_frequency steps, Q from R as in `SOAP`, and M and V in its order
        P = P - lr sqrt(1 - beta2^t) / (1 - beta1^t) D
        P = P - lr weight_decay P

    and for r < c the same of the transposed. `projection_type` "full" has a basis for either side, as SOAP has, "left"
    and "right" always the one of rows or of columns; a side above `max_precond_dim` has none. The first step makes R
    of its gradient and Q its eigenvectors, and leaves P as it is. `beta` is `shampoo_beta`, or beta2 where that is
    negative. Orthogonal updates make up for a basis that is behind, so that bases may be made more rarely than SOAP's:
    the authors show 10 and 40.

    An update has a root mean square of 1, SOAP's size at first, so that one lr serves all. Everything else takes Adam's
    step, from the second one on, as in SOAP without factors. What is a hidden matrix, `Muon` says; each is taken whole,
    also one that makes queries, keys and values. Kernels of convolutions are flattened to (out, in * height * width).

    State: `exp_avg` (M), `exp_avg_sq` (V), for the sides i that have a basis `GG_i` (R) and `Q_i` (Q).

    Raises:
        ValueError: no hidden matrix among the parameters, one with fewer than two dimensions, or parameters that need
            names and have none.
        TypeError: a complex matrix.

    Source:
        Vyas, Zhao, Morwani, Kwun and Kakade, Improving SOAP using Iterative Whitening and Muon,
        https://nikhilvyas.github.io/SOAP_Muon.pdf, with a basis for the smaller side and the square root, its
        default; nikhilvyas/SOAP_Muon, whose size of updates is that of its OLMo version. modded-nanogpt's SOAP-Muon
        (track 3) has bases for both sides, no square root, a V of the momentum, and the norm of that.
    """

    hidden_matrices = True
    decay = Decay.DECOUPLED_AFTER
    names = (Name("soap_muon"),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.95, 0.98), "decay rates of M and V")
    shampoo_beta: float = hyper(-1.0, "decay rate of R; below 0 it is beta2", low=-1.0, below=1.0)
    eps: float = hyper(1e-15, "added to the root of V")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    correct_bias: bool = hyper(True, "divide M and V by their bias corrections")
    projection_type: str = hyper("std", "which sides have a basis", choices=SIDES)
    precondition_frequency: int = hyper(10, "steps from one basis to the next", low=1)
    max_precond_dim: int = hyper(10000, "longest side that has a basis", low=1)
    newton_schulz_steps: int = hyper(5, "iterations of Newton-Schulz before two last ones", low=1, most=99)
    _: KW_ONLY
    sqrt_correction: bool = hyper(True, "take the root of every entry of the orthogonal matrix")
    ns_dtype: torch.dtype | str | None = newton_schulz.DTYPE

    @property
    def rest(self) -> str:
        return "adam"

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        form = self._form_of(param, group)
        if form is None:
            return without_factors(False)
        rows, columns = (form.shape or tuple)(param.shape)[-2:]
        side, most = side_of(group["projection_type"], (rows, columns)), group["max_precond_dim"]
        factored = (side != "right" and rows <= most, side != "left" and columns <= most)
        finish = _whitened(group["newton_schulz_steps"], group["ns_dtype"], group["sqrt_correction"])
        return soap(Folding(2), factored, True, finish, form.shape)

    def taken_by(self, param: Tensor, group: Group) -> str:
        form = self._form_of(param, group)
        return self.rest if form is None else matrices_of(form, param.shape)
