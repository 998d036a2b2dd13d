"""bSAM: sharpness-aware minimization whose neighbourhood is the uncertainty of each weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from hfoptim.engine import (
    ELEMENT,
    Decay,
    Group,
    Name,
    Rule,
    RuleOptimizer,
    Scalars,
    State,
    ema,
    hyper,
    points,
    storage,
    zeros,
)
from hfoptim.engine.ambient import undisturbed
from hfoptim.engine.rule import add_scaled
from hfoptim.optimizers.shared.filled import filled

_FIRST, _PRECISION = "first_grad", "precision"


def _per_step(t: int, group: Group) -> Scalars:
    beta1, beta2 = group["betas"]
    return {"alpha1": 1.0 - beta1, "alpha2": 1.0 - beta2, "floor": group["damping"] + group["weight_decay"]}


@cache
def bsam(s_init: float) -> Rule:
    """The rule, given the precision at the beginning."""

    def fn(grad: Any, param: Any, momentum: Any, precision: Any, first: Any, h: Any) -> tuple[Any, ...]:
        momentum = ema(momentum, add_scaled(grad, param, h.weight_decay), h.alpha1)
        seen = precision.sqrt() * first.abs() + h.floor
        return momentum / precision, momentum, ema(precision, seen, h.alpha2), None

    fn.__name__ = "bsam"
    # Divided by, so exact.
    exact = {_PRECISION: State(filled(s_init).init, signed=False), _FIRST: State(zeros.init)}
    return Rule(fn, ELEMENT, {"momentum": zeros, **exact}, _per_step)


class BSAM(RuleOptimizer):
    """Sharpness-aware minimization as a relaxation of Bayes: the neighbourhood of a weight is its uncertainty.

    With p the weights, s the precision of each, n of a standard normal distribution, loss gradients g() of one batch:

        q  = p + n / sqrt(num_data s)
        g1 = g(q)
        g2 = g(p + rho g1 / s)
        m  = beta1 m + (1 - beta1) (g2 + weight_decay p)
        p  = p - lr m / s
        s  = beta2 s + (1 - beta2) (sqrt(s) |g1| + damping + weight_decay)       (s of before the step in both)

    Two gradients per step, none of them at p. `step(closure)` calls the closure at both places, and returns its first
    loss; it computes the loss of the step's batch, calls backward and returns the loss. By hand, clipping included,

        optimizer.sample();   loss(model, batch).backward()
        optimizer.perturb();  loss(model, batch).backward()
        optimizer.step()

    and `sample()`, a backward pass, `step(closure)` call the closure once, as the Trainer does. Weights are set back to
    p, bit for bit, before the step, and if the closure raises; `restore()` does so in between.

    The posterior is normal with mean p and variance 1 / (num_data s): `sample()` and `restore()` around a forward pass
    draw from it, too. weight_decay is the prior's precision over num_data, and regularizes s as well.

    The noise of an entry goes by its index, the step and the place of its parameter in the optimizer: the same on every
    rank and after a checkpoint. Gradients are averaged over ranks before their magnitude is taken, which is the
    author's with one batch for all devices; there each part of a batch has noise of its own (m-sharpness), and s the
    mean of magnitudes. Options that change gradients (`gradient_centralization`, ...) change g2.

    State: `momentum` (m), `precision` (s, at first s_init), `first_grad` (g1).

    Follows the author's code. pytorch_optimizer 4.1 differs in every line: its noise has the standard deviation
    1 / (num_data s); noise and rho g1 / s stay in the weights, which the step starts from; m averages weight_decay g2,
    with neither g2 itself nor p; s averages (sqrt(s) |g2| + damping + weight_decay)^2, of the other gradient and
    squared; and m is divided by the s of after the step.

    Raises:
        RuntimeError: `step` without closure and without `perturb`, or these in the wrong order.

    Source:
        Moellenhoff and Khan, SAM as an Optimal Relaxation of Bayes, ICLR 2023, arXiv 2210.01620;
        team-approx-bayes/bayesian-sam, optim.py. Defaults of its command for CIFAR-10, without augmentation.
    """

    names = (Name("bsam"),)
    needs_closure = True
    decay = Decay.INSIDE
    lr: float = hyper(0.5, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and s")
    weight_decay: float = hyper(8e-4, "the prior's precision over num_data")
    rho: float = hyper(0.01, "size of the neighbourhood")
    damping: float = hyper(0.1, "added to what s averages")
    _: KW_ONLY
    num_data: float = hyper(
        50_000,
        "examples in the training set, times what augmentation makes of each; of CIFAR-10",
        above=0.0,
        excluded="would divide by 0",
    )
    s_init: float = hyper(1.0, "precision at the beginning", above=0.0, excluded="would divide by 0")

    # The weights, while others are in their place; whether those are the ones that the second gradient is for.
    _kept: dict[Tensor, Tensor] | None = None
    _perturbed: bool = False

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return bsam(group["s_init"])

    @property
    def calls_closure_twice(self) -> bool:
        return True

    @property
    def _step_supports_amp_scaling(self) -> bool:
        return True  # GradScaler shows itself, and is refused: it unscales one gradient per step

    @_disable_dynamo
    @torch.no_grad()
    def sample(self) -> None:
        """Put weights drawn from the posterior in the place of the mean, where the first gradient is taken.

        Raises:
            RuntimeError: others are there already.
        """
        if self._kept is not None:
            raise RuntimeError("sample was called twice; step or restore takes the weights back")
        kept: dict[Tensor, Tensor] = {}
        with undisturbed():
            for ordinal, (group, param) in enumerate(self._members()):
                if param.requires_grad:
                    kept[param] = param.detach().clone()
                    state = self.state.get(param, {})
                    step = int(state["step"]) + 1 if "step" in state else 1  # the count lies on the CPU
                    noise = points.noise_for(param, step, ordinal)
                    points.move(param, noise, self._precision(param, group).sqrt(), group["num_data"] ** -0.5)
        self._kept, self._perturbed = kept, False

    @_disable_dynamo
    @torch.no_grad()
    def perturb(self) -> None:
        """Keep the gradients there are as the first ones, go to where the second ones are taken, and remove them.

        Raises:
            RuntimeError: `sample` was not called before, or no parameter has a gradient.
            TypeError: a gradient is sparse.
        """
        if self._kept is None or self._perturbed:
            raise RuntimeError("perturb needs sample, and a backward pass, before it")
        with undisturbed():
            if not self._take_first():
                raise RuntimeError("no parameter has a gradient; call loss.backward() after sample, or in the closure")
            for group, param in self._members():
                if param in self._kept:
                    param.copy_(self._kept[param])
                    if param.grad is not None:
                        first = points.reals(self.state[param][_FIRST])
                        points.move(param, first, self._precision(param, group), group["rho"])
        self._perturbed = True
        self.zero_grad()

    @_disable_dynamo
    @torch.no_grad()
    def restore(self) -> None:
        """Put the weights back that `sample` and `perturb` have moved; nothing where they have not."""
        kept, self._kept, self._perturbed = self._kept or {}, None, False
        with undisturbed():
            for param, weight in kept.items():
                param.copy_(weight)

    def drop_step(self) -> None:
        super().drop_step()
        self.restore()

    def before_closure(self, closure: Callable[[], Any] | None) -> Callable[[], Any] | None:
        if closure is None:
            entries = self._entries()
            if self._perturbed:
                self.restore()
            elif entries and not self._is_only_for_state(entries):
                raise RuntimeError(
                    "BSAM takes two gradients per step, none of them at the weights: give step a closure that clears "
                    "the gradients, calls backward and returns the loss, or call sample and perturb before"
                )
            return None
        try:
            return self._to_second(closure)
        except BaseException:
            self.restore()
            raise

    def _to_second(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Go to where the second gradient is taken, with the first one from the closure unless it is there.

        Returns:
            What computes the second one and goes back. It gives the loss of the closure's first call.
        """
        found: list[Any] = []
        if self._kept is None:
            self.sample()
            self.zero_grad()
            with torch.enable_grad():
                found.append(closure())
            if not self._entries():  # nothing is trained
                self.restore()
                return lambda: found[0]
        if not self._perturbed:
            self.perturb()

        def second() -> Any:
            try:
                loss = closure()
            finally:
                self.restore()
            return found[0] if found else loss

        return second

    def _members(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """The parameters, in the order in which they are numbered, with their groups."""
        return ((group, param) for group in self.param_groups for param in group["params"])

    def _take_first(self) -> bool:
        """Keep the gradients there are as the first ones, and 0 for parameters that have none; whether there is any."""
        grads = {param: (index, grad) for index, param, grad in self._entries()}
        for _, param in self._members():
            state = self.state[param] if param in grads else self.state.get(param, {})
            if param in grads and _FIRST not in state:
                state[_FIRST] = torch.zeros_like(param.detach(), dtype=storage.exact_dtype(param.dtype))
            if param in grads:
                index, grad = grads[param]
                state[_FIRST].copy_(-grad if self.param_groups[index]["maximize"] else grad)
            elif _FIRST in state:
                state[_FIRST].zero_()
        return bool(grads)

    def _precision(self, param: Tensor, group: Group) -> Tensor:
        """This rank's part of s, entry by entry: of a complex parameter those of both parts."""
        state = self.state.get(param, {})
        return points.reals(state[_PRECISION]) if _PRECISION in state else points.filled_like(param, group["s_init"])
