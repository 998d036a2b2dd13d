"""Training and evaluation modes, of optimizers that keep other weights to evaluate with; groups hold `train_mode`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def has_two(optimizer: Any) -> bool:
    """Whether an optimizer has methods `train()` and `eval()`."""
    return all(callable(getattr(optimizer, name, None)) for name in ("train", "eval"))


def with_two(optimizer: Any) -> Any | None:
    """An optimizer with two modes of its own, this one or inside of it; None if there is none."""
    while optimizer is not None:
        # Several as one always have the methods, and two modes where one of them has.
        members = getattr(optimizer, "optimizers", None)
        if members:
            return next((found for found in map(with_two, members) if found is not None), None)
        if has_two(optimizer):
            return optimizer
        optimizer = getattr(optimizer, "optimizer", None)
    return None


def check_training(owner: str, groups: Sequence[dict[str, Any]]) -> None:
    """Raise a RuntimeError if the parameters of a group hold what is for evaluation."""
    if not all(group["train_mode"] for group in groups):
        raise RuntimeError(
            f"{owner} is in evaluation mode, in which the parameters are not where training goes on; call "
            f"optimizer.train() before the forward pass"
        )


def switched(groups: Sequence[dict[str, Any]], to_train: bool) -> list[dict[str, Any]]:
    """The groups whose mode changes, which is then changed."""
    changing = [group for group in groups if group["train_mode"] is not to_train]
    for group in changing:
        group["train_mode"] = to_train
    return changing
