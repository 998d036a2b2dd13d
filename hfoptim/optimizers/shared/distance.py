"""What optimizers share that find their step size from an estimate d of the distance to the solution."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY
from operator import itemgetter
from typing import Any, ClassVar

import torch
from torch import Tensor

from hfoptim.engine import Group, RuleOptimizer, RunState, State, hyper, zeros
from hfoptim.engine.checks import number, plain
from hfoptim.optimizers.shared.moments import corrected
from hfoptim.optimizers.shared.peer_flags import any_value

# Sums of gradients that estimates are made from: read before a step and compared over all steps, never in few bits.
exact_zeros = State(zeros.init)


def _growth(name: str, value: Any) -> float:
    return math.inf if plain(value) == math.inf else number(name, value, 1.0)


def sampled(x: Any, every: int) -> Any:
    """The entries that an estimate is made from: every so many-th."""
    return x if every == 1 else x.flatten()[::every]


def sample_of(state: State, every: int) -> State:
    """The same state, of those entries alone."""
    if every == 1:
        return state
    return State(lambda param, dtype: state.init(param, dtype).flatten()[::every].clone(), of_values=True)


LR_FACTOR: Any = hyper(1.0, "factor of the step size found; for a schedule. Below 0.01 it draws a warning")
D0: Any = hyper(1e-6, "first d", above=0.0)
GROWTH_RATE: Any = hyper(math.inf, "largest factor that d grows by in a step, at least 1", check=_growth)
FSDP_IN_USE: Any = hyper(
    False,
    "parameters are sharded over the ranks of torch.distributed: sums are taken over all ranks. PyTorch's "
    "FullyShardedDataParallel is noticed without it",
)


def rate(group: Group) -> float:
    """What d is multiplied by to give Adam's step size."""
    return corrected(group["k"] + 1, group)["lr"] if group["use_bias_correction"] else float(group["lr"])


def grown(state: Group, d_hat: Any, growth_rate: float = math.inf) -> Any:
    """D-Adaptation's d after a step: it only grows, to the bound d_hat that the gradients seen give, by a factor."""
    d = state["d"]
    return torch.maximum(d, torch.minimum(d_hat, d * growth_rate) if growth_rate < math.inf else d_hat)


def weighted(state: Group, totals: Mapping[str, Tensor], group: Group, rate: float) -> dict[str, Any]:
    """D-Adaptation from averages that forget at sqrt(beta2), for Adam and Lion.

        r = sqrt(beta2) r + (1 - sqrt(beta2)) numerator;  d_hat = r / ((1 - sqrt(beta2)) denominator)

    Args:
        state: that of the run.
        totals: `numerator`, what the new gradients say, and `denominator`, the size of all so far.
        group: that of the largest lr.
        rate: what d is multiplied by to give the step size.

    Returns:
        The new state of the run, and `dlr`, the step size.
    """
    d, denominator, root = state["d"], totals["denominator"], math.sqrt(group["betas"][1])
    numerator = root * state["numerator_weighted"] + (1.0 - root) * totals["numerator"]
    # Without any gradient that is not 0 nothing is known, and nothing moves.
    known = denominator > 0
    d_hat = torch.where(known, numerator / ((1.0 - root) * denominator), d)
    return {
        "dlr": torch.where(known, d * rate, 0.0),
        "d": grown(state, d_hat, group.get("growth_rate", math.inf)),
        "numerator_weighted": numerator,
        "k": state["k"] + 1,
    }


def estimate(advance: Any, totals: tuple[str, ...], common: tuple[str, ...], **more: float) -> RunState:
    """The run state of a D-Adaptation: d from d0, a count k of steps, and sums."""
    return RunState({"d": itemgetter("d0"), **more, "k": 0}, advance, totals, shared=True, common=("d0", *common))


class DAdaptation(RuleOptimizer):
    """What the optimizers of D-Adaptation share: one d for all groups, and the form of dadaptation's state_dicts."""

    absent_from_peers = frozenset({"d0", "g0_norm"})
    peer_flags = {"log_every": any_value}
    one_lr = True
    lr_is_factor = True
    # Whether dadaptation counts the steps of a parameter; it does where something follows from them.
    counted: ClassVar[bool] = False
    _: KW_ONLY
    d0: float = D0

    def adapt_loaded(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
        return state if self.counted else {"step": 1.0, **state}
