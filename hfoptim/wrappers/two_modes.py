"""Wrappers with other weights to evaluate and to save than those that are trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from hfoptim.engine import modes
from hfoptim.engine.ambient import leave_undisturbed
from hfoptim.engine.checks import flag
from hfoptim.engine.distributed.dtensor import local
from hfoptim.wrappers.wrapper import Wrapper

TRAINED = "trained_weights"


class TwoModes(Wrapper):
    """A wrapper whose `eval()` puts the weights to evaluate into the parameters, until `train()`.

    The switch is exact: the trained weights are kept aside, also in a state_dict. A subclass has `TwoModes.counters`
    and `TwoModes.keeps` among its own, says in `evaluated` what the weights to evaluate are, and calls
    `check_training` before a step.
    """

    by_entries = True
    counters: ClassVar[Mapping[str, Any]] = {"train_mode": True}
    keeps: ClassVar[Mapping[str, bool]] = {TRAINED: True}

    def evaluated(self, param: Tensor, group: Mapping[str, Any]) -> Tensor | None:
        """This rank's part of the weights to evaluate; None where these are the trained ones."""
        raise NotImplementedError

    def check_inner(self, optimizer: Optimizer) -> None:
        found = modes.with_two(optimizer)
        if found is not None:
            raise ValueError(
                f"{type(found).__name__} has an evaluation mode and weights for it of its own, which "
                f"{type(self).__name__} would average once more"
            )

    def check_group(self, group: dict[str, Any]) -> None:
        flag("train_mode", group["train_mode"])
        group["train_mode"] = bool(group["train_mode"])

    def check_training(self) -> None:
        """Raise a RuntimeError if the parameters hold what is for evaluation."""
        self.complete_groups()
        modes.check_training(type(self).__name__, self.param_groups)

    @leave_undisturbed
    @torch.no_grad()
    def eval(self) -> None:
        """Put the weights to evaluate into the parameters; nothing if they are there."""
        for param, group in self._switching(to_train=False):
            weights = self.evaluated(param, group)
            if weights is not None:
                self.kept[TRAINED][param] = param.detach().clone()
                local(param.detach()).copy_(weights)

    @leave_undisturbed
    @torch.no_grad()
    def train(self) -> None:
        """Put the trained weights back into the parameters; nothing if they are there."""
        for param, _ in self._switching(to_train=True):
            if param in self.kept[TRAINED]:
                param.copy_(self.kept[TRAINED].pop(param))

    def _switching(self, to_train: bool) -> list[tuple[Tensor, dict[str, Any]]]:
        """The parameters, with their groups, of the groups whose mode changes, which is then changed."""
        self.complete_groups()
        return [(param, group) for group in modes.switched(self.param_groups, to_train) for param in group["params"]]
