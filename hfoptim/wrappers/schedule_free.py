"""Schedule-free learning and primal averaging around any optimizer: trained between its weights and their average."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from hfoptim.engine.ambient import leave_undisturbed
from hfoptim.engine.checks import integer, number
from hfoptim.engine.distributed.dtensor import local
from hfoptim.optimizers.shared.averaging import share_of, weighed
from hfoptim.wrappers.closures import evaluate, refuse_those_with_closures
from hfoptim.wrappers.two_modes import TwoModes
from hfoptim.wrappers.wrapper import refuse_second_order

PRIMARY = "primary_weights"


class PrimalAveraging(TwoModes):
    """Trains at y, between z, where the inner optimizer's steps lead, and x, an average of all z.

        z = the inner optimizer's step from z, with the gradient at y
        x = x + c (z - x)
        y = x + (1 - beta) (z - x)

    y is what the parameter holds and z is kept beside it; x follows from both. A subclass says what beta and c are.
    """

    # The name of the options and counters that its groups have.
    prefix: ClassVar[str]
    keeps = {PRIMARY: False, **TwoModes.keeps}
    keeps_exact = frozenset({PRIMARY})

    def beta(self, group: Mapping[str, Any]) -> float:
        """The share of x in y, above 0."""
        raise NotImplementedError

    def share(self, group: dict[str, Any]) -> float | Tensor:
        """What z is of the new average, a number or a 0-d tensor; called once in a step that counts."""
        raise NotImplementedError

    def pull(self, group: Mapping[str, Any]) -> float:
        """By which share of y the inner optimizer's step begins away from z."""
        return 0.0

    def check_inner(self, optimizer: Optimizer) -> None:
        super().check_inner(optimizer)
        refuse_those_with_closures(optimizer, f"and {type(self).__name__} takes gradients at another point")
        refuse_second_order(self, optimizer)

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        group[f"{self.prefix}_step"] = integer(f"{self.prefix}_step", group[f"{self.prefix}_step"], 0)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step of the inner optimizer at z, and move the average and the parameters.

        Args:
            closure: re-evaluates the model and returns the loss; called once, with gradients enabled.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: the parameters hold the average.
        """
        self.check_training()
        loss = evaluate(self, closure)
        trained = self._go_to_z()
        try:
            self._inner.step()
        except BaseException:
            self._put_back(trained)
            raise
        counts = not self.only_made_state(f"{self.prefix}_step")
        for group, (params, ys) in zip(self.param_groups, trained, strict=True):
            group[f"{self.prefix}_step"] += counts
            self._average(group, params, ys, self.share(group) if counts else 0.0)
        return loss

    @_disable_dynamo  # its numbers change from step to step, and would compile anew
    @leave_undisturbed
    @torch.no_grad()
    def _go_to_z(self) -> list[tuple[list[Tensor], list[Tensor]]]:
        """Put z into the parameters that have a gradient; group by group, these and what they held."""
        kept, trained = self.kept[PRIMARY], []
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            ys = [self.exact(param).clone() for param in params]
            for param, y in zip(params, ys, strict=True):
                self.refuse_lossy(param, group)
                if param not in kept:
                    kept[param] = self.exact_copy(param)
                z, pull = local(kept[param]), self.pull(group)
                self.write(param, z.add(y, alpha=-pull) if pull else z)
            trained.append((params, ys))
        return trained

    @leave_undisturbed
    @torch.no_grad()
    def _put_back(self, trained: list[tuple[list[Tensor], list[Tensor]]]) -> None:
        for params, ys in trained:
            for param, y in zip(params, ys, strict=True):
                self.write(param, y)

    @_disable_dynamo  # its numbers change from step to step, and would compile anew
    @leave_undisturbed
    @torch.no_grad()
    def _average(self, group: Mapping[str, Any], params: list[Tensor], ys: list[Tensor], share: float | Tensor) -> None:
        """Take over the new z from the parameters, and put the new y there; `ys` are the old ones."""
        if not params:
            return
        zs, beta = [local(self.kept[PRIMARY][param]) for param in params], self.beta(group)
        torch._foreach_lerp_(ys, zs, 1.0 - 1.0 / beta)  # x
        torch._foreach_copy_(zs, [self.exact(param) for param in params])
        if isinstance(share, Tensor):
            torch._foreach_lerp_(ys, zs, [share.to(y) for y in ys])  # the new x
        else:
            torch._foreach_lerp_(ys, zs, share)
        torch._foreach_lerp_(ys, zs, 1.0 - beta)
        self._put_back([(params, ys)])

    def evaluated(self, param: Tensor, group: Mapping[str, Any]) -> Tensor | None:
        z = self.kept[PRIMARY].get(param)
        return None if z is None else self.exact(param).lerp(local(z), 1.0 - 1.0 / self.beta(group))


class ScheduleFree(PrimalAveraging):
    """Makes any optimizer schedule-free: an average of its weights takes the place of a falling learning rate.

    With y the parameter, where gradients are taken, t the number of steps and lr_max the largest lr so far:

        z = z - lr decay y
        z = the inner optimizer's step from z, with the gradient at y
        w = t^r lr_max^power,  W = W + w
        x = x + (w / W) (z - x)
        y = x + (1 - momentum) (z - x)

    The parameter holds y while it is trained, and x, the average, from `eval()` to `train()`: call `eval()` before
    evaluating and before saving the model, and `train()` before training goes on. transformers' Trainer does so for
    optimizers chosen by hfoptim's names. lr stays constant after its warm-up. The inner optimizer needs no momentum of
    its own. Its weight decay is taken at z, `decay` at y. A step size that it finds itself (Prodigy's `d`) counts as a
    factor of lr; where that lies on a device, so do the numbers of the average. One copy of the weights, in float32 for
    parameters of fewer bits.

    By name: `schedule_free_lion` and so on, with the options `schedule_free_momentum`, `schedule_free_decay`,
    `schedule_free_r` and `schedule_free_power`; they lie in the parameter groups and may differ between them.
    `schedule_free_adamw`, `schedule_free_sgd` and `schedule_free_radam` are the optimizers of that kind
    (`AdamWScheduleFree`, ...), which do all of this in one pass.

    Args:
        optimizer: any torch optimizer that evaluates no model in its step and has no average of its own.
        momentum (default 0.9): share of x in y, above 0 and below 1.
        weight_decay_at_y (0.0): weight decay per step and unit of lr, at y.
        weight_lr_power (2.0): power of lr_max in the weights of the average, at least 0.
        r (0.0): power of t in them, at least 0.

    Raises:
        TypeError: no optimizer, or an option of the wrong type.
        ValueError: an option out of range, or an inner optimizer that takes closures, gradients with a graph, or has an
            evaluation mode of its own.
        RuntimeError: from `step()` in evaluation mode.

    Source:
        Defazio et al., arXiv 2405.15682; ScheduleFreeWrapper of facebookresearch/schedule_free, whose numbers it has.
        pytorch_optimizer's ScheduleFreeWrapper differs with weight decay: it takes it at z for z, not at y.
    """

    prefix = "schedule_free"
    by_name = {
        "schedule_free_momentum": 0.9,
        "schedule_free_decay": 0.0,
        "schedule_free_power": 2.0,
        "schedule_free_r": 0.0,
    }
    counters = {
        "schedule_free_step": 0,
        "schedule_free_lr_max": -1.0,
        "schedule_free_weight_sum": 0.0,
        **TwoModes.counters,
    }
    expects = PRIMARY, lambda group: group.get("schedule_free_step", 0) > 0

    def __init__(
        self,
        optimizer: Optimizer,
        momentum: float = 0.9,
        weight_decay_at_y: float = 0.0,
        weight_lr_power: float = 2.0,
        r: float = 0.0,
    ) -> None:
        super().__init__(
            optimizer, dict(zip(self.by_name, (momentum, weight_decay_at_y, weight_lr_power, r), strict=True))
        )

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        group["schedule_free_momentum"] = _share_of_x("schedule_free_momentum", group["schedule_free_momentum"])
        for name in ("decay", "power", "r", "weight_sum"):
            group[f"schedule_free_{name}"] = number(f"schedule_free_{name}", group[f"schedule_free_{name}"])
        group["schedule_free_lr_max"] = number("schedule_free_lr_max", group["schedule_free_lr_max"], -1.0)

    def beta(self, group: Mapping[str, Any]) -> float:
        return float(group["schedule_free_momentum"])

    def pull(self, group: Mapping[str, Any]) -> float:
        return float(group["lr"]) * float(group["schedule_free_decay"])

    def share(self, group: dict[str, Any]) -> float | Tensor:
        state = {
            "k": group["schedule_free_step"] - 1,
            "lr_max": group["schedule_free_lr_max"],
            "weight_sum": group["schedule_free_weight_sum"],
        }
        lr = float(group["lr"]) * group.get("d", 1.0)
        found = weighed(state, lr, group["schedule_free_r"], group["schedule_free_power"])
        group["schedule_free_lr_max"], group["schedule_free_weight_sum"] = found["lr_max"], found["weight_sum"]
        share: float | Tensor = share_of(found["weight"], found["weight_sum"])
        return share


class GPA(PrimalAveraging):
    """Generalized primal averaging: trains any optimizer between its weights and an exponential average of them.

    With y the parameter, where gradients are taken:

        z = the inner optimizer's step from z, with the gradient at y
        x = mu_x x + (1 - mu_x) z
        y = mu_y x + (1 - mu_y) z

    The parameter holds y while it is trained, and x, the average, from `eval()` to `train()`; see `ScheduleFree`, which
    has another average. A schedule of lr is used as without it. One copy of the weights, in float32 for parameters of
    fewer bits.

    By name: `gpa_adamw` and so on, with the options `gpa_train_interp_coeff` and `gpa_eval_interp_coeff`; they lie in
    the parameter groups and may differ between them.

    Args:
        optimizer: any torch optimizer that evaluates no model in its step and has no average of its own.
        train_interp_coeff (default 0.7): mu_y, share of x in y, above 0 and at most 1.
        eval_interp_coeff (0.9967): mu_x, share of x that the next x keeps, in [0, 1].

    Raises:
        TypeError: no optimizer, or an option of the wrong type.
        ValueError: an option out of range, or an inner optimizer that takes closures, gradients with a graph, or has an
            evaluation mode of its own.
        RuntimeError: from `step()` in evaluation mode.

    Source:
        Defazio et al., arXiv 2512.17131; GPAAdamW of facebookresearch/optimizers, whose numbers `gpa_adamw` has without
        weight decay. With it that code leaves the decay of z out of y, so that the average moves by it, against the
        paper.
    """

    prefix = "gpa"
    by_name = {"gpa_train_interp_coeff": 0.7, "gpa_eval_interp_coeff": 0.9967}
    counters = {"gpa_step": 0, **TwoModes.counters}
    expects = PRIMARY, lambda group: group.get("gpa_step", 0) > 0

    def __init__(
        self, optimizer: Optimizer, train_interp_coeff: float = 0.7, eval_interp_coeff: float = 0.9967
    ) -> None:
        super().__init__(
            optimizer, {"gpa_train_interp_coeff": train_interp_coeff, "gpa_eval_interp_coeff": eval_interp_coeff}
        )

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        name = "gpa_train_interp_coeff"
        group[name] = _share_of_x(name, group[name], high_open=False)
        name = "gpa_eval_interp_coeff"
        group[name] = number(name, group[name], 0.0, 1.0, high_open=False)

    def beta(self, group: Mapping[str, Any]) -> float:
        return float(group["gpa_train_interp_coeff"])

    def share(self, group: dict[str, Any]) -> float:
        return 1.0 - float(group["gpa_eval_interp_coeff"])


def _share_of_x(name: str, value: Any, high_open: bool = True) -> float:
    found = number(name, value, 0.0, 1.0, high_open=high_open)
    if found == 0.0:
        raise ValueError(f"{name}=0: without a share of the average in the training point the average is lost")
    return found
