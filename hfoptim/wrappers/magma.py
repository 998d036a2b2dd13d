"""Magma: updates that are left out at random, and the others the shorter, the less gradient and momentum agree."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hfoptim.engine import storage
from hfoptim.engine.ambient import lasting, leave_undisturbed
from hfoptim.engine.checks import integer, number
from hfoptim.engine.distributed.dtensor import Groups, aligned, groups_of, local, sum_over_ranks
from hfoptim.wrappers.lookahead import MOMENTA
from hfoptim.wrappers.wrapper import Wrapper

ALIGNMENT, MOMENTUM = "magma_alignment", "magma_momentum"
# Least norm to divide by.
_TINY = 1e-8


class Magma(Wrapper):
    """Leaves out the updates of parameters at random, and shortens the others by how well momentum and gradient agree.

    With u the update of a parameter P (the change that the inner optimizer makes, its weight decay included), m its
    momentum after the step, g its gradient:

        s = alignment s + (1 - alignment) sigmoid(<m, g> / (|m| |g|) / tau),  at first s = 1
        P = P + s u with probability keep, else P

    The inner optimizer's state goes on either way. Its momentum is `exp_avg` or `momentum_buffer`; where it has none,
    or keeps it in 8 or 4 bits, an average of the gradients with the decay rate `momentum` takes its place, one more
    tensor. A step costs a copy of the weights.

    What is left out is drawn on the host from `seed`, the number of the step and the place of the parameter: the same
    on all ranks, and after a checkpoint. Weights in bfloat16 are moved with what their rounding has left over.

    By name: `magma_adamw`, with the options `magma_keep`, `magma_tau`, `magma_decay`, `magma_beta` and `magma_seed`.
    They lie in the parameter groups and may differ between them or change; keep=1 and a high tau leave half of each
    update.

    Args:
        optimizer: any torch optimizer that leaves gradients as they are.
        keep (default 0.5): probability of an update, in [0, 1].
        tau (2.0): temperature of the sigmoid, above 0.
        alignment (0.9): decay rate of s, in [0, 1].
        momentum (0.9): decay rate of the momentum of its own, in [0, 1].
        seed (0): of what is left out.

    Raises:
        TypeError: no optimizer, or an option of the wrong type; from `step()`, a complex parameter.
        ValueError: an option out of range, or an inner Magma.

    Source:
        arXiv 2602.15322 (momentum-aligned gradient masking), as pytorch_optimizer 4.1 has it.
    """

    by_name = {"magma_keep": 0.5, "magma_tau": 2.0, "magma_decay": 0.9, "magma_beta": 0.9, "magma_seed": 0}
    counters = {"magma_step": 0}
    keeps = {ALIGNMENT: False, MOMENTUM: False}
    expects = ALIGNMENT, lambda group: group.get("magma_step", 0) > 0

    def __init__(
        self,
        optimizer: Optimizer,
        keep: float = 0.5,
        tau: float = 2.0,
        alignment: float = 0.9,
        momentum: float = 0.9,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, dict(zip(self.by_name, (keep, tau, alignment, momentum, seed), strict=True)))

    def check_group(self, group: dict[str, Any]) -> None:
        for name in ("magma_keep", "magma_decay", "magma_beta"):
            group[name] = number(name, group[name], 0.0, 1.0, high_open=False)
        group["magma_tau"] = number("magma_tau", group["magma_tau"])
        if group["magma_tau"] == 0.0:
            raise ValueError("magma_tau=0 divides by zero; expected a number above 0")
        for name in ("magma_seed", "magma_step"):
            group[name] = integer(name, group[name], 0)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step of the inner optimizer, and take back what is masked of it.

        Args:
            closure: handed to the inner optimizer.

        Returns:
            What the inner optimizer returns.

        Raises:
            TypeError: a parameter is complex.
        """
        self.complete_groups()
        before = self._weights(closure is not None)
        loss = self._inner.step(closure)
        if not self.only_made_state("magma_step"):
            for group in self.param_groups:
                group["magma_step"] += 1
            self._mask(before)
        return loss

    @leave_undisturbed
    @torch.no_grad()
    def _weights(self, all_of_them: bool) -> dict[Tensor, Tensor]:
        """Copies of the exact weights that the step may change: those with a gradient, or all before a closure."""
        found = {}
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None or (all_of_them and param.requires_grad):
                    if param.is_complex():
                        raise TypeError(
                            "Magma compares directions of real numbers and does not take complex parameters"
                        )
                    found[param] = self.exact(param).clone()
        return found

    @leave_undisturbed
    @torch.no_grad()
    def _mask(self, before: dict[Tensor, Tensor]) -> None:
        moved = [
            (group, param, ordinal)
            for ordinal, (group, param) in enumerate((g, p) for g in self.param_groups for p in g["params"])
            if param in before and param.grad is not None
        ]
        for (group, param, ordinal), cosine in zip(moved, self._cosines(moved), strict=True):
            target = torch.sigmoid(cosine / group["magma_tau"])
            alignment = self.kept[ALIGNMENT].setdefault(param, torch.ones_like(target))
            alignment.lerp_(target, 1.0 - group["magma_decay"])
            old = before[param]
            kept = _is_kept(group, ordinal)
            self.write(param, old + (self.exact(param) - old) * alignment.to(old.dtype) if kept else old)

    def _cosines(self, moved: list[tuple[dict[str, Any], Tensor, int]]) -> list[Tensor]:
        """The cosine of the angle between momentum and gradient of each, over all ranks, in float32."""
        sums: dict[Groups, dict[str, Tensor]] = {}
        for index, (group, param, _) in enumerate(moved):
            assert param.grad is not None
            grad = local(aligned(param.grad.detach(), param))
            momentum, grad = self._momentum(group, param, grad).float(), grad.float()
            parts = {"both": momentum * grad, "momentum": momentum.square(), "gradient": grad.square()}
            found = sums.setdefault(groups_of(param), {})
            found |= {f"{name} {index}": part.sum() for name, part in parts.items()}
        totals = sum_over_ranks(sums) if sums else {}
        cosines = []
        for index in range(len(moved)):
            norms = [totals[f"{name} {index}"].sqrt().clamp(min=_TINY) for name in ("momentum", "gradient")]
            cosines.append((totals[f"both {index}"] / (norms[0] * norms[1])).float())
        return cosines

    def reads_state(self, own: Mapping[str, Any]) -> bool:
        return True

    def _momentum(self, group: dict[str, Any], param: Tensor, grad: Tensor) -> Tensor:
        """The inner optimizer's momentum, or one of its own with the new gradient in it."""
        state = self.state.get(param, {})
        for name in MOMENTA:
            if isinstance(state.get(name), Tensor) and state[name].is_floating_point():
                return local(state[name])
        if param not in self.kept[MOMENTUM]:
            dtype = storage.exact_dtype(param.dtype)
            self.kept[MOMENTUM][param] = torch.zeros_like(param, dtype=dtype).detach()
        momentum = local(self.kept[MOMENTUM][param])
        return momentum.lerp_(grad.to(momentum.dtype), 1.0 - group["magma_beta"])

    def _taken(self, name: str, param: Tensor, value: Tensor) -> Tensor:
        # One number for a parameter.
        return (
            lasting(value).to(local(param).device, copy=True)
            if name == ALIGNMENT
            else super()._taken(name, param, value)
        )


def _is_kept(group: dict[str, Any], ordinal: int) -> bool:
    drawn = random.Random(f"{group['magma_seed']} {group['magma_step']} {ordinal}").random()
    return drawn < float(group["magma_keep"])
