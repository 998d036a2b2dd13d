"""Pictures of schedules. Needs matplotlib, which is imported when something is drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

from .checks import real_number, whole_number
from .curves import Curve
from .hyperparameters import HyperparameterSchedule
from .scheduler import ScheduleLR
from .table import SCHEDULES, curve_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Options for pictures of 1000 steps: those that a schedule requires, and those without which there is little to see.
EXAMPLES: dict[str, dict[str, Any]] = {
    "cosine_with_restarts": {"num_cycles": 3},
    "cosine_with_min_lr": {"min_lr_rate": 0.2},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.2},
    "polynomial": {"power": 2.0},
    "warmup_stable_decay": {"num_decay_steps": 300},
    "constant_factor": {"total_iters": 300},
    "linear_factor": {"total_iters": 300},
    "exponential": {"gamma": 0.995},
    "multiplicative": {"factor": 0.995},
    "cosine_annealing_with_warm_restarts": {"T_0": 120, "T_mult": 2},
    "cosine_annealing_with_warmup": {"first_cycle_steps": 300},
    "cosine_with_cycles": {"cycle_limit": 3, "cycle_mul": 1.5, "cycle_decay": 0.6},
    "cyclic": {"step_size_up": 100, "mode": "triangular2"},
    "sequential": {"schedules": ["linear", "cosine"], "milestones": [400]},
    "proportion": {"schedule": "cosine", "max_value": 0.8, "min_value": 0.2},
    "infinite": {"num_cooldown_steps": 300, "num_anneal_steps": 200},
    "lr_range_test": {"step_size": 200},
    "inverse_time": {"decay_steps": 100, "decay_rate": 1.0},
    "piecewise_interpolate": {"boundaries_and_scales": {"0.3": 0.4, "0.5": 2.0, "0.9": 0.1}},
    "power_decay": {"num_decay_steps": 500},
    "power": {"batch_size": 8, "sequence_length": 64, "a": 30.0, "num_decay_steps": 100},
}

# Those of them that are numbers of steps.
_IN_STEPS = {
    "T_0",
    "decay_steps",
    "first_cycle_steps",
    "milestones",
    "num_anneal_steps",
    "num_cooldown_steps",
    "num_decay_steps",
    "step_size",
    "step_size_up",
    "total_iters",
}

# Drawn at so many steps at most.
_POINTS = 2000


def plot(
    *what: Any,
    num_warmup_steps: int | float = 0,
    num_training_steps: int = 1000,
    lr: float = 1.0,
    steps: int | None = None,
    columns: int | None = None,
    file: str | PathLike[str] | None = None,
) -> Figure:
    """Draw schedules over the steps.

        >>> plot("linear", "cosine", ("polynomial", {"power": 2}), num_warmup_steps=100)  # doctest: +SKIP
        >>> plot({"mine": warmup(100).then(cosine(900))}, "cosine", file="mine.png")  # doctest: +SKIP

    Args:
        *what: names of schedules, ``(name, options)``, curves, ``(label, curve)``, dicts of any of these by label, or
            schedules that drive an optimizer: a ScheduleLR is drawn with the learning rates of its groups, a
            HyperparameterSchedule with the values of what it drives.
        num_warmup_steps: of the schedules given by name; steps, or a share of the total.
        num_training_steps: of the schedules given by name.
        lr: the initial learning rate of names and curves. With the default of 1 the picture shows multipliers.
        steps: how many steps to draw. None: to the end of the longest, or 1000 if nothing ends.
        columns: None draws all into one diagram, a number each into its own, so many in a row.
        file: where to save the picture; the format follows from the ending (``.png``, ``.svg``, ``.pdf``).

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: something is none of these.
        ValueError: nothing is given, a name is unknown, a schedule follows a metric, or an argument is out of range.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot needs matplotlib: pip install matplotlib, or 'hfoptim[report]'") from error

    lr = real_number("lr", lr, above=0)
    lengths = {"num_warmup_steps": num_warmup_steps, "num_training_steps": num_training_steps}
    drawn = [each for one in what for each in _labelled(one, lengths)]
    if not drawn:
        raise ValueError("nothing to plot: give names of schedules, curves or schedules")
    if steps is None:
        steps = max([math.ceil(thing.length) for thing in drawn if thing.length is not None], default=1000)
    steps = whole_number("steps", steps, at_least=1)
    at = list(range(0, steps + 1, max(1, steps // _POINTS)))

    apart = columns is not None
    count = len(drawn) if apart else 1
    across = min(count, 1 if columns is None else whole_number("columns", columns, at_least=1))
    down = math.ceil(count / across)
    figure = Figure(figsize=(2.6 * across, 1.9 * down) if apart else (8.0, 4.5), layout="constrained")
    diagrams = list(figure.subplots(down, across, squeeze=False, sharex=True).flat)
    for index, thing in enumerate(drawn):
        diagram = diagrams[index if apart else 0]
        for label, values in thing.lines(at, lr):
            diagram.plot(at, values, label=label)
        if apart:
            diagram.set_title(thing.label, fontsize="small")
            diagram.tick_params(labelsize="x-small", labelbottom=index + across >= count)
    for index, diagram in enumerate(diagrams):
        diagram.grid(alpha=0.3)
        diagram.set_visible(index < count)
        diagram.set_ylim(bottom=min(0.0, diagram.get_ylim()[0]))
        if len(diagram.lines) > 1 or not apart:
            diagram.legend(fontsize="x-small" if apart else "small")
    units = {thing.unit for thing in drawn} - {""} or {"multiplier" if lr == 1.0 else "learning rate"}
    figure.supxlabel("step", fontsize="small")
    figure.supylabel(" or ".join(sorted(units)), fontsize="small")
    if file is not None:
        figure.savefig(file, dpi=100)
    return figure


def examples(num_warmup_steps: int | float = 100, num_training_steps: int = 1000) -> dict[str, Curve]:
    """Return a curve for every name that has one, with options that show what it does.

    Args:
        num_warmup_steps: steps of warm-up, or a share of the total.
        num_training_steps: steps of the whole schedule, 1 or more; the options' steps are taken in proportion.

    Raises:
        TypeError, ValueError: a length is out of range, or too long or too short a warm-up for one of them, which is
            named.
    """
    share = whole_number("num_training_steps", num_training_steps, at_least=1) / 1000
    curves = {}
    for name, info in sorted(SCHEDULES.items()):
        if info.curve is None:
            continue
        options = {key: _in_proportion(key, value, share) for key, value in EXAMPLES.get(name, {}).items()}
        try:
            curves[name] = curve_of(name, num_warmup_steps, num_training_steps, options)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return curves


def _in_proportion(key: str, value: Any, share: float) -> Any:
    if key not in _IN_STEPS:
        return value
    return [max(1, round(each * share)) for each in value] if isinstance(value, list) else max(1, round(value * share))


@dataclass(frozen=True)
class _Drawn:
    """Something to draw.

    Args:
        label: what the picture calls it.
        thing: a curve, or a schedule.
        end: the step at which it ends, where it does not say so itself.
    """

    label: str
    thing: Curve | ScheduleLR | HyperparameterSchedule
    end: float | None = None

    @property
    def length(self) -> float | None:
        """The step up to which there is something to see, if there is one."""
        if isinstance(self.thing, HyperparameterSchedule):
            ends = [each.curve.length for each in self.thing.hyperparameters.all]
        else:
            ends = [(self.thing.curve if isinstance(self.thing, ScheduleLR) else self.thing).length]
        known = [end for end in (*ends, self.end) if end is not None and 0 < end < math.inf]
        return max(known) if known else None

    @property
    def unit(self) -> str:
        """What its values are, if they are not those of a curve."""
        if isinstance(self.thing, Curve):
            return ""
        return "learning rate" if isinstance(self.thing, ScheduleLR) else "value"

    def lines(self, at: Sequence[int], lr: float) -> list[tuple[str, list[float]]]:
        """Labels and values at steps: one line, or one for each group whose values differ from those before."""
        if isinstance(self.thing, Curve):
            return [(self.label, [lr * value for value in self.thing.bind(lr).values(at)])]
        traces: dict[str, list[float]] = {}
        for step in at:
            for text, value in self._values(step):
                traces.setdefault(text, []).append(value)
        different: dict[tuple[float, ...], str] = {}
        for text, trace in traces.items():
            different.setdefault(tuple(trace), text)
        alone = len(different) == 1
        return [(self.label if alone else f"{self.label}, {text}", list(trace)) for trace, text in different.items()]

    def _values(self, step: int) -> Iterator[tuple[str, float]]:
        if isinstance(self.thing, ScheduleLR):
            yield from ((f"group {index}", lr) for index, lr in enumerate(self.thing.lr_at(step)))
        elif isinstance(self.thing, HyperparameterSchedule):
            for name, groups in self.thing.hyperparameters.at(step).items():
                yield from ((f"{name} of group {index}", value) for index, value in groups.items())


def _labelled(what: Any, lengths: Mapping[str, Any], label: str | None = None) -> Iterator[_Drawn]:
    """What there is to draw in an argument of `plot`."""
    if isinstance(what, Mapping):
        for key, one in what.items():
            yield from _labelled(one, lengths, str(key))
    elif isinstance(what, ScheduleLR | HyperparameterSchedule):
        yield _Drawn(label or type(what).__name__, what)
    elif isinstance(what, Curve):
        yield _Drawn(label or repr(what), what)
    elif isinstance(what, tuple) and len(what) == 2 and not isinstance(what[1], Mapping):
        yield from _labelled(what[1], lengths, str(what[0]))
    elif isinstance(what, str) or (isinstance(what, tuple) and len(what) == 2):
        name, options = (what, {}) if isinstance(what, str) else what
        text = ", ".join([name, *(f"{key}={value}" for key, value in options.items())])
        curve = curve_of(name, *lengths.values(), options)
        yield _Drawn(label or text, curve, lengths["num_training_steps"])
    else:
        raise TypeError(
            f"cannot plot {what!r}: give the name of a schedule, a curve, a ScheduleLR or a HyperparameterSchedule"
        )
