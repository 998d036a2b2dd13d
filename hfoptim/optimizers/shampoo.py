"""Shampoo: a gradient between inverse roots of its own second moments; whole, or in blocks with grafting."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

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
    add_scaled,
    bias_correction,
    ema,
    hyper,
    nonnegative,
    zeros,
)
from hfoptim.engine.checks import entries, number
from hfoptim.optimizers.shared.decay_options import FIXED_DECAY, decoupling, fixed_decay
from hfoptim.optimizers.shared.kronecker import (
    Blocks,
    Folding,
    add_gram,
    along,
    chebyshev_inverse_root,
    inverse_root,
    newton_inverse_root,
)


def _shampoo_rates(t: int, group: Group) -> Scalars:
    return {
        "momentum": group["momentum"] if t > 1 else 0.0,
        "refresh": (t - 1) % group["preconditioning_compute_steps"] == 0,
        "eps": group["matrix_eps"],
        **fixed_decay(group),
    }


@cache
def shampoo(ndim: int, momentum: bool, coupled: bool) -> Rule:
    """The rule for parameters of so many dimensions.

    Args:
        ndim: how many; each has a factor.
        momentum: whether there is any.
        coupled: whether weight decay is added to what is preconditioned.
    """
    folding = Folding(ndim)

    def fn(grad: Any, param: Any, *args: Any) -> tuple[Any, ...]:
        *state, h = args
        factors, roots, buffer = state[:ndim], state[ndim : 2 * ndim], state[2 * ndim :]
        mixed = ema(grad, buffer[0], h.momentum) if momentum else grad
        mixed = add_scaled(mixed, param, h.weight_decay) if coupled else mixed
        if not ndim:
            return (mixed, *([mixed] if momentum else []))
        seen = folding.fold(mixed)
        factors = [add_gram(factor, seen, side, ndim, 1.0, 1.0) for side, factor in enumerate(factors)]
        new = [inverse_root(factor, 2 * ndim, h.eps) for factor in factors] if h.refresh else [None] * ndim
        update = folding.unfold(along(seen, new if h.refresh else roots), param)
        return (update, *factors, *new, *([update] if momentum else []))

    fn.__name__ = "shampoo"
    state = {f"{name}_{i}": folding.square(i) for name in ("pre_cond", "inv_pre_cond") for i in range(ndim)}
    state |= {"momentum_buffer": zeros} if momentum else {}
    return Rule(fn, MATRIX if ndim else ELEMENT, state, _shampoo_rates, dims=ndim)


class Shampoo(RuleOptimizer):
    """The gradient between inverse fourth roots of the sums of its products with itself, from both sides.

    With G the gradient of a matrix P of k = 2 dimensions:

        G = G + weight_decay P                              (unless weight_decouple)
        L = L + G G^T,  R = R + G^T G
        A = (L + matrix_eps)^(-1 / 2k),  B = (R + matrix_eps)^(-1 / 2k)     (every preconditioning_compute_steps steps)
        P = P - lr A G B

    A tensor of k dimensions has a sum and a root for each; the first step makes roots, too. With momentum the G of the
    first line is (1 - momentum) G + momentum U, U the step before, A G B. With weight_decouple P loses lr weight_decay
    P first, with fixed_decay weight_decay P.

    A side of n entries costs two matrices of n^2, so an embedding of 50,000 rows has no place here:
    `DistributedShampoo` cuts it into blocks. State: for every dimension i `pre_cond_i` (L, R) and `inv_pre_cond_i`
    (A, B); `momentum_buffer` (U).

    Raises:
        TypeError: a complex parameter of one dimension or more.

    Source:
        Gupta, Koren and Singer, Shampoo, arXiv 1802.09568, algorithm 2, with the options that pytorch_optimizer's class
        has. That one (4.1) does not move before its first roots, which it makes at step
        `preconditioning_compute_steps`. jettify's takes the root 1 / k and sums what it has preconditioned already.
    """

    names = (Name("shampoo"),)
    lr: float = hyper(1e-3, "learning rate")
    momentum: float = hyper(0.0, "share of the last step in what is preconditioned", below=1.0)
    weight_decay: float = hyper(0.0, "weight decay, added to the gradient unless decoupled")
    weight_decouple: bool = decoupling(False)
    fixed_decay: bool = FIXED_DECAY
    preconditioning_compute_steps: int = hyper(1, "steps from one root to the next", low=1)
    matrix_eps: float = hyper(
        1e-6, "added to the diagonals of L and R", above=0.0, excluded="would divide by 0 where no gradient has been"
    )

    def decay_for(self, group: Group) -> Decay:
        return Decay.DECOUPLED if group["weight_decouple"] else Decay.INSIDE

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        coupled = not group["weight_decouple"] and group["weight_decay"] > 0.0
        return shampoo(param.ndim, group["momentum"] > 0.0, coupled)


# What an update takes its size from, with the weights of the old and of a new square in its second moment, at step t.
_GRAFTED = {
    "sgd": None,
    "adagrad": lambda beta, t: (1.0, 1.0, 1.0),
    "rmsprop": lambda beta, t: (beta, 1.0 - beta, 1.0),
    "adam": lambda beta, t: (beta, 1.0 - beta, bias_correction(beta, t)),
}


def _distributed_rates(t: int, group: Group) -> Scalars:
    (beta1, beta2), beta3, every = group["betas"], group["beta3"], group["precondition_frequency"]
    beta3 = beta1 if beta3 < 0.0 else beta3
    start = group["start_preconditioning_step"] if group["start_preconditioning_step"] > 0 else every
    corrects = group["use_bias_correction"]
    scalars = {
        "alpha1": 1.0 - beta1,
        "alpha3": 1.0 - beta3,
        "scale": 1.0 / (1.0 - beta3 * beta1 ** (t - 1)) if corrects and beta1 > 0.0 else 1.0,
        "keep": beta2,
        "alpha2": 1.0 - beta2 if beta2 < 1.0 else 1.0,
        "rest": 1.0 / bias_correction(beta2, t) if corrects and beta2 < 1.0 else 1.0,
        "eps": group["epsilon"],
        "refresh": t == start or (t > start and t % every == 0),
        "started": t >= start,
    }
    weights = _GRAFTED[group["grafting"]] if group["grafting"] else None
    if weights is not None:
        keep, alpha, correction = weights(group["grafting_beta2"], t)
        more = {"graft_keep": keep, "graft_alpha": alpha, "graft_rest": 1.0 / correction}
        scalars |= {**more, "graft_eps": group["grafting_epsilon"]}
    return scalars


def _two_sides(shape: torch.Size) -> tuple[int, ...]:
    """The first dimension of more than one entry, and all others as one."""
    sides = [size for size in shape if size != 1] or [1]
    return tuple(sides) if len(sides) < 2 else (sides[0], math.prod(sides[1:]))


@cache
def distributed_shampoo(
    blocks: Blocks, sides: int, kinds: int, filtered: str, grafting: str | None, method: str = "eigh", count_of: int = 0
) -> Rule:
    """The rule for parameters that are cut alike.

    Args:
        blocks: how they are cut.
        sides: how many a block has.
        kinds: how many shapes the blocks have.
        filtered: "" for the gradient as it is, "once" for a moving average, "twice" for one with a beta3.
        grafting: a key of `_GRAFTED`, or None.
        method: how roots are made, a choice of `root_method`.
        count_of: its iterations, or the degree of its polynomial.
    """
    count, over = sides * kinds, tuple(range(-sides, 0))
    divided = _GRAFTED[grafting] is not None if grafting else False

    def norm(x: Tensor) -> Tensor:
        found: Tensor = torch.linalg.vector_norm(x, dim=over, keepdim=True)
        return found

    def rooted(factor: Tensor, eps: float) -> Tensor:
        if method == "newton_db":
            return newton_inverse_root(factor, 2 * sides, eps, count_of)
        if method == "chebyshev":
            return chebyshev_inverse_root(factor, 2 * sides, eps, count_of)
        return inverse_root(factor, 2 * sides, eps)

    def fn(grad: Tensor, param: Tensor, *args: Any) -> tuple[Any, ...]:
        *state, h = args
        factors, roots, more = state[:count], state[count : 2 * count], state[2 * count :]
        parts = blocks.cut(grad)
        factors = [add_gram(factors[i], parts[i // sides], i % sides, sides, h.keep, h.alpha2) for i in range(count)]
        new: list[Any] = [None] * count
        if h.refresh:
            new = [rooted(factor * h.rest, h.eps) for factor in factors]
        direction, kept = grad, []
        if filtered:
            average = ema(more[0], grad, h.alpha1)
            direction = (ema(more[0], grad, h.alpha3) if filtered == "twice" else average) * h.scale
            kept.append(average)
        graft = direction
        if divided:
            squares = add_scaled(more[-1] * h.graft_keep, grad.square(), h.graft_alpha)
            graft = direction / ((squares * h.graft_rest).sqrt() + h.graft_eps)
            kept.append(squares)
        if grafting and not h.started:
            return (graft, *factors, *new, *kept)
        current = new if h.refresh else roots
        parts = parts if direction is grad else blocks.cut(direction)
        made = [along(part, current[sides * i : sides * (i + 1)]) for i, part in enumerate(parts)]
        if grafting:
            sizes = zip(made, parts if graft is direction else blocks.cut(graft), strict=True)
            made = [each * (norm(sized) / (norm(each) + 1e-16)) for each, sized in sizes]
        return (blocks.join(made, param), *factors, *new, *kept)

    fn.__name__ = "distributed_shampoo"
    state = {
        f"{name}_{kind}_{side}": blocks.square(kind, side, value)
        for name, value in (("factor_matrix", 0.0), ("inv_factor_matrix", 1.0))
        for kind in range(kinds)
        for side in range(sides)
    }
    state |= {"filtered_grad": zeros} if filtered else {}
    state |= {"adagrad": nonnegative} if divided else {}
    shape = None if method == "eigh" else _two_sides
    return Rule(fn, MATRIX, state, _distributed_rates, shape=shape, dims=blocks.folding.ndim)


def _betas(name: str, value: Any) -> tuple[float, float]:
    """Two rates, of which the second may be 1."""
    given = entries(value)
    if given is None or len(given) != 2:
        raise ValueError(f"{name}={value!r}, expected two numbers")
    return number(name, given[0], 0.0, 1.0), number(name, given[1], 0.0, 1.0, high_open=False)


class DistributedShampoo(RuleOptimizer):
    """Shampoo in blocks, with roots every few steps and the size of each block's update from another optimizer.

    With G the gradient of a block P of k dimensions, k = 2, at step t, c = 1 - beta2^t, or 1 for beta2 = 1 or without
    use_bias_correction:

        L = beta2 L + (1 - beta2) G G^T,  R = beta2 R + (1 - beta2) G^T G     (for beta2 = 1: sums)
        A = (L / c + epsilon)^(-1 / 2k),  B = (R / c + epsilon)^(-1 / 2k)     (every precondition_frequency steps)
        M = beta1 M + (1 - beta1) G,  F = M / (1 - beta1^t)
        D = A F B
        D = D |Q| / (|D| + 1e-16)                                             (with grafting)
        P = P - lr D - lr weight_decay P

    and Q the update that another optimizer makes of F, v its second moment: F itself ("sgd"), F / (sqrt(v) +
    grafting_epsilon) with v a sum ("adagrad"), a moving average ("rmsprop"), or that corrected ("adam"). From
    `start_preconditioning_step` on there are roots; before it P takes Q, or F without grafting. With `beta3` F is
    (beta3 M + (1 - beta3) G) / (1 - beta3 beta1^(t-1)), M of the step before: with a beta1 of 0.9 one of 0.81 is about
    NAdam's.

    Dimensions of 1 are left out, and neighbouring ones are merged from the last on, as long as that has no more than
    `max_preconditioner_dim` entries. What is longer is cut into blocks of so many. So a vector has one factor, of all
    its entries, and a small matrix, too.

    With `root_method="newton_db"` (DASH) the roots are those of `newton_steps` iterations of Newton's, Denman's and
    Beavers' kind,

        Y = Y E,  Z = E Z,  E = (3 - Z Y) / 2,  from Z = 1 and Y = L / s,  s a bound of its eigenvalues

    of which Y becomes the root of L / s and Z that of its inverse; twice for a fourth root. These are products alone,
    which suits a GPU, where eigendecompositions are slow. Eigenvalues far below the largest (3e-4 of it with 10 steps)
    count as larger than they are. With "chebyshev" they are a polynomial of `chebyshev_degree` in L,

        A = s^(-1 / 2k) sum of c_i T_i(2 L / s - 1),  c_i of Chebyshev's series of (x + epsilon)^(-1 / 2k) on [0, 1]

    where epsilon is a share of s: half as many products as ten iterations of Newton's take, and further from the root
    where eigenvalues are far below the largest. A tensor of three and more dimensions is a matrix then, with a row for
    each entry of the first one.

    The class has the defaults of its authors; the name "distributed_shampoo" stands for those they show in place of
    AdamW: `betas=(0.9, 0.999)`, roots every 100 steps, `grafting="adam"` with `grafting_epsilon=1e-8`. Then lr and
    weight decay are AdamW's. "dash" has the defaults of DASH, with roots every 10 steps, from the first one on. State:
    `factor_matrix_i_j` (L, R) and `inv_factor_matrix_i_j` (A, B) for blocks of shape i and their side j;
    `filtered_grad` (M), `adagrad` (v).

    Raises:
        TypeError: a complex parameter.

    Source:
        Shi et al., A Distributed Data-Parallel PyTorch Implementation of Shampoo, arXiv 2309.06497;
        facebookresearch/optimizers, with eigendecompositions, its default. Anil et al., Scalable Second Order
        Optimization, arXiv 2002.09018, whose code and pytorch_optimizer's ScalableShampoo take the norms for grafting
        over whole tensors, and the roots by an iteration that is exact to 1e-3. Modoranu et al., DASH, arXiv
        2602.02016; IST-DASLab/ISTA-DASLab-Optimizers, and pytorch_optimizer 4.1's DASH: they do not correct the bias of
        L and R, which counts against `epsilon` alone, have two factors for small matrices, too, and their s is twice an
        estimate of the largest eigenvalue by power iterations in bfloat16 from random vectors, where it is the 8th root
        of the sum of 8th powers here, and their polynomials leave s^(-1 / 2k) to the grafting. Coupled Newton is not
        here, nor is their momentum of updates; by default they leave vectors to AdamW.
    """

    names = (
        Name(
            "distributed_shampoo",
            options={
                "betas": (0.9, 0.999),
                "precondition_frequency": 100,
                "grafting": "adam",
                "grafting_epsilon": 1e-8,
            },
            aliases=("scalable_shampoo",),
        ),
        Name(
            "dash",
            "Shampoo in blocks with roots by Newton's iteration, and Adam's size of each block's update",
            "https://arxiv.org/abs/2602.02016",
            {
                "lr": 1e-3,
                "betas": (0.9, 0.95),
                "epsilon": 1e-10,
                "precondition_frequency": 10,
                "start_preconditioning_step": 1,
                "grafting": "adam",
                "grafting_beta2": 0.95,
                "grafting_epsilon": 1e-8,
                "root_method": "newton_db",
            },
        ),
    )
    lr: float = hyper(1e-2, "learning rate")
    betas: Any = hyper((0.9, 1.0), "decay rates of M, and of L and R; the second may be 1", check=_betas)
    beta3: float = hyper(-1.0, "weight of M in what is preconditioned; below 0 it is beta1", low=-1.0, below=1.0)
    epsilon: float = hyper(1e-12, "added to the eigenvalues of L and R", above=0.0, excluded="would divide by 0")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    max_preconditioner_dim: int = hyper(1024, "most entries of a block along one side", low=1)
    precondition_frequency: int = hyper(1, "steps from one root to the next", low=1)
    start_preconditioning_step: int = hyper(-1, "step of the first roots; below 1 precondition_frequency", low=-1)
    use_bias_correction: bool = hyper(True, "divide M, L and R by their bias corrections")
    grafting: str | None = hyper(None, "whose size a block's update has", choices=tuple(_GRAFTED))
    grafting_beta2: float = hyper(0.999, "decay rate of v", below=1.0)
    grafting_epsilon: float = hyper(1e-10, "added to the root of v")
    root_method: str = hyper("eigh", "how roots are made", choices=("eigh", "newton_db", "chebyshev"), in_peers=False)
    newton_steps: int = hyper(10, "iterations of Newton, Denman and Beavers", low=1, most=99, in_peers=False)
    chebyshev_degree: int = hyper(20, "degree of Chebyshev's polynomial", low=2, most=999, in_peers=False)

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        size, method = group["max_preconditioner_dim"], group["root_method"]
        seen = param.shape if method == "eigh" else torch.Size(_two_sides(param.shape))
        blocks = Blocks(Folding(len(seen), size, backwards=True), size)
        kinds = blocks.kinds(seen)
        filtered = "" if group["betas"][0] == 0.0 else "once" if group["beta3"] < 0.0 else "twice"
        count = {"eigh": 0, "newton_db": group["newton_steps"], "chebyshev": group["chebyshev_degree"]}[method]
        sides = len(blocks.folding.sides(seen))
        return distributed_shampoo(blocks, sides, len(kinds), filtered, group["grafting"], method, count)
