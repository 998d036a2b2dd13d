"""Steps with gradients from two points: at the weights, and at another point."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from hfoptim.engine import RuleOptimizer, unmasked, unwrap, unwrap_all
from hfoptim.engine.ambient import leave_undisturbed
from hfoptim.engine.checks import dense
from hfoptim.engine.distributed.dtensor import aligned, local
from hfoptim.engine.optimizer import take_loss
from hfoptim.wrappers.wrapper import Wrapper

OLD = "old_p"
# The gradient at the weights, for those whose step needs both.
FIRST = "first_grad"
# What a gradient that a step has used, or that was set to zero, is marked by, with its version then.
USED = "_hfoptim_used"


class TwoPoints(Wrapper):
    """A wrapper whose step takes a second gradient of the same batch at another point, and goes back before it steps.

    A subclass says in `move` where that point is, and in `before_base_step` what becomes of the second gradients. It
    has `TwoPoints.keeps` among its own, and `FIRST` where it needs the first ones then.
    """

    keeps: ClassVar[Mapping[str, bool]] = {OLD: True}
    # What of it is there between the two steps alone.
    between: ClassVar[tuple[str, ...]] = (OLD,)

    def check_inner(self, optimizer: Optimizer) -> None:
        if isinstance(unwrap(optimizer), LBFGS):
            raise ValueError("LBFGS computes gradients at points of its own, and cannot be inside")
        other = unwrap(optimizer, TwoPoints)
        if other is not None:
            raise ValueError(f"{type(self).__name__} cannot go around another {type(other).__name__}")
        twice = [each for each in unwrap_all(optimizer, RuleOptimizer) if each.calls_closure_twice]
        if twice:
            raise ValueError(
                f"{type(self).__name__} cannot go around {twice[0].two_points}, whose steps take gradients at two "
                f"points of their own"
            )

    # -- what a subclass may override ------------------------------------------------------------------------------

    @property
    def second_is_due(self) -> bool:
        """Whether the step to come takes a second gradient."""
        return True

    def at_weights(self) -> None:
        """Do what is to be done with the first gradients: unless overridden, keep them where `between` has `FIRST`."""
        if FIRST in self.between:
            self.keep_gradients(FIRST)

    def move(self) -> None:
        """Go to the other point; `keep_weight` keeps what `second_step` goes back to."""
        raise NotImplementedError

    def before_base_step(self) -> None:
        """Do what is to be done with the second gradients, back at the weights."""

    def after_base_step(self) -> None:
        """Do what is to be done with the weights after the base optimizer's step."""

    def loss_of_step(self, at_weights: Any, second: Any) -> Any:
        """Which of the two losses the base optimizer is told, if it wants one; None: not known."""
        return second

    # ---------------------------------------------------------------------------------------------------------------

    @leave_undisturbed
    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Go to the other point.

        Args:
            zero_grad (default False): remove the gradients afterwards.

        Raises:
            RuntimeError: no parameter has a gradient, or the weights are there already.
            TypeError: a gradient is sparse.
        """
        if self.kept[OLD]:
            raise RuntimeError("first_step was called twice; second_step takes the weights back")
        if self.second_is_due:
            self.check_dense()
            self.complete_groups()
            self.at_weights()
            self.move()
        if zero_grad:
            self.zero_grad()

    @leave_undisturbed
    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        """Go back, and take the base optimizer's step with the gradients that are there now.

        Args:
            zero_grad (default False): remove the gradients afterwards.

        Raises:
            RuntimeError: `first_step` was not called before.
        """
        if self.second_is_due:
            self._go_back()
        self.before_base_step()
        self._inner.step()
        self.after_base_step()
        self._forget()
        # What torch's schedules note when `step` is called, which a loop by hand does not.
        unmasked(self)._opt_called = True
        if zero_grad:
            self.zero_grad()
        self._mark_used()

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self._mark_used()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take both steps.

        Args:
            closure: computes the loss and the gradients of this step's batch and returns the loss. Called with
                gradients enabled: once, without gradients there, if the first gradients are there when `step` is
                called, else twice. Gradients that the last step has used and nobody has changed since count as not
                there.

        Returns:
            The loss of the closure's first call: that of the other point where the first gradients were there, else
            that of the weights.

        Raises:
            ValueError: no closure, and the step is not the one that torch.distributed.checkpoint takes to create state.
            RuntimeError: no parameter has a gradient, or Lightning has accumulated gradients of earlier batches, which
                its closure cannot compute again.
        """
        if closure is None:
            if self._asked_for_state():
                self._inner.step()
                for name in self.keeps.keys() - {*self.between}:
                    for param in self.gradients():
                        self.kept[name].setdefault(param, torch.zeros_like(param))
                return None
            raise ValueError(
                f"{type(self).__name__} takes two gradients per step: give step a closure that computes the second "
                f"one, or call first_step and second_step"
            )
        first = None
        if all(getattr(grad, USED, None) == grad._version for grad in self._gradients()):
            self.zero_grad()
            with torch.enable_grad():
                first = closure()
            if first is None and _automatic(closure) and not any(True for _ in self._gradients()):
                return None  # training_step has returned None, which tells Lightning to leave the batch out
        elif _automatic(closure):
            raise RuntimeError(
                f"gradients of earlier batches are there, and {type(self).__name__} needs all gradients of a step at "
                f"two points, where Lightning computes those of the last batch only; use accumulate_grad_batches=1 "
                f"and larger batches, or manual optimization"
            )
        if not self.second_is_due:
            take_loss(self._inner, first)
            self.second_step()
            return first
        self.first_step(zero_grad=True)
        try:
            with torch.enable_grad():
                second = closure()
        except BaseException:
            self._go_back()
            self._forget()
            raise
        take_loss(self._inner, self.loss_of_step(first, second))
        self.second_step()
        return second if first is None else first

    def _asked_for_state(self) -> bool:
        """Whether a first step without closure is there to create state, as torch.distributed.checkpoint asks for it.

        Then every lr is 0 and every gradient zero.
        """
        if any(self.state.values()) or any(float(group["lr"] or 0.0) != 0.0 for group in self.param_groups):
            return False
        grads = list(self._gradients())
        return bool(grads) and not any(bool(local(grad).any()) for grad in grads)

    def _gradients(self) -> Iterator[Tensor]:
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    yield param.grad

    def _mark_used(self) -> None:
        for grad in self._gradients():
            setattr(grad, USED, grad._version)

    @leave_undisturbed
    def _go_back(self) -> None:
        saved = self.kept[OLD]
        if not saved:
            raise RuntimeError("second_step needs first_step before it")
        torch._foreach_copy_([local(param) for param in saved], [local(old) for old in saved.values()])
        self.kept[OLD] = {}

    def _forget(self) -> None:
        for name in self.between:
            self.kept[name] = {}

    def check_dense(self) -> None:
        """Raise a TypeError if a gradient is sparse."""
        for index, group in enumerate(self.param_groups):
            for position, param in enumerate(group["params"]):
                if param.grad is not None:
                    dense(type(self).__name__, param.grad, group, index, position)

    def keep_weight(self, param: Tensor) -> None:
        """Keep a copy of a parameter before it is moved to the other point."""
        self.kept[OLD][param] = param.detach().clone()

    def gradients(self, group: dict[str, Any] | None = None) -> dict[Tensor, Tensor]:
        """The gradients there are, of a group or all, divided as their parameters are; they may be changed in place."""
        groups = self.param_groups if group is None else [group]
        params = [param for each in groups for param in each["params"] if param.grad is not None]
        for param in params:
            param.grad = aligned(param.grad, param)
        return {param: param.grad for param in params}

    def keep_gradients(self, name: str) -> None:
        """Keep copies of the gradients, under a name of `keeps`."""
        self.kept[name] = {param: grad.clone() for param, grad in self.gradients().items()}


def _automatic(closure: Any) -> bool:
    """Whether a closure is that of Lightning's automatic optimization, which makes all gradients of a batch itself.

    It comes as a partial with the LightningModule among its arguments.
    """
    return any(getattr(given, "automatic_optimization", False) is True for given in getattr(closure, "args", ()))
