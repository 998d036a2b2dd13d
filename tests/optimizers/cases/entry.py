"""What an entry of the table of optimizers says: the options an optimizer is tested with, and the peers it follows."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import peers
import torch
from harness import SMALL
from torch import Tensor

Options = dict[str, Any]


def grid(**choices: list[Any]) -> list[Options]:
    """Every combination of the choices."""
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def _same(options: Options) -> Options:
    return dict(options)


@dataclass(frozen=True)
class Reference:
    """A peer that an optimizer follows step by step.

    Args:
        who: full name of the peer's class.
        runs: our options, one run each.
        translate: our options -> the peer's.
        make: `(who, named parameters, options)` -> the peer.
        dtype: what the peer computes in.
        layouts: names of the parameters it can do.
        tolerance: largest difference, as a share of the movement since the start.
        lr_moves: whether lr changes from step to step; not where the optimizer sets its own.
    """

    who: str
    runs: list[Options]
    translate: Callable[[Options], Options] = _same
    make: Callable[[str, dict[str, Tensor], Options], Any] | None = None
    dtype: torch.dtype = torch.float64
    layouts: tuple[str, ...] = SMALL
    tolerance: float = 1e-10
    lr_moves: bool = True

    def build(self, params: dict[str, Tensor], options: Options) -> Any:
        if self.make is not None:
            return self.make(self.who, params, self.translate(options))
        return peers.load(self.who)(list(params.values()), **self.translate(options))


@dataclass(frozen=True)
class Checkpoint:
    """A peer whose state_dict loads, and the options of ours and of the peer under which both go on alike.

    Args:
        who: full name of the peer's class.
        ours, theirs: the options.
        tolerance: largest difference, as a share of the movement since the checkpoint.
    """

    who: str
    ours: Options
    theirs: Options
    tolerance: float = 1e-10


@dataclass(frozen=True)
class Variant:
    """Options under which the invariants are tested.

    Args:
        options: of the constructor.
        lr: learning rate for the tests that change it; None where the optimizer sets its own.
        complex: whether complex parameters are taken.
        alone: whether a parameter's step depends on nothing but its own history.
        late: whether that holds for one that joins later, too; not where the steps of a group are counted.
        linear: whether a step is proportional to its learning rate.
        compiled: whether the compiled runner is tested with it in float32, too, where all variants are in float64.
        layouts: of its parameters there.
        traceable: whether kernels can be generated for its rule.
    """

    options: Options = field(default_factory=dict)
    lr: float | None = 1e-2
    complex: bool = True
    alone: bool = True
    late: bool = True
    linear: bool = True
    compiled: bool = False
    layouts: tuple[str, ...] = (*SMALL, "large")
    traceable: bool = True


@dataclass(frozen=True)
class Entry:
    """An optimizer of the catalogue.

    Args:
        name: in the registry.
        cls: its class.
        variants: by a short name.
        references: the peers it follows.
        checkpoints: the peers whose state_dict it takes.
        numbers: hyper-parameters that must be finite numbers, with a value out of range for each.
        small_steps: options under which its steps are far below the spacing of bfloat16 numbers around 1, which is
            1/128.
        counted: whether a state_dict without counts of steps is refused; not where peers have none.
    """

    name: str
    cls: type[torch.optim.Optimizer]
    variants: dict[str, Variant]
    references: list[Reference]
    numbers: dict[str, Any]
    checkpoints: list[Checkpoint] = field(default_factory=list)
    small_steps: Options = field(default_factory=lambda: {"lr": 1e-4, "weight_decay": 0.1})
    counted: bool = True


BETAS = [(0.9, 0.999), (0.5, 0.0), (0.0, 0.9)]


def without(*names: str, **extra: Any) -> Callable[[Options], Options]:
    return lambda options: {k: v for k, v in options.items() if k not in names} | extra
