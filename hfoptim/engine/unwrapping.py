"""Finding optimizers inside of what other libraries put around them: Accelerate, Lightning, Fabric."""

from __future__ import annotations

from typing import Any


def unwrap(optimizer: Any, wanted: type | tuple[type, ...] | None = None) -> Any:
    """The optimizer inside wrappers, such as Accelerate's and Lightning's, that hold the next one in `.optimizer`.

    Args:
        optimizer: an optimizer, wrapped or not.
        wanted: the class, or classes, to look for; None for the innermost.

    Returns:
        The first of that class, or None where there is none.
    """
    while True:
        optimizer = unmasked(optimizer)
        if wanted is not None and isinstance(optimizer, wanted):
            return optimizer
        inner = getattr(optimizer, "optimizer", None)
        if inner is None:
            return optimizer if wanted is None else None
        optimizer = inner


def unmasked(optimizer: Any) -> Any:
    """The optimizer itself, where an object around it passes itself off as it, as those of Lightning and Fabric do.

    Their class is made to derive from that of what they hold in `.optimizer`: methods of that class are found on them,
    and would write into them.
    """
    inner = getattr(optimizer, "optimizer", None)
    masked = inner is not None and inner is not optimizer and isinstance(optimizer, type(inner))
    return unmasked(inner) if masked else optimizer


def unwrap_all(optimizer: Any, wanted: type | tuple[type, ...]) -> list[Any]:
    """All optimizers of a class inside wrappers, and inside those that hold several in `.optimizers`.

    Args:
        optimizer: an optimizer, wrapped or not.
        wanted: the class, or classes, to look for; what is inside of one found is not looked at.

    Returns:
        Those found, in order.
    """
    optimizer = unmasked(optimizer)
    if isinstance(optimizer, wanted):
        return [optimizer]
    inside = getattr(optimizer, "optimizers", None) or [getattr(optimizer, "optimizer", None)]
    return [found for inner in inside if inner is not None for found in unwrap_all(inner, wanted)]


def note_skipped(optimizer: Any, skipped: bool) -> None:
    """Let Accelerate's wrapper know whether a step was left out, as it is where float16 overflows.

    Its schedules and the Trainer's ask it then, and wait. Nothing where there is no such wrapper, or where it has a
    GradScaler and finds out by itself.

    Args:
        optimizer: an optimizer, wrapped or not.
        skipped: whether the step was left out.
    """
    while optimizer is not None:
        if "_is_overflow" in getattr(optimizer, "__dict__", {}) and getattr(optimizer, "scaler", None) is None:
            optimizer._is_overflow = skipped
        optimizer = getattr(optimizer, "optimizer", None)
