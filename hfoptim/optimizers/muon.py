"""Muon: momentum made orthogonal, for the matrices inside a network, with AdamW for everything else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import (
    MATRIX,
    Group,
    MatrixFunction,
    Name,
    Rule,
    Scalars,
    bias_correction,
    ema,
    hyper,
    nonnegative,
    zeros,
    zeros_over,
)
from hfoptim.optimizers.shared import newton_schulz
from hfoptim.optimizers.shared.matrices import Form, MatrixOptimizer
from hfoptim.optimizers.shared.newton_schulz import NewtonSchulz, Triple, newton_schulz_of
from hfoptim.optimizers.shared.peer_flags import any_value
from hfoptim.optimizers.shared.spectral import LR_SCALES, by_shape, direction, momentum_rates, over_matrix


def _adaptive_rates(t: int, group: Group) -> Scalars:
    beta2 = group["betas"][1]
    # An update that is brought to one size needs no bias correction.
    root = 1.0 if group["adjust_lr_fn"] == "match_rms_adamw" else math.sqrt(bias_correction(beta2, t))
    return {**momentum_rates(t, group), "alpha2": 1.0 - beta2, "inverse_root": 1.0 / root}


def _row_rates(t: int, group: Group) -> Scalars:
    return {**momentum_rates(t, group), "alpha2": 1.0 - group["betas"][1], "rms": 0.2}


_SECOND = {"muon": {}, "adamuon": {"exp_avg_sq": nonnegative}, "normuon": {"second_momentum_buffer": zeros_over(-1)}}
_RATES = {"muon": momentum_rates, "adamuon": _adaptive_rates, "normuon": _row_rates}
# What NorMuon adds to roots.
_TINY = 1e-10


@cache
def muon(form: Form, iteration: NewtonSchulz, nesterov: bool, scale: str, algo: str) -> Rule:
    """The rule for matrices of one form: the momentum made orthogonal, times a factor that follows from its shape.

    Args:
        form: how a parameter is matrices.
        iteration: makes them orthogonal.
        nesterov: look one step ahead.
        scale: one of `LR_SCALES`.
        algo: "adamuon" divides the direction by the root of the moving average of its square, entry by entry, "normuon"
            by that of each row's mean square.
    """
    adaptive = algo == "adamuon"
    brought_to_one_size = algo != "muon" and scale == "match_rms_adamw"

    @MatrixFunction
    def orthogonal(stacks: Sequence[Tensor], eps: Any) -> list[Tensor]:
        made = iteration.each
        if adaptive or brought_to_one_size:
            return form.all(lambda parts: list(made(parts, eps)), stacks)
        return form.all(lambda parts: [by_shape(part, scale) for part in made(parts, eps)], stacks)

    @MatrixFunction
    def rescaled(stacks: Sequence[Tensor], eps: Any) -> Sequence[Tensor]:
        if not brought_to_one_size:
            return form.all(lambda parts: [by_shape(part, scale) for part in parts], stacks)
        # In place, for nobody else has them; three launches each on a GPU.
        for part, dims in (view for stack in stacks for view in form.views(stack)):
            root = 0.2 * math.sqrt(math.prod(part.shape[dim] for dim in dims))
            norm = torch.linalg.vector_norm(part, dim=dims, keepdim=True)
            part /= torch.rsub(norm, eps / root, alpha=-1.0 / root)  # (norm + eps) / root
        return stacks

    def fn(grad: Any, param: Any, momentum_buffer: Any, *args: Any) -> tuple[Any, ...]:
        *second, h = args
        update, momentum_buffer = direction(grad, momentum_buffer, h, nesterov)
        update = orthogonal(update, h.eps)
        if algo == "muon":
            return update, momentum_buffer
        if algo == "normuon":
            rows = ema(second[0], (update * update).mean(dim=-1, keepdim=True), h.alpha2)
            even = update / (rows.sqrt() + _TINY)
            size = h.rms if brought_to_one_size else over_matrix(update * update, "mean").sqrt()
            return even * (size / (over_matrix(even * even, "mean").sqrt() + _TINY)), momentum_buffer, rows
        exp_avg_sq = ema(second[0], update * update, h.alpha2)
        update = update / (exp_avg_sq.sqrt() * h.inverse_root + h.eps)
        return rescaled(update, h.eps), momentum_buffer, exp_avg_sq

    fn.__name__ = algo
    return Rule(fn, MATRIX, {"momentum_buffer": zeros, **_SECOND[algo]}, _RATES[algo], shape=form.shape)


def _flattens(optimizer: MatrixOptimizer, value: Any, group: Group) -> bool:
    """Whether timm's `conv_mode` is the only one here, and its choice for everything else, by nesterov, the group's."""
    return value == "flatten" and (group["fallback"] == "nadamw") is bool(group["nesterov"])


class Muon(MatrixOptimizer):
    """Momentum made orthogonal for the matrices inside a network, AdamW for everything else, in one optimizer.

    With G the gradient, P the parameter, a matrix of r rows and c columns:

        B = momentum B + (1 - momentum) G
        U = (1 - momentum) G + momentum B with nesterov, else B
        O = NewtonSchulz(U), about the U V^T of its singular value decomposition
        P = P - lr s O - lr weight_decay P,  s = sqrt(max(1, r / c)) or 0.2 sqrt(max(r, c)) ("match_rms_adamw")

    and with `algo="adamuon"` (AdaMuon), D in place of s O:

        V = beta2 V + (1 - beta2) O^2
        D = 0.2 sqrt(r c) Q / |Q|,  Q = O / (sqrt(V) + eps) ("match_rms_adamw")
        D = s O / (sqrt(V / (1 - beta2^t)) + eps) (else)

    and with `algo="normuon"` (NorMuon), D in place of s O, W a number for each row:

        W = beta2 W + (1 - beta2) mean(O^2) of the row
        Q = O / (sqrt(W) + 1e-10)
        D = 0.2 sqrt(r c) Q / |Q| ("match_rms_adamw", as the paper), s |O| Q / |Q| (else, as the authors' code)

    Everything else, p with the moments m and v, takes AdamW's step with lr f, f = `fallback_lr_scale`:

        p = p - lr f (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)) - lr f weight_decay p

    State: `momentum_buffer` (B), `exp_avg_sq` (V), `second_momentum_buffer` (W, times s^2 where s is in D); for
    everything else `exp_avg` (m), `exp_avg_sq` (v). A state_dict of torch.optim.Muon loads, and one of timm's Muon.

    Hidden matrices are found by name: give the model's named parameters. Embeddings, heads, norms, biases, what has a
    side of 1 (depthwise convolutions, position tables) are never taken for one. `param_groups_muon(model)` makes groups
    that know more, tied weights for example; creation by name from a model and the Trainer use it. A group's `use_muon`
    decides for all of its parameters. Without names and without `use_muon` the parameters must all be matrices, picked
    by hand as for torch.optim.Muon; a mix with vectors is refused, for it would hold embeddings.

    Kernels of convolutions are flattened to (out, in * height * width); stacks of matrices (experts) are taken one by
    one; matrices that make queries, keys and values at once are divided into the three.

    The class has torch's defaults, which mean an lr near 0.02. The name "muon" stands for
    `adjust_lr_fn="match_rms_adamw"`: then lr and weight decay are those one would give AdamW, and both kinds of
    parameters share them. "nmuon" is timm's name for that with NAdamW for everything else, "adamuon" and "nadamuon" are
    those of AdaMuon, "normuon" that of NorMuon. "turbo_muon" has `ns_coefficients="turbo"`: with A = U U^T (of the
    shorter side), each row i of U is divided by the root of the sum of |A_ij|, and four iterations follow.

    Raises:
        ValueError: no hidden matrix among the parameters, one with fewer than two dimensions, or parameters that need
            names and have none.
        TypeError: a complex matrix.

    Source:
        Jordan et al., kellerjordan.github.io/posts/muon; Liu et al., Muon is Scalable for LLM Training, arXiv
        2502.16982; torch.optim.Muon, timm's Muon. Between them this follows torch; Jordan's code differs by its
        rounding in bfloat16. AdamW for everything else is Jordan's choice, timm takes NAdamW where nesterov is on.
        Si, Zhang and Shen, AdaMuon, arXiv 2507.11005, as timm has it: the authors' code takes the signs of B before
        Newton-Schulz, and `momentum` for beta2. Li et al., NorMuon, arXiv 2510.05491; zichongli5/NorMuon, which takes
        a row of a kernel for a matrix. Boissin et al., Turbo-Muon, arXiv 2512.04632; thib-s/flash-newton-schulz, which
        does not divide by the norm first, so that rows shorter than 1e-3 get smaller steps there.
    """

    hidden_matrices = True
    peer_state = {"use_muon": None}
    peer_flags = {"conv_mode": _flattens, "normalize_spatial": any_value, "verbose": any_value, "scale_eps": False}
    names = (
        Name("muon", options={"adjust_lr_fn": "match_rms_adamw"}),
        Name(
            "nmuon",
            "Muon with NAdamW for everything else",
            options={"adjust_lr_fn": "match_rms_adamw", "fallback": "nadamw"},
        ),
        Name(
            "adamuon",
            "Muon divided entry by entry by the root of its own second moment, AdamW for everything else",
            "https://arxiv.org/abs/2507.11005",
            {"algo": "adamuon", "adjust_lr_fn": "match_rms_adamw"},
        ),
        Name(
            "nadamuon",
            "AdaMuon with NAdamW for everything else",
            "https://arxiv.org/abs/2507.11005",
            {"algo": "adamuon", "adjust_lr_fn": "match_rms_adamw", "fallback": "nadamw"},
        ),
        Name(
            "normuon",
            "Muon with rows of equal size, by their second moments, AdamW for everything else",
            "https://arxiv.org/abs/2510.05491",
            {"algo": "normuon", "adjust_lr_fn": "match_rms_adamw"},
        ),
        Name(
            "turbo_muon",
            "Muon whose momentum is brought closer to an orthogonal matrix first, which saves an iteration",
            "https://arxiv.org/abs/2512.04632",
            {"adjust_lr_fn": "match_rms_adamw", "ns_coefficients": "turbo", "ns_steps": 4},
        ),
    )
    lr: float = hyper(1e-3, "learning rate")
    weight_decay: float = hyper(0.1, "decoupled weight decay, per step and unit of lr")
    momentum: float = hyper(0.95, "decay rate of B", below=1.0)
    nesterov: bool = hyper(True, "look one step ahead")
    ns_coefficients: str | Triple | Sequence[Triple] = newton_schulz.COEFFICIENTS
    eps: float = hyper(1e-7, "least norm that Newton-Schulz divides by; AdamW's and AdaMuon's eps")
    ns_steps: int = newton_schulz.STEPS
    adjust_lr_fn: str | None = hyper(
        None, 'the factor s; None is "original", the last two are sqrt(r / c) and 1 / sqrt(c)', choices=LR_SCALES
    )
    _: KW_ONLY
    safety_factor: float = newton_schulz.SAFETY_FACTOR
    algo: str = hyper("muon", "which rule takes the matrices", choices=tuple(_SECOND), in_peers=False)
    ns_dtype: torch.dtype | str | None = newton_schulz.DTYPE

    def matrix_rule(self, form: Form, group: dict[str, Any]) -> Rule:
        scale = group["adjust_lr_fn"] or "original"
        return muon(form, newton_schulz_of(group), group["nesterov"], scale, group["algo"])

    def adapt_loaded(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
        # Nothing follows from the number of Muon's own steps, so neither torch nor timm counts them.
        counts = "momentum_buffer" not in state or group["algo"] != "muon"
        return state if counts else {"step": 1.0, **state}
