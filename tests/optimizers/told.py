"""Losses for optimizers whose step depends on one, and peers that take it as a closure."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import is_dtensor
from hfoptim.engine.ambient import undisturbed


# One class for each: pickle finds it by its name.
@cache
def told(cls: type[Any], of: Callable[[list[dict[str, Any]]], Tensor] | None = None) -> type[Any]:
    """A class that is told a loss at every step which it was told none: harnesses make gradients without one.

    Args:
        cls: the class.
        of (default None): gives the loss, of its groups; None is `loss_of`.
    """
    known = of or loss_of

    class Told(cls):  # type: ignore[misc]
        @torch.no_grad()
        def _mean_loss(self) -> Tensor:
            if self._loss is None:
                loss = known(self.param_groups)
                self.add_loss(-loss if self.param_groups[0]["maximize"] else loss)  # the step has the positive one
            return super()._mean_loss()

    Told.__qualname__ = Told.__name__ = f"Told{cls.__name__}"
    globals()[Told.__name__] = Told  # where pickle looks for it
    return Told


@cache
def at_one_place(cls: type[Any]) -> type[Any]:
    """bSAM's class, which takes the gradients there are for those of both places: harnesses make them without a model.

    Args:
        cls: the class.
    """

    class AtOnePlace(cls):  # type: ignore[misc]
        def before_closure(self, closure: Any) -> Any:
            if closure is not None:

                def closing() -> Any:
                    loss = closure()
                    with torch.no_grad(), undisturbed():
                        self._take_first()
                    return loss

                return closing
            entries = self._entries()
            if entries and not self._is_only_for_state(entries):
                with undisturbed():
                    self._take_first()
            return None

    AtOnePlace.__qualname__ = AtOnePlace.__name__ = f"AtOnePlace{cls.__name__}"
    globals()[AtOnePlace.__name__] = AtOnePlace  # where pickle looks for it
    return AtOnePlace


def loss_of(groups: list[dict[str, Any]]) -> Tensor:
    """A positive number that goes by the gradients, in double precision."""
    grads = [param.grad for group in groups for param in group["params"] if param.grad is not None]
    if not grads:
        return torch.zeros((), dtype=torch.float64)
    parts = [torch.view_as_real(grad) if grad.is_complex() else grad for grad in grads]
    sums = [part.detach().abs().to(torch.float64).sum() for part in parts]
    return sum(
        (each.full_tensor() if is_dtensor(each) else each for each in sums), torch.zeros((), dtype=torch.float64)
    )


def swinging_loss_of(groups: list[dict[str, Any]]) -> Tensor:
    """The same, eight times as large at some steps."""
    loss = loss_of(groups)
    return torch.where(loss * 1e3 % 5.0 < 1.0, loss * 8.0, loss)


def by_closure(make: Callable[..., Any]) -> Callable[[str, dict[str, Tensor], dict[str, Any]], Any]:
    """A peer whose `step(closure)` gets that loss."""

    def made(who: str, params: dict[str, Tensor], options: dict[str, Any]) -> Any:
        cls = make(who)

        class Peer(cls):  # type: ignore[misc, valid-type]
            def step(self, closure: Any = None) -> Any:
                loss = loss_of(self.param_groups)
                return super().step(lambda: loss)

        return Peer(list(params.values()), **options)

    return made
