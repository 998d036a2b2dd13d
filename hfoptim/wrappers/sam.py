"""Sharpness-aware minimization: gradients from the worst point near the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer
from torch.optim.optimizer import ParamsT

from hfoptim.engine import unmasked, unwrap
from hfoptim.engine.ambient import leave_undisturbed
from hfoptim.engine.checks import dense, flag, number
from hfoptim.engine.distributed.dtensor import Groups, aligned, groups_of, local, sum_over_ranks
from hfoptim.engine.optimizer import take_loss
from hfoptim.wrappers.named import optimizer_named
from hfoptim.wrappers.wrapper import Wrapper

OLD = "old_p"
TINY = 1e-12
# What a gradient that a step has used, or that was set to zero, is marked by, with its version then.
USED = "_hfoptim_sam_used"


class SAM(Wrapper):
    """Steps an optimizer with the gradient from the point where the loss nearby is about the worst.

    With p the parameters and g the gradient there, both over all parameters together:

        p' = p + rho g / |g|                 with adaptive, T = |p|:  p' = p + rho T^2 g / |T g|
        p  = step of the base optimizer from p with the gradient at p'

    Two gradients per step. Either by hand

        loss(model, batch).backward();  optimizer.first_step(zero_grad=True)
        loss(model, batch).backward();  optimizer.second_step(zero_grad=True)

    or by `optimizer.step(closure)`, with a closure that computes the loss of the step's batch, calls backward and
    returns the loss. If gradients are there already, they are the first ones and the closure computes the second. If
    there are none, or only those that the last step has used, the closure computes both: so torch's loops work, whose
    closures begin with `zero_grad()`, and Lightning's automatic optimization. The weights are set back to the saved p,
    bit for bit, also if the closure raises.

    The wrapper and the base optimizer share parameter groups, state and defaults; `rho` and `adaptive` lie in the
    groups, where they may differ and be changed. With `maximize`, the worst point is where the objective is lowest.
    bfloat16 parameters are too coarse for most of the small perturbation: keep float32 ones and use autocast.
    torch.amp.GradScaler cannot be used, it unscales one gradient per step.

    Args:
        params: parameters, named parameters, or dicts that define parameter groups; with a `base_optimizer` that has
            been made already, the same parameters or None.
        base_optimizer: class of the base optimizer, one of the names of `hfoptim.list_optimizers()`, or an optimizer.
        rho (default 0.05): radius of the neighbourhood, >= 0.
        adaptive (False): scale the neighbourhood by the size of each weight (ASAM).
        **options: of the base optimizer.

    Raises:
        TypeError: `base_optimizer` is none of the three, or an option of the wrong type.
        ValueError: an option out of range, an unknown name, or `params` are not those of the optimizer given.
            From `step`: without a closure.
        RuntimeError: from the steps: no parameter has a gradient, they are taken in the wrong order, or Lightning
            accumulates gradients over batches.

    Source:
        Foret et al., arXiv 2010.01412; adaptive: Kwon et al., arXiv 2102.11600; davda54/sam, which
        pytorch_optimizer follows (there the options `use_gc` and `perturb_eps` are extra).
    """

    by_name = {"rho": 0.05, "adaptive": False}
    keeps = {OLD: True}
    # What of it is there between the two steps alone.
    between: ClassVar[tuple[str, ...]] = (OLD,)

    def __init__(
        self,
        params: ParamsT | None,
        base_optimizer: type[Optimizer] | str | Optimizer,
        rho: float = 0.05,
        adaptive: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(made(params, base_optimizer, options), {"rho": rho, "adaptive": adaptive})

    def check_inner(self, optimizer: Optimizer) -> None:
        if isinstance(unwrap(optimizer), LBFGS):
            raise ValueError("SAM cannot go around LBFGS, which computes gradients itself at other points")
        if unwrap(optimizer, SAM) is not None:
            raise ValueError(f"{type(self).__name__} cannot go around another {type(unwrap(optimizer, SAM)).__name__}")

    @property
    def base_optimizer(self) -> Optimizer:
        """The optimizer that takes the steps."""
        return self._inner

    def check_group(self, group: dict[str, Any]) -> None:
        group["rho"] = number("rho", group["rho"])
        flag("adaptive", group["adaptive"])

    # -- what a subclass may override ------------------------------------------------------------------------------

    @property
    def climbs(self) -> bool:
        """Whether the step to come goes to the worst point nearby, and takes a second gradient."""
        return True

    def at_weights(self) -> None:
        """Do what is to be done with the first gradients; those that are left are climbed along."""

    def before_base_step(self) -> None:
        """Do what is to be done with the second gradients, back at the weights."""

    def after_base_step(self) -> None:
        """Do what is to be done with the weights after the base optimizer's step."""

    # ---------------------------------------------------------------------------------------------------------------

    @leave_undisturbed
    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Go to the worst point nearby.

        Args:
            zero_grad (default False): remove the gradients afterwards.

        Raises:
            RuntimeError: no parameter has a gradient, or the weights are there already.
            TypeError: a gradient is sparse.
        """
        if self.kept[OLD]:
            raise RuntimeError("first_step was called twice; second_step takes the weights back")
        if self.climbs:
            self._climb()
        if zero_grad:
            self.zero_grad()

    def _climb(self) -> None:
        for index, group in enumerate(self.param_groups):
            for position, param in enumerate(group["params"]):
                if param.grad is not None:
                    dense("SAM", param.grad, group, index, position)
        self.complete_groups()
        self.at_weights()
        norm = self.sums(norm=_sized)["norm"].sqrt()
        for group in self.param_groups:
            sign = -1.0 if group.get("maximize") else 1.0
            scale = sign * float(group["rho"]) / (norm + TINY)
            for param in group["params"]:
                if param.grad is not None:
                    self.kept[OLD][param] = param.detach().clone()
                    weight, grad = local(param), local(aligned(param.grad, param))
                    direction = weight.abs().square() * grad if group["adaptive"] else grad
                    weight.add_(direction * scale.to(weight.device))

    @leave_undisturbed
    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        """Go back, and take the base optimizer's step with the gradients that are there now.

        Args:
            zero_grad (default False): remove the gradients afterwards.

        Raises:
            RuntimeError: `first_step` was not called before.
        """
        if self.climbs:
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
            The loss of the closure's first call: that of the worst point nearby where the first gradients were there,
            else that of the weights.

        Raises:
            ValueError: no closure, and the step is not the one that torch.distributed.checkpoint takes to create state.
            RuntimeError: no parameter has a gradient, or Lightning has accumulated gradients of earlier batches, which
                its closure cannot compute again.
        """
        if closure is None:
            if self._asked_for_state():
                self._inner.step()
                for name in self.keeps.keys() - {*self.between}:
                    self.kept[name] = {param: torch.zeros_like(param) for param in self.gradients()}
                return None
            raise ValueError(
                "SAM takes two gradients per step: give step a closure that computes the second one, or call "
                "first_step and second_step"
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
                "gradients of earlier batches are there, and SAM needs all gradients of a step at two points, where "
                "Lightning computes those of the last batch only; use accumulate_grad_batches=1 and larger batches, or "
                "manual optimization"
            )
        if not self.climbs:
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
        take_loss(self._inner, second)
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

    def sums(self, **of: Callable[[Tensor, dict[str, Any]], Tensor]) -> dict[str, Tensor]:
        """Sums over all parameters with gradients and over all ranks, as tensors: nothing waits for the device.

        Args:
            **of: by name, the term of a parameter, from it and its group.

        Raises:
            RuntimeError: no parameter has a gradient.
        """
        parts: dict[Groups, dict[str, list[Tensor]]] = {}
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    terms = parts.setdefault(groups_of(param), {name: [] for name in of})
                    for name, term in of.items():
                        terms[name].append(term(param, group))
        if not parts:
            raise RuntimeError(
                "SAM starts from gradients, and no parameter has one; call loss.backward() before, or in the closure"
            )
        return sum_over_ranks(
            {
                groups: {name: torch.stack([t.to(found[0].device) for t in found]).sum() for name, found in own.items()}
                for groups, own in parts.items()
            }
        )


def square(tensor: Any) -> Tensor:
    """The sum of the squares of this rank's entries, in single precision at least."""
    own = local(tensor)
    norm: Tensor = torch.linalg.vector_norm(own, dtype=torch.promote_types(own.dtype, torch.float32))
    return norm.square()


def _sized(param: Tensor, group: dict[str, Any]) -> Tensor:
    """What of a parameter is in the norm that the way up is divided by."""
    grad = local(aligned(param.grad, param))
    return square(grad * local(param).abs() if group["adaptive"] else grad)


def _automatic(closure: Any) -> bool:
    """Whether a closure is that of Lightning's automatic optimization, which makes all gradients of a batch itself.

    It comes as a partial with the LightningModule among its arguments.
    """
    return any(getattr(given, "automatic_optimization", False) is True for given in getattr(closure, "args", ()))


def made(params: Any, base: Any, options: dict[str, Any]) -> Any:
    """The base optimizer over the parameters."""
    if isinstance(base, Optimizer):
        if options:
            raise TypeError(f"options ({', '.join(options)}) are of no use to an optimizer that has been made already")
        if params is not None and {*map(id, _tensors(params))} != {*map(id, _tensors(base.param_groups))}:
            raise ValueError(
                f"params are not the parameters of the {type(base).__name__} given; give None, or the same"
            )
        return base
    if isinstance(base, str):
        return optimizer_named(base, params, options)
    if not callable(base):
        raise TypeError(f"base_optimizer={base!r} is no optimizer; give a class, a name such as 'sgd', or an optimizer")
    return base(params, **options)


def _tensors(params: Iterable[Any]) -> Iterator[Tensor]:
    """The parameters themselves, whether given plainly, with names or in groups."""
    for entry in params:
        if isinstance(entry, dict):
            yield from _tensors([entry["params"]] if isinstance(entry["params"], Tensor) else entry["params"])
        else:
            yield entry[1] if isinstance(entry, tuple) else entry
