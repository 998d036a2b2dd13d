"""Weight decay that the learning rate does not multiply, for the optimizers that offer the choice."""

from __future__ import annotations

from typing import Any

from hfoptim.engine import Decay, RuleOptimizer, hyper
from hfoptim.engine.checks import number

# The two options, for optimizers to declare where their signature has them.
DECOUPLE_LR = hyper(
    False,
    "fully decoupled weight decay; wants a much smaller `weight_decay`, since lr no longer multiplies it",
    in_peers=False,
)
MAX_LR: float | None = hyper(
    None,
    "peak learning rate of the schedule, for `decouple_lr`; None takes the `lr` given here",
    in_peers=False,
)


class FullyDecoupling(RuleOptimizer):
    """An optimizer with optimi's options `decouple_lr` and `max_lr`, and perhaps its `decouple_wd`.

    With `decouple_lr`, weight decay takes `weight_decay lr / max_lr` of a parameter: a schedule moves it along with lr,
    but it does not depend on the peak. So it wants a much smaller `weight_decay`, about lr times the usual one.
    """

    def check_added(self, group: dict[str, Any]) -> None:
        if group["decouple_lr"] and group["max_lr"] is None:
            # The lr that the group starts with, as a number of its own: a schedule may change a tensor lr in place.
            group["max_lr"] = number("lr", group["lr"])
            self.check_group(group)

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        if group["max_lr"] == 0 and group["decouple_lr"]:
            raise ValueError("decouple_lr divides by the peak learning rate, which is 0 here; give max_lr above 0")

    def decay_for(self, group: dict[str, Any]) -> Decay:
        if group["decouple_lr"]:
            return Decay.FULLY_DECOUPLED
        return Decay.DECOUPLED if group.get("decouple_wd") else self.decay
