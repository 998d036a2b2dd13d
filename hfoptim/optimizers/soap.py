"""SOAP: Adam in the eigenbases of Shampoo's preconditioner."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import ELEMENT, MATRIX, TENSOR, Decay, Group, Name, Rule, RuleOptimizer, Scalars, hyper, rms
from hfoptim.optimizers.shared.kronecker import Folding, add_gram, along, at_sides, eigenvectors, factor_rates, iterated
from hfoptim.optimizers.shared.moments import adam_state, folded, moments, moments_step, normed

# What the root mean square of an update is kept above by `normalize_grads`.
_TINY = 1e-30


def _rates(t: int, group: Group) -> Scalars:
    """Adam's of the steps after the first, which makes the preconditioner and moves nothing."""
    scalars = {**folded(max(t - 1, 1), group), "decay": float(group["lr"]) * group["weight_decay"]}
    return scalars if t > 1 else {**dict.fromkeys(scalars, 0.0), "eps": 1.0}


def _matrix_rates(t: int, group: Group) -> Scalars:
    return {**_rates(t, group), **factor_rates(t, group)}


@cache
def without_factors(normalize: bool) -> Rule:
    """The rule for what has no factors: Adam from the second step on."""

    def soap_without_factors(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, ...]:
        update, *state = moments_step(grad, param, exp_avg, exp_avg_sq, h)
        return (update / (rms(update) + _TINY) if normalize else update, *state)

    return Rule(soap_without_factors, TENSOR if normalize else ELEMENT, adam_state(amsgrad=False), _rates)


@cache
def soap(
    folding: Folding,
    factored: tuple[bool, ...],
    normalize: bool,
    finish: Callable[[Tensor], Tensor] | None = None,
    shape: Callable[[torch.Size], tuple[int, ...]] | None = None,
) -> Rule:
    """The rule for a parameter with factors.

    Args:
        folding: as what the factors see it.
        factored: which sides have one.
        normalize: whether updates are brought to a root mean square of 1.
        finish: what is made of an update in the bases, before it is turned back.
        shape: as the rule's.
    """
    places, count = [i for i, has in enumerate(factored) if has], len(factored)
    sides = tuple(range(-count, 0))

    def along_side(order: Tensor, side: int) -> Tensor:
        return order.reshape(*order.shape[:-1], *[-1 if i == side else 1 for i in range(count)])

    def fn(grad: Tensor, param: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, *args: Any) -> tuple[Any, ...]:
        *kept, h = args
        factors, bases = kept[: len(places)], kept[len(places) :]
        seen = folding.fold(grad)
        factors = [
            add_gram(factor, seen, side, count, h.keep, h.alpha) for factor, side in zip(factors, places, strict=True)
        ]
        if h.first:
            return torch.zeros_like(grad), None, None, *factors, *map(eigenvectors, factors)
        mean, second = (folding.fold(each) for each in (exp_avg, exp_avg_sq))
        mean, second = moments(along(seen, at_sides(bases, factored)), mean, second, h)
        back = at_sides([basis.mT for basis in bases], factored)
        update = normed(mean, second, h)[0]
        update = along(update if finish is None else finish(update), back)
        if normalize:
            update = update / (update.square().mean(sides, keepdim=True).sqrt() + _TINY)
        new: list[Any] = [None] * len(bases)
        if h.refresh:
            mean = along(mean, back)
            for i, (factor, side) in enumerate(zip(factors, places, strict=True)):
                new[i], order = iterated(factor, bases[i])
                order = along_side(order, side)
                second = second.gather(side - count, order.expand(second.shape))
            mean = along(mean, at_sides(new, factored))
        return *(folding.unfold(each, param) for each in (update, mean, second)), *factors, *new

    fn.__name__ = "soap"
    state = {f"{name}_{side}": folding.square(side) for name in ("GG", "Q") for side in places}
    return Rule(fn, MATRIX, {**adam_state(amsgrad=False), **state}, _matrix_rates, shape=shape, dims=folding.ndim)


class SOAP(RuleOptimizer):
    """Adam in the eigenbases of Shampoo's preconditioner, which is made anew every few steps.

    With G the gradient of a matrix P, at step t + 1, the first one apart:

        G' = QL^T G QR
        M = beta1 M + (1 - beta1) G'
        V = beta2 V + (1 - beta2) G'^2
        U = QL (M / (sqrt(V) + eps)) QR^T,  with normalize_grads divided by its root mean square
        L = beta L + (1 - beta) G G^T,  R = beta R + (1 - beta) G^T G
        every precondition_frequency steps, for L, and alike for R:
            the columns of QL and the rows of M and V by falling diagonal entries of QL^T L QL
            QL = Q of the QR decomposition of L QL,  M turned into the new bases
        P = P - lr sqrt(1 - beta2^t) / (1 - beta1^t) U
        P = P - lr weight_decay P

    The first step makes L and R of its gradient, and QL and QR their eigenvectors, and leaves P as it is. `beta` is
    `shampoo_beta`, or beta2 where that is negative.

    A tensor of more dimensions has a factor L and a basis QL for each of them. A dimension above `max_precond_dim` has
    none: an embedding's other side still has one. With `merge_dims` neighbouring dimensions count as one as long as
    their product is at most `max_precond_dim`, in the order (out, in, height, width); `data_format="channels_last"`
    says that kernels lie as (out, height, width, in). Vectors have a factor with `precondition_1d`. What has no factor
    takes Adam's step, from the second one on.

    State: `exp_avg` (M), `exp_avg_sq` (V), for every factored dimension i `GG_i` and `Q_i`: two square matrices.

    Raises:
        TypeError: a complex parameter with factors.

    Source:
        Vyas et al., SOAP, arXiv 2409.11321; nikhilvyas/SOAP. pytorch_optimizer 4.1 adds eps, not 1e-30, to the root
        mean square of `normalize_grads`, and merges no dimensions that are small enough to become one.
    """

    decay = Decay.DECOUPLED_AFTER
    names = (Name("soap"),)
    lr: float = hyper(3e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.95, 0.95), "decay rates of M and V")
    shampoo_beta: float = hyper(-1.0, "decay rate of L and R; below 0 it is beta2", low=-1.0, below=1.0)
    eps: float = hyper(1e-8, "added to the root of V")
    weight_decay: float = hyper(0.01, "decoupled weight decay, per step and unit of lr")
    precondition_frequency: int = hyper(10, "steps from one basis to the next", low=1)
    max_precond_dim: int = hyper(10000, "largest dimension that has a factor", low=1)
    merge_dims: bool = hyper(False, "whether small neighbouring dimensions count as one")
    precondition_1d: bool = hyper(False, "whether vectors have a factor")
    normalize_grads: bool = hyper(False, "bring each update to a root mean square of 1")
    data_format: str = hyper(
        "channels_first", "how kernels lie, for merge_dims", choices=("channels_first", "channels_last")
    )
    correct_bias: bool = hyper(True, "divide M and V by their bias corrections")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        largest, vector, merge = group["max_precond_dim"], param.ndim < 2, group["merge_dims"]
        channels_last = merge and group["data_format"] == "channels_last" and param.ndim == 4
        folding = Folding(param.ndim, largest if merge and not vector else 0, channels_last)
        sides = folding.sides(param.shape)
        factored = tuple(side <= largest and (not vector or group["precondition_1d"]) for side in sides)
        if not any(factored):
            return without_factors(group["normalize_grads"])
        return soap(folding, factored, group["normalize_grads"])
