"""Averaged stochastic gradient descent."""

from __future__ import annotations

from typing import Any

from hfoptim.engine import ELEMENT, Decay, Group, Name, RuleOptimizer, Scalars, add_scaled, clone, ema, hyper, rule


def _per_step(t: int, group: Group) -> Scalars:
    lr, lambd = float(group["lr"]), group["lambd"]
    eta = lr / (1.0 + lambd * lr * (t - 1)) ** group["alpha"]
    return {"lambd": lambd, "weight": 1.0 / max(1.0, t - 1 - group["t0"]), "lr": eta}


@rule(ELEMENT, per_step=_per_step, ax=clone)
def asgd(grad: Any, param: Any, ax: Any, h: Any) -> tuple[Any, Any]:
    """The gradient of the penalised loss; the average takes in where it leads."""
    update = add_scaled(grad, param, h.lambd)
    return update, ema(ax, add_scaled(param, update, -h.lr), h.weight)


class ASGD(RuleOptimizer):
    """Gradient descent with a falling step size, which also keeps the average of its parameters, as torch.optim.ASGD.

    With g the gradient, p the parameter, t the step:

        g = g + weight_decay p
        eta = lr / (1 + lambd lr (t - 1))^alpha
        p = p - eta (g + lambd p)
        a = a + (p - a) / max(1, t - 1 - t0)

    The average a, in the state `ax`, is that of the steps after t0 and until then the parameter itself: with the
    default of a million steps, always. Nothing puts it into the model. A state_dict of torch.optim.ASGD loads.

    torch computes eta after a step, for the next one, so that a learning rate set by a schedule counts one step later
    there; here it counts at once. With a constant one the numbers are the same.

    Raises:
        ValueError: `caution`, which the average would not follow.

    Source:
        Polyak and Juditsky, Acceleration of stochastic approximation by averaging, https://doi.org/10.1137/0330046;
        torch.optim.ASGD.
    """

    rule = asgd
    decay = Decay.COUPLED
    names = (Name("asgd"),)
    peer_state = {"eta": None, "mu": None}
    lr: float = hyper(1e-2, "learning rate, of the first step")
    lambd: float = hyper(1e-4, "decay of the parameters and of the step size")
    alpha: float = hyper(0.75, "exponent of the falling step size")
    t0: float = hyper(1e6, "steps before the average begins")
    weight_decay: float = hyper(0.0, "L2 penalty")

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        if group["caution"]:
            raise ValueError("caution=True is not possible in ASGD: its average would be of other parameters; leave it")
