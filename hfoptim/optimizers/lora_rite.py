"""LoRA-RITE: steps of LoRA's factors that do not depend on how their product is divided between them."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import MATRIX, Group, Name, Partner, Probe, Rule, Scalars, State, ema, hyper, zeros
from hfoptim.optimizers.adam import adam
from hfoptim.optimizers.shared.adapters import Adapters
from hfoptim.optimizers.shared.clipping import clip_factor
from hfoptim.optimizers.shared.matrices import as_matrix
from hfoptim.optimizers.shared.moments import debiased_rates


def _limits(t: int, group: Group) -> Scalars:
    return {"skip": group["update_skipping"] or math.inf}


def _scalars(t: int, group: Group, unmagnified_sq: Any = None) -> Scalars:
    clip = 1.0 if unmagnified_sq is None else clip_factor(unmagnified_sq, group["clip_unmagnified_grad"])
    own = {"clip": clip, "eps": group["eps"], "cap": group["update_capping"] or math.inf}
    return {**debiased_rates(t, group), **_limits(t, group), **own}


def _size(x: Tensor) -> Tensor:
    return x.square().mean((-2, -1), keepdim=True).sqrt()


def _trace(x: Tensor) -> Tensor:
    return x.diagonal(dim1=-2, dim2=-1).sum(-1)


def _symmetric(x: Tensor) -> Tensor:
    return (x + x.mT) / 2


def _escaped(old: Tensor, new: Tensor) -> Tensor:
    """How much of a second moment another basis leaves out, by its eigenvalues and by its trace."""
    values = torch.linalg.eigvalsh(torch.nan_to_num(old)) - torch.linalg.eigvalsh(torch.nan_to_num(new))
    return torch.minimum(values.amax(-1), _trace(old) - _trace(new)).clamp(min=0.0)


@cache
def lora_rite(is_first: bool, partner: tuple[int, int], clips: bool, escapes: bool) -> Rule:
    """The rule of one factor.

    Args:
        is_first: whether it is A, of as many rows as the rank.
        partner: the other one's shape, with the rank last.
        clips: whether the gradients of all factors are clipped together.
        escapes: whether what the second moment loses with its basis is added to it.
    """
    rank = partner[1]

    def turned(x: Tensor) -> Tensor:
        """With the rank last; and back."""
        return x.mT if is_first else x

    def met(other: Tensor, basis: Tensor, inverse: Tensor, change: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        other = other.flatten(2)
        new, rotation = torch.linalg.qr(other if is_first else other.mT)
        # Numbers that are not finite would raise an error, here and not where they came from.
        return new, torch.linalg.pinv(torch.nan_to_num(rotation, 0.0, 0.0, 0.0)), new.mT @ basis

    def unmagnified(grad: Tensor, inverse: Tensor, h: Any) -> Tensor:
        update = turned(grad) @ inverse
        return torch.where(_size(update) > h.skip, 0.0, update)

    def squares(grad: Tensor, param: Tensor, basis: Tensor, inverse: Tensor, *rest: Any) -> dict[str, Tensor]:
        return {"unmagnified_sq": unmagnified(grad, inverse, rest[-1]).square().sum()}

    def fn(grad: Tensor, param: Tensor, basis: Tensor, inverse: Tensor, change: Tensor, *args: Any) -> tuple[Any, ...]:
        first, second, *escape, h = args
        update = unmagnified(grad, inverse, h) * h.clip
        moved = torch.nan_to_num(_symmetric(change @ second @ change.mT))
        if escapes:
            escape = [(_escaped(second, moved) + escape[0]) * (1.0 - h.alpha2)]
        second = ema(moved, update.mT @ update / update.shape[-2], h.alpha2)
        values, vectors = torch.linalg.eigh(torch.nan_to_num(second, 0.0, 0.0, 0.0))
        values = values.clamp(min=0.0) + (escape[0][..., None] if escapes else 0.0)
        root = vectors / (values.sqrt() + h.eps)[..., None, :] @ vectors.mT
        first = ema(turned(first) @ change.mT, torch.nan_to_num(update @ root), h.alpha1)
        step = first / (_size(first) / h.cap).clamp(min=1.0)
        return turned(step @ inverse.mT), None, None, None, turned(first), second, *escape

    def square(param: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.zeros(rank, rank, dtype=dtype, device=param.device)

    def as_partner(param: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.zeros(partner, dtype=dtype, device=param.device)

    def number(param: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.zeros((), dtype=dtype, device=param.device)

    fn.__name__ = "lora_rite"
    of_partner = {"basis": State(as_partner), "inverse": State(square), "change": State(square)}
    moments = {"exp_avg": zeros, "exp_avg_sq": State(square)}
    return Rule(
        fn,
        MATRIX,
        {**of_partner, **moments, **({"escape": State(number, signed=False)} if escapes else {})},
        _scalars,
        Probe(squares, _limits) if clips else None,
        shape=as_matrix,
        partner=Partner(tuple(of_partner), met),
    )


class LoRARite(Adapters):
    """Steps of LoRA's factors A and B that move their product alike, however it is divided between them.

    With P one factor with the rank r in its columns (B, or A transposed), of n rows, Y the other one, G the gradient of
    P, t the step, and Q', M, V of the step before:

        Y = Q R                                         (Q orthonormal, R of r rows and columns)
        U = G R^+;  U = 0 if rms(U) > update_skipping
        U = U / max(1, |all U| / clip_unmagnified_grad)
        C = Q^T Q'
        V = b2 C V C^T + (1 - b2) U^T U / n,            b2 = beta2 (1 - beta2^(t-1)) / (1 - beta2^t)
        M = b1 M C^T + (1 - b1) U (sqrt(V) + eps)^-1,   b1 = beta1 (1 - beta1^(t-1)) / (1 - beta1^t)
        S = M / max(1, rms(M) / update_capping)
        P = P - lr S (R^+)^T - lr weight_decay P

    Both factors go by each other's value before the step. With `apply_escape` a number is added to the eigenvalues of
    V: e = b2 (e + d), d what V loses in C V C^T, its trace or what its largest change of an eigenvalue is, whichever is
    less. Both are found by peft's names (`lora_A`, `lora_B`), so the optimizer needs those of the parameters; what is
    no factor, such as a head or a bias, takes Adam's step with `weight_decay`. Kernels count as matrices with a row for
    each output; DoRA's magnitudes are no factors.

    State: `basis` (Q), `inverse` (R^+) and `change` (C), which are made of the other factor before each step;
    `exp_avg` (M, in the shape of the factor), `exp_avg_sq` (V), `escape` (e). With FSDP2 each factor is gathered once
    more for it.

    Follows the author's code, but for eigenvalues of V that rounding makes negative, which are 0 here. There, with
    `relative_epsilon` a step fails, and `balance_param` evens out the norms of both factors after it: neither is here.
    pytorch_optimizer 4.1 adds eps^2 to V, and keeps M as `update_capping` leaves it.

    Raises:
        ValueError: a factor without the other, or shapes that do not fit.
        TypeError: a complex factor.

    Source:
        Yen et al., LoRA Done RITE: Robust Invariant Transformation Equilibration for LoRA Optimization, arXiv
        2410.20625; gkevinyen5418/LoRA-RITE, the author's.
    """

    names = (Name("lora_rite"),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of M and V, and Adam's")
    eps: float = hyper(1e-6, "added to the root of V, and Adam's")
    clip_unmagnified_grad: float = hyper(1.0, "largest norm of all U together; 0 does not clip")
    update_capping: float = hyper(0.0, "largest root mean square of M; 0 does not cap")
    update_skipping: float = hyper(1.0, "root mean square of U above which a factor's gradient is left out; 0: none")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    apply_escape: bool = hyper(False, "add to V what it loses with its basis")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        factor = self.factor_of(param, group)
        if factor is None:
            return adam
        clips = group["clip_unmagnified_grad"] > 0.0
        return lora_rite(factor.is_first, factor.partner_shape, clips, group["apply_escape"])

    def taken_by(self, param: Tensor, group: dict[str, Any]) -> str:
        factor = self.factor_of(param, group)
        return "Adam" if factor is None else f"factor {'A' if factor.is_first else 'B'}"
