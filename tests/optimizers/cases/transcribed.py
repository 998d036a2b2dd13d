"""Algorithms of papers and authors' files written out, in plain torch, where no package has them or has them right."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer


class Transcribed(Optimizer):
    """A peer of one formula per line, one parameter at a time; a subclass says what `move` does and its defaults."""

    defaults_: ClassVar[dict[str, Any]] = {}

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, {**self.defaults_, **options})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    state["t"] = state.get("t", 0) + 1
                    p.copy_(self.move(p.clone(), p.grad.clone(), state, group))

    def move(self, p: Tensor, g: Tensor, s: dict[str, Any], o: dict[str, Any]) -> Tensor:
        """The next value of a parameter.

        Args:
            p: its value.
            g: its gradient.
            s: what is kept from step to step; `t` is the number of the step, from 1.
            o: the options of its group.
        """
        raise NotImplementedError
