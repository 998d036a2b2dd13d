"""What is written down of a learning rate that others train with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

Task = Literal["pretrain", "finetune", "lora"]
TASKS: tuple[Task, ...] = get_args(Task)


@dataclass(frozen=True)
class Recommendation:
    """What somebody trains with, and where that is written.

    Args:
        task: "pretrain" (from fresh weights), "finetune" (all weights of a trained model) or "lora" (adapters).
        lr: the peak of the learning rate.
        source: a page that has it.
        of: what is trained.
        low (default: lr), high (default: lr): the least and the largest learning rate in the source.
        weight_decay (None), betas (None), schedule (None), warmup (None): as in the source; None where it says nothing.
            `schedule` is a name of `schedules.list_schedules()`.
        options ({}): values, by option, of which one must be in force for the learning rate to mean the same here.
    """

    task: Task
    lr: float
    source: str
    of: str
    low: float = 0.0
    high: float = 0.0
    weight_decay: float | None = None
    betas: tuple[float, ...] | None = None
    schedule: str | None = None
    warmup: str | None = None
    options: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", self.low or self.lr)
        object.__setattr__(self, "high", self.high or self.lr)

    def holds(self, options: Mapping[str, Any]) -> bool:
        """Whether it is meant for an optimizer with these options."""
        return all(options.get(option) in values for option, values in self.options.items())

    @property
    def range(self) -> str:
        """Its learning rates in words."""
        return f"{self.lr:g}" if self.low == self.high else f"{self.lr:g}, from {self.low:g} to {self.high:g}"

    def __str__(self) -> str:
        said = [f"lr {self.range}"]
        if self.weight_decay is not None:
            said.append(f"weight_decay {self.weight_decay:g}")
        if self.betas is not None:
            said.append(f"betas {self.betas}")
        said += [] if self.schedule is None else [self.schedule]
        said += [] if self.warmup is None else [f"warm-up {self.warmup}"]
        said += [f"{option}={values[-1]!r}" for option, values in self.options.items()]
        return f"{', '.join(said)}: {self.of}; {self.source}"


class Same(NamedTuple):
    """An optimizer that is trained like another one, and who says so.

    Args:
        name: the other one.
        source: the page.
    """

    name: str
    source: str


def _of(task: Task) -> Callable[..., Recommendation]:
    def make(lr: float, source: str, of: str, *, decay: float | None = None, **more: Any) -> Recommendation:
        return Recommendation(task, lr, source, of, weight_decay=decay, **more)

    return make


pretrain, finetune, lora = (_of(task) for task in TASKS)
