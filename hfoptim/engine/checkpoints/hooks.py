"""The hooks that torch runs around `state_dict` and `load_state_dict`, for optimizers that have these of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer


def hooked_state_dict(optimizer: Optimizer, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A state_dict made with the hooks that torch runs before and after."""
    for pre_hook in optimizer._optimizer_state_dict_pre_hooks.values():
        pre_hook(optimizer)
    state_dict = make()
    for post_hook in optimizer._optimizer_state_dict_post_hooks.values():
        changed = post_hook(optimizer, state_dict)
        if changed is not None:
            state_dict = changed
    return state_dict


def hooked_load(optimizer: Optimizer, state_dict: dict[str, Any], load: Callable[[dict[str, Any]], None]) -> None:
    """Load a state_dict with the hooks that torch runs before and after."""
    if isinstance(state_dict, dict):  # hooks may change it, and the caller's own stays as it is
        state_dict = state_dict.copy()
    for pre_hook in optimizer._optimizer_load_state_dict_pre_hooks.values():
        changed = pre_hook(optimizer, state_dict)
        if changed is not None:
            state_dict = changed
    load(state_dict)
    for post_hook in optimizer._optimizer_load_state_dict_post_hooks.values():
        post_hook(optimizer)
