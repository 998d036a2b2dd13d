"""Two small optimizers of kinds that the catalogue lacks: the step size follows from a distance, or from the loss."""

from __future__ import annotations

from typing import Any

import torch

from hfoptim.engine import ELEMENT, Probe, RuleOptimizer, RunState, clone, hyper, rule


def _sums(grad: Any, param: Any, start: Any, h: Any) -> dict[str, Any]:
    gone = param - start
    return {"gone_sq": gone.square().sum(), "grad_sq": grad.square().sum(), "start_sq": start.square().sum()}


def _distance(state: Any, totals: Any, group: Any) -> dict[str, Any]:
    """The largest distance from the start, and the sum of all squared gradients."""
    least = group["reps_rel"] * (1.0 + totals["start_sq"].sqrt())
    distance = torch.maximum(torch.maximum(state["distance"], least), totals["gone_sq"].sqrt())
    grad_sum = state["grad_sum"] + totals["grad_sq"]
    return {"distance": distance, "grad_sum": grad_sum, "k": state["k"] + 1, "size": distance / grad_sum.sqrt()}


def _sized(t: int, group: Any, size: Any, **totals: Any) -> dict[str, Any]:
    return {"lr": group["lr"] * size}


@rule(ELEMENT, per_step=_sized, probe=Probe(_sums), start=clone)
def dog(grad: Any, param: Any, start: Any, h: Any) -> tuple[Any, None]:
    return grad, None


class DoG(RuleOptimizer):
    """Distance over gradients: p = p - lr max|p - p0| / sqrt(sum |g|^2) g, over all parameters together."""

    rule = dog
    run_state = RunState(
        {"distance": 0.0, "grad_sum": 0.0, "k": 0},
        _distance,
        totals=("gone_sq", "grad_sq", "start_sq"),
        shared=True,
        common=("reps_rel",),
    )
    lr: float = hyper(1.0, "factor of the step size")
    reps_rel: float = hyper(1e-3, "first distance, relative to the start", above=0.0)
    weight_decay: float = hyper(0.0, "weight decay")


def _norm(grad: Any, param: Any, h: Any) -> dict[str, Any]:
    return {"grad_sq": grad.square().sum()}


def _polyak(state: Any, totals: Any, group: Any) -> dict[str, Any]:
    average = state["average"] + (totals["loss"] - state["average"]) * group["alpha"]
    size = totals["loss"] / (totals["grad_sq"] + group["eps"])
    return {"average": average, "size": size.clamp(max=group["lr"])}


def _of_size(t: int, group: Any, size: Any, **totals: Any) -> dict[str, Any]:
    return {"lr": size}


@rule(ELEMENT, per_step=_of_size, probe=Probe(_norm))
def alig(grad: Any, param: Any, h: Any) -> tuple[Any]:
    return (grad,)


class AliG(RuleOptimizer):
    """ALI-G's step size, min(lr, loss / |g|^2), and an average of the loss."""

    rule = alig
    needs_loss = True
    run_state = RunState({"average": 0.0}, _polyak, totals=("grad_sq",))
    lr: float = hyper(0.1, "largest step size")
    alpha: float = hyper(0.1, "weight of a loss in the average")
    eps: float = hyper(1e-5, "added to the squared norm")
    weight_decay: float = hyper(0.0, "weight decay")


def _from_loss(t: int, group: Any, loss: Any) -> dict[str, Any]:
    return {"lr": loss * group["lr"]}


class LossScaled(RuleOptimizer):
    """SGD with a step size of lr times the loss: no run state, no sums."""

    rule = rule(ELEMENT, per_step=_from_loss)(lambda grad, param, h: (grad,))
    needs_loss = True
    lr: float = hyper(0.1, "step size per unit of loss")
