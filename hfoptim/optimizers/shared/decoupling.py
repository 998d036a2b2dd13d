"""Weight decay that the learning rate does not multiply, for the optimizers that offer the choice."""

from __future__ import annotations

from typing import Any

from hfoptim.engine import Decay, RuleOptimizer, hyper

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


# timm's name for the choice between a decay inside of the rule and a decoupled one.
DECOUPLED_DECAY = hyper(False, "decoupled weight decay")


class FullyDecoupling(RuleOptimizer):
    """An optimizer with optimi's options `decouple_lr` and `max_lr`, and perhaps its `decouple_wd`.

    With `decouple_lr`, weight decay takes `weight_decay lr / max_lr` of a parameter: a schedule moves it along with lr,
    but it does not depend on the peak. So it wants a much smaller `weight_decay`, about lr times the usual one.
    """

    def decay_for(self, group: dict[str, Any]) -> Decay:
        return Decay.FULLY_DECOUPLED if group["decouple_lr"] else super().decay_for(group)


class DecouplingInside(RuleOptimizer):
    """An optimizer with timm's option `decoupled_decay`; without it the rule has the decay inside."""

    decay = Decay.INSIDE
    decoupled_by = "decoupled_decay"
