"""KL-Shampoo and KL-SOAP: Shampoo's factors estimated through one another, by minimal Kullback-Leibler divergence."""

from __future__ import annotations

import math
from functools import cache, reduce
from typing import Any, ClassVar

import torch
from torch import Tensor

from hfoptim.engine import (
    ELEMENT,
    MATRIX,
    Decay,
    Group,
    Name,
    Rule,
    RuleOptimizer,
    Scalars,
    State,
    ema,
    hyper,
    nonnegative,
    zeros,
)
from hfoptim.optimizers.shared.kronecker import (
    Folding,
    add_gram,
    along,
    at_sides,
    eigenvectors,
    factor_rates,
    iterated_in_place,
)
from hfoptim.optimizers.shared.moments import adam_state, corrected, moment_rates, moments_step, normed


def _adamw_rates(t: int, group: Group) -> Scalars:
    return {**corrected(t, group), "decay": float(group["lr"]) * group["weight_decay"]}


# What takes the parameters without factors.
_ADAMW = Rule(moments_step, ELEMENT, adam_state(amsgrad=False), _adamw_rates)


def _rates(t: int, group: Group) -> Scalars:
    return {
        **moment_rates(t, group),
        **factor_rates(t, group),
        "eps": group["eps"],
        "largest": group["max_clamp_value"],
        # The first step makes the factors, and moves nothing.
        "decay": float(group["lr"]) * group["weight_decay"] if t > 1 else 0.0,
    }


def _eigenvalues(side: int, value: float) -> State:
    """State that begins as so much for each entry of one side, and lies along that."""

    def init(param: Tensor, dtype: torch.dtype) -> Tensor:
        shape = [size if i == side else 1 for i, size in enumerate(param.shape)]
        return torch.full(shape, value, dtype=dtype, device=param.device)

    return State(init, signed=False)


@cache
def kl_shampoo(factored: tuple[bool, ...], init_factor: float, adam: bool) -> Rule:
    """The rule for a parameter with factors.

    Args:
        factored: which sides have one.
        init_factor: what their eigenvalues begin as.
        adam: whether Adam's second moment is what a step is divided by; else the eigenvalues are.
    """
    places, count = [i for i, has in enumerate(factored) if has], len(factored)
    folding, n = Folding(count), len(places)
    others = {side: [i - count for i in range(count) if i != side] for side in places}

    def fn(grad: Tensor, param: Tensor, exp_avg: Tensor, *args: Any) -> tuple[Any, ...]:
        *kept, h = args
        second, factors, bases, eigenvalues = kept[: -3 * n], kept[-3 * n : -2 * n], kept[-2 * n : -n], kept[-n:]
        seen = folding.fold(grad)

        def added(factor: Tensor, x: Tensor, side: int) -> Tensor:
            columns = math.prod(seen.shape[i] for i in others[side])
            return add_gram(factor, x, side, count, h.keep, h.alpha / columns)

        if h.first:
            factors = [added(factor, seen, side) for factor, side in zip(factors, places, strict=True)]
            unmoved = [None] * (1 + len(second))
            return torch.zeros_like(grad), *unmoved, *factors, *map(eigenvectors, factors), *[None] * n
        back = [basis.mT for basis in bases]
        turned = along(seen, at_sides(bases, factored))
        mean = ema(folding.fold(exp_avg), turned, h.alpha1)
        product = reduce(torch.mul, eigenvalues)
        second = [ema(folding.fold(each), turned.square(), h.alpha2) for each in second]
        update = along(normed(mean, second[0] if adam else product, h)[0], at_sides(back, factored))
        new: list[Any] = [None] * n
        for i, side in enumerate(places):
            white = turned * (eigenvalues[i] / product).sqrt()
            factors[i] = added(factors[i], along(white, [back[i] if j == side else None for j in range(count)]), side)
            least = max(10, min(seen.shape[side - count], h.largest)) ** -2.0
            new[i] = ema(eigenvalues[i], white.square().mean(others[side], keepdim=True), h.alpha).clamp(min=least)
        eigenvalues, new = new, [None] * n
        if h.refresh:
            new = [iterated_in_place(*each) for each in zip(factors, bases, strict=True)]
            mean = along(along(mean, at_sides(back, factored)), at_sides(new, factored))
        return *(folding.unfold(each, param) for each in (update, mean, *second)), *factors, *new, *eigenvalues

    fn.__name__ = "kl_soap" if adam else "kl_shampoo"
    state = {"exp_avg": zeros, "exp_avg_sq": nonnegative} if adam else {"exp_avg": zeros}
    state |= {f"{name}_{side}": folding.square(side) for name in ("GG", "Q") for side in places}
    state |= {f"eigenvalues_{side}": _eigenvalues(side, init_factor) for side in places}
    return Rule(fn, MATRIX, state, _rates, dims=count)


class KLShampoo(RuleOptimizer):
    """Shampoo whose two factors minimise one Kullback-Leibler divergence, without grafting or a second moment.

    With G the gradient of a matrix P of r rows and c columns, at each step but the first:

        G' = QL^T G QR
        M = beta1 M + (1 - beta1) G'
        U = QL (M / (sqrt(a b^T) + eps)) QR^T
        L = beta L + (1 - beta) / c  G QR diag(1 / b) QR^T G^T
        R = beta R + (1 - beta) / r  G^T QL diag(1 / a) QL^T G
        a, b = beta a + (1 - beta) mean over columns of G'^2 / b,  beta b + (1 - beta) mean over rows of G'^2 / a
        a = max(a, 1 / max(10, min(r, max_clamp_value))^2),  and alike b with c
        every precondition_frequency steps:
            QL = Q of the QR decomposition of L QL,  QR alike of R,  M turned into the new bases
        P = P - lr U
        P = P - lr weight_decay P

    The first step makes L = (1 - beta) / c G G^T and R = (1 - beta) / r G^T G, QL and QR their eigenvectors, and leaves
    P as it is. a and b, which estimate the eigenvalues of L and R, begin as `init_factor`. `beta` is `shampoo_beta`, or
    beta2 where that is negative. Shampoo sums G G^T and G^T G; here each factor is what is left of the gradient's
    covariance when the other is taken out. There is no bias correction.

    The second step is lr M / `init_factor`, and the next ones go by the size of the gradient, too, until a and b have
    reached theirs: gradients much above 1 want a larger `init_factor`, clipping or a warm-up.

    A tensor of more dimensions has a factor for each of them that is longer than 1, and each is estimated through all
    the others. A dimension above `max_precond_dim` has none. Vectors, also those of shape (n, 1), take AdamW's step,
    with weight decay after it.

    State: `exp_avg` (M), for every factored dimension i `GG_i` (L, R), `Q_i` and `eigenvalues_i` (a, b); for vectors
    `exp_avg`, `exp_avg_sq`.

    Raises:
        TypeError: a complex parameter with factors.

    Source:
        Lin et al., Understanding and Improving Shampoo and SOAP via Kullback-Leibler Minimization, arXiv 2509.03378;
        yorkerlin/KL-Methods, `KLOpt`, whose defaults these are, but for bfloat16, in which it computes all but
        decompositions. It keeps M unturned, which is the same but for rounding; knows no vectors; and for three
        dimensions estimates some eigenvalues with others of the same step, where all here are of the step before.
        heavyball's takes the diagonal of QL^T L QL for a, at each step, and rescales the factors to equal norms.
    """

    decay = Decay.DECOUPLED_AFTER
    adam: ClassVar[bool] = False
    names = (Name("klshampoo"),)
    lr: float = hyper(1e-4, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.98), "decay rates of M, and of L, R, a and b")
    shampoo_beta: float = hyper(-1.0, "decay rate of L, R, a and b; below 0 it is beta2", low=-1.0, below=1.0)
    eps: float = hyper(1e-8, "added to the root that M is divided by")
    weight_decay: float = hyper(0.01, "decoupled weight decay, per step and unit of lr")
    precondition_frequency: int = hyper(10, "steps from one basis to the next", low=1)
    init_factor: float = hyper(0.1, "what a and b begin as", above=0.0, excluded="would divide by 0")
    max_clamp_value: int = hyper(4000, "bound of 1 / sqrt(a), as a's length is one, but never below 10", low=1)
    max_precond_dim: int = hyper(10000, "largest dimension that has a factor", low=1)

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        # Sides of one entry are none: the author squeezes them away.
        factored = tuple(1 < size <= group["max_precond_dim"] for size in param.shape)
        if sum(size != 1 for size in param.shape) < 2 or not any(factored):
            return _ADAMW
        return kl_shampoo(factored, group["init_factor"], self.adam)


class KLSOAP(KLShampoo):
    """SOAP in the eigenbases of KL-Shampoo's factors.

    With G' the gradient in these bases (`KLShampoo`, from which all else is):

        M = beta1 M + (1 - beta1) G'
        V = beta2 V + (1 - beta2) G'^2
        P = P - lr QL (M / (sqrt(V) + eps)) QR^T
        P = P - lr weight_decay P

    Other than in SOAP there is no bias correction, and columns of the bases keep their places.

    State: `exp_avg` (M), `exp_avg_sq` (V), for every factored dimension i `GG_i`, `Q_i` and `eigenvalues_i`.

    Raises:
        TypeError: a complex parameter with factors.

    Source:
        Lin et al., Understanding and Improving Shampoo and SOAP via Kullback-Leibler Minimization, arXiv 2509.03378;
        yorkerlin/KL-Methods, `KLOpt` with `using_klsoap`. NVIDIA's Emerging-Optimizers (`use_kl_shampoo`) and heavyball
        take the diagonal of QL^T L QL for the eigenvalues, and correct biases.
    """

    adam: ClassVar[bool] = True
    names = (Name("klsoap"),)
    betas: tuple[float, float] = hyper((0.9, 0.98), "decay rates of M and V")
