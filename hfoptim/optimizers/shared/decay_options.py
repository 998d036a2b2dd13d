"""Weight decay by pytorch_optimizer's two options, for the optimizers that have them there."""

from __future__ import annotations

from hfoptim.engine import Decay, Group, RuleOptimizer, Scalars, hyper


def decoupling(default: bool) -> bool:
    """Declare the option `weight_decouple`."""
    return hyper(default, "decoupled weight decay; False adds it to the gradient", in_peers=False)


FIXED_DECAY = hyper(
    False, "decoupled weight decay takes `weight_decay` of a parameter per step, whatever lr is", in_peers=False
)

# For methods that have no weight decay in their paper: given by name only.
OWN_DECAY = hyper(
    0.0, "decoupled weight decay, per step and unit of lr, which the method itself has not", in_peers=False
)


def fixed_decay(group: Group) -> Scalars:
    """The share that `fixed_decay` takes of a parameter, for a `per_step`; nothing without it."""
    return {"decay": float(group["weight_decay"])} if group["fixed_decay"] else {}


class Decoupling(RuleOptimizer):
    """An optimizer with the option `weight_decouple`."""

    decay = Decay.COUPLED
    decoupled_by = "weight_decouple"
