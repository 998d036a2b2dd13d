"""Weight decay that the learning rate does not multiply, for the optimizers that offer the choice."""

from __future__ import annotations

from typing import Any

from hfoptim.engine import Decay, RuleOptimizer
from hfoptim.engine.checks import flag, group_dict, number


class FullyDecoupling(RuleOptimizer):
    """An optimizer with optimi's options `decouple_lr` and `max_lr`, for those whose constructor has them.

    With `decouple_lr`, weight decay takes `weight_decay lr / max_lr` of a parameter: a schedule moves it along with lr,
    but it does not depend on the peak. So it wants a much smaller `weight_decay`, about lr times the usual one.
    """

    absent_from_peers = frozenset({"decouple_lr", "max_lr"})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; under `decouple_lr` its peak learning rate is `max_lr`, else the lr it starts with."""
        group = {**self.defaults, **group_dict(param_group)}
        if group.get("decouple_lr") is True and group["max_lr"] is None:
            # A number of its own: a schedule may change a tensor lr in place.
            param_group = {**param_group, "max_lr": number("lr", group["lr"])}
        super().add_param_group(param_group)

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        if "decouple_lr" not in self.defaults:
            return
        flag("decouple_lr", group["decouple_lr"])
        if group["max_lr"] is not None:
            group["max_lr"] = number("max_lr", group["max_lr"])
        if group["max_lr"] == 0 and group["decouple_lr"]:
            raise ValueError("decouple_lr divides by the peak learning rate, which is 0 here; give max_lr above 0")

    def decay_for(self, group: dict[str, Any]) -> Decay:
        return Decay.FULLY_DECOUPLED if group.get("decouple_lr") else self.decay
