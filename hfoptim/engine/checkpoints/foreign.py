"""State that other packages keep in a form of their own, as plain tensors: bitsandbytes' 8-bit codes, torchao's.

bitsandbytes numbers the states, `state1` and `state2`; a class whose equations are the same says in `peer_state` what
they are here. `state1[0]` and `state1[1]` are the two momenta of AdEMAMix, which are one tensor there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hfoptim.engine.optimizer import EngineOptimizer

# Where bitsandbytes >= 0.46 puts them, so that FSDP leaves them alone.
_WRAPPED = "__bnb_optimizer_quant_state__"
_BLOCK = 256
# What its kernels never do, where a class here can.
_NEVER = {
    "amsgrad": False,
    "centered": False,
    "dampening": 0.0,
    "initial_accumulator_value": 0.0,
    "lr_decay": 0.0,
    "momentum": 0.0,
    "nesterov": False,
}


def plain(optimizer: EngineOptimizer, state_dict: Any) -> Any:
    """A state_dict of another package with decoded state and with groups as they are here; others as they are.

    Raises:
        ValueError: it is of bitsandbytes, which has other equations by the optimizer's name.
    """
    if not isinstance(state_dict, dict) or not isinstance(state_dict.get("state"), dict):
        return state_dict
    state, changed = {}, False
    for key, saved in state_dict["state"].items():
        state[key] = _plain_state(saved) if isinstance(saved, Mapping) else saved
        changed |= state[key] is not saved
    if not changed:
        return state_dict
    numbered = any("state1" in each or "state1[0]" in each for each in state.values() if isinstance(each, Mapping))
    if numbered and optimizer.other_in_bitsandbytes:
        name = type(optimizer).__name__
        raise ValueError(
            f"the state_dict is not one of {name} but of bitsandbytes, whose optimizer of that name is another: "
            f"{optimizer.other_in_bitsandbytes}"
        )
    groups = state_dict.get("param_groups", [])
    if numbered:
        groups = [_plain_group(optimizer, group) for group in groups]
    return {**state_dict, "state": state, "param_groups": groups}


def _plain_state(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    if "state1" in saved or _WRAPPED in saved:
        return _decoded({**saved, **saved.get(_WRAPPED, {})})
    if any(_is_of_torchao(value) for value in saved.values()):
        return {name: value.dequantize() if _is_of_torchao(value) else value for name, value in saved.items()}
    return saved


def _is_of_torchao(value: Any) -> bool:
    return isinstance(value, Tensor) and type(value).__module__.startswith("torchao.")


def _decoded(saved: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"step": saved["step"]}
    for number in ("1", "2"):
        value = saved.get(f"state{number}")
        if value is None:
            continue
        if not value.is_floating_point():
            value = _decode(value, saved[f"qmap{number}"], saved[f"absmax{number}"])
        found[f"state{number}"] = value
    first, second = found["state1"], found.get("state2")
    if second is not None and first.ndim == second.ndim + 1:
        del found["state1"]
        found |= {f"state1[{index}]": part for index, part in enumerate(first)}
    return found


def _decode(codes: Tensor, values: Tensor, scales: Tensor) -> Tensor:
    """Numbers from codes: each is an entry of a table times the largest magnitude of its block of 256."""
    if scales.ndim == 2:  # several states, each in blocks of its own
        return torch.stack([_decode(part, values, of_part) for part, of_part in zip(codes, scales, strict=True)])
    numbers = values[codes.flatten().long()]
    return (numbers * scales.repeat_interleave(_BLOCK)[: numbers.numel()]).reshape(codes.shape)


def _plain_group(optimizer: EngineOptimizer, saved: Mapping[str, Any]) -> dict[str, Any]:
    """bitsandbytes writes every option as one of Adam's: SGD's momentum is the first of its betas."""
    own = optimizer.defaults
    group = {**{name: value for name, value in _NEVER.items() if name in own}, **saved}
    betas = tuple(group.pop("betas"))
    if "betas" in own:
        group["betas"] = betas
    elif "alpha" in own:  # RMSprop, and with it its momentum, which bitsandbytes' kernels do not use
        group["alpha"] = betas[0]
    elif "momentum" in own:
        group["momentum"] = betas[0]
    if "eps" not in own:
        group.pop("eps", None)
    warmup, of_beta3 = group.pop("t_alpha", None), group.pop("t_beta3", None)
    if "t_alpha_beta3" in own:
        group["t_alpha_beta3"] = warmup
        if warmup != of_beta3:
            raise ValueError(
                f"the state_dict has t_alpha={warmup!r} and t_beta3={of_beta3!r}, and {type(optimizer).__name__} has "
                f"one warm-up for both"
            )
    elif "alpha" not in own and not group.get("alpha"):
        group.pop("alpha", None)
    if "decoupled_weight_decay" in optimizer.peer_flags:  # its Adam decays as its AdamW
        group["decoupled_weight_decay"] = True
    return group
