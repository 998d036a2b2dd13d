"""What a comparison is made of: its options, their defaults and their checks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hfoptim.registry.info import OptimInfo

DEFAULT_OPTIMIZERS = ("adamw", "adafactor", "lion", "sgd")

# Three rates per optimizer, half a decade apart, around the value at which it trains the default model best: an
# optimizer must not win because its rival was given a poor learning rate.
DEFAULT_GRIDS: dict[str, tuple[float, ...]] = {
    **dict.fromkeys(("adam", "adam_weight_decay", "adamw", "adamw_schedule_free", "ademamix"), (1e-3, 3e-3, 1e-2)),
    **dict.fromkeys(("adafactor", "cadafactor"), (1e-3, 3e-3, 1e-2)),
    **dict.fromkeys(("distributed_shampoo", "kron", "mars"), (1e-3, 3e-3, 1e-2)),
    "lion": (3e-4, 1e-3, 3e-3),
    "momentum": (0.1, 0.3, 1.0),
    **dict.fromkeys(("muon", "nmuon", "adamuon", "nadamuon", "soap"), (3e-3, 1e-2, 3e-2)),
    "prodigy": (0.1, 0.3, 1.0),
    "sgd": (0.1, 0.3, 1.0),
}

# Options that a comparison of learning rates calls for. Adafactor would multiply the rate by the size of the parameter.
# The embedding's side of 2048 tokens has no factor (Shampoo: is cut into blocks), as it is with vocabularies of usual
# size: SOAP's own limit is 10,000. A run of 300 steps has 30 roots.
PRESETS: dict[str, dict[str, Any]] = {
    "soap": {"max_precond_dim": 1024},
    "kron": {"max_size_triangular": 1024},
    "distributed_shampoo": {"max_preconditioner_dim": 512, "precondition_frequency": 10},
    "adafactor": {"relative_step": False, "scale_parameter": False},
    "cadafactor": {"relative_step": False, "scale_parameter": False},
}

# Schedules that are made of others: there is no option for these.
COMPOSED_SCHEDULES = ("sequential", "proportion")


class CompareError(ValueError):
    """A comparison that cannot be made as it was asked for; the message says what to change."""


@dataclass(frozen=True)
class CompareConfig:
    """Everything that decides the numbers of a comparison. Build it with `CompareConfig.from_options`.

    Args:
        optimizers: Names of the registry, in the order in which they run.
        lr_grid: The learning rates that each of the optimizers is run with.
        dataset: Name of a dataset on the hub or path of a local file or folder. None: the text of Python's language
            reference, which ships with Python.
        dataset_config: Configuration of a hub dataset, such as `wikitext-2-raw-v1`.
        text_column: The column that holds the text. None: found by itself where there is no doubt.
        model: Name of a causal language model on the hub or path of a local folder. None: a small GPT-2 with a
            tokenizer trained on the training text.
        from_scratch: Take only the architecture of `model`, with fresh weights.
        steps: Optimizer steps of every run.
        batch_size: Sequences per step.
        seq_len: Tokens per sequence.
        schedule: Name of the learning-rate schedule, the same for all runs. The first tenth of the steps warms up.
        seeds: Seeds of the initial weights and of the order of the data. Every optimizer is run with every learning
            rate and every seed; a rate is judged by the mean over the seeds.
        tune_first: Try all rates with the first seed only, and run the other seeds at the rate that is best with it.
        checkpoint_steps: Steps between the checkpoints of a run, from which `--resume` goes on. 0: none. None: a
            quarter of the run.
    """

    optimizers: tuple[str, ...]
    lr_grid: dict[str, tuple[float, ...]]
    dataset: str | None = None
    dataset_config: str | None = None
    text_column: str | None = None
    model: str | None = None
    from_scratch: bool = False
    steps: int = 300
    batch_size: int = 8
    seq_len: int = 64
    schedule: str = "cosine"
    seeds: tuple[int, ...] = (0,)
    tune_first: bool = False
    checkpoint_steps: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 1), ("seq_len", 8)):
            _check_int(name, getattr(self, name), least)
        if self.checkpoint_steps is not None:
            _check_int("checkpoint_steps", self.checkpoint_steps, 0)
        _check_seeds(self.seeds)
        if self.tune_first and len(self.seeds) == 1:
            raise CompareError("--tune-first is about the other seeds: give several, as in --seed 0,1,2")
        if self.dataset is None and (self.dataset_config is not None or self.text_column is not None):
            raise CompareError("--dataset-config and --text-column need --dataset")
        if self.model is None and self.from_scratch:
            raise CompareError("--from-scratch needs --model")
        self._check_schedule()

    def _check_schedule(self) -> None:
        """Try the schedule with every learning rate: some have a lower end, which must not be above it."""
        from hfoptim.schedules import check_options

        rates = sorted({lr for rates in self.lr_grid.values() for lr in rates})
        steps = {"num_warmup_steps": self.warmup_steps, "num_training_steps": self.steps}
        try:
            check_options(self.schedule, self.schedule_kwargs, rates, **steps)
        except (TypeError, ValueError) as error:
            raise CompareError(f"--schedule {self.schedule}: {error}") from None

    @classmethod
    def from_options(
        cls,
        optimizers: Iterable[str] | None = None,
        lr_grid: Sequence[str] | Mapping[str, Sequence[float]] | None = None,
        schedule: str | None = None,
        dataset: str | None = None,
        model: str | None = None,
        seeds: int | str | Iterable[int | str] | None = None,
        **options: Any,
    ) -> CompareConfig:
        """Build a configuration from what a user wrote; None stands for the default everywhere.

        Args:
            optimizers: Names in any case; one string may hold several, separated by commas.
            lr_grid: `["1e-3,3e-3", "lion=1e-4,3e-4"]`, or a mapping of names to rates.
            schedule: Name of a schedule in any case.
            dataset, model: As in the class; a path that exists is made absolute.
            seeds: One number, or several; a string may hold several, separated by commas.
            **options: The other fields of the class.

        Raises:
            CompareError: A value is not usable; the message names it and says what would be right.
        """
        names = parse_optimizers(DEFAULT_OPTIMIZERS if optimizers is None else optimizers)
        return cls(
            optimizers=names,
            lr_grid=parse_lr_grid(() if lr_grid is None else lr_grid, names),
            schedule=_schedule_name("cosine" if schedule is None else schedule),
            dataset=_absolute(dataset),
            model=_absolute(model),
            seeds=(0,) if seeds is None else parse_seeds(seeds),
            **{name: value for name, value in options.items() if value is not None},
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CompareConfig:
        """The configuration that `to_json` wrote."""
        # What came later has its default in older files.
        values = {f.name: data[f.name] for f in fields(cls) if f.name in data or f.name != "tune_first"}
        values["optimizers"], values["seeds"] = tuple(values["optimizers"]), tuple(values["seeds"])
        values["lr_grid"] = {name: tuple(rates) for name, rates in values["lr_grid"].items()}
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """The fields as values that JSON can hold, plus what follows from them."""
        data = asdict(self)
        data["warmup_steps"] = self.warmup_steps
        data["schedule_kwargs"] = self.schedule_kwargs
        data["optimizer_options"] = {name: PRESETS.get(name, {}) for name in self.optimizers}
        return data

    @property
    def runs(self) -> int:
        """How many runs there are."""
        table = sum(len(self.lr_grid[optimizer]) for optimizer in self.optimizers)
        others = len(self.seeds) - 1
        return table + others * (len(self.optimizers) if self.tune_first else table)

    @property
    def warmup_steps(self) -> int:
        """Steps in which the learning rate rises to its peak: a tenth of the run."""
        return self.steps // 10

    @property
    def schedule_kwargs(self) -> dict[str, Any]:
        """What some schedules cannot do without: the length of their decay, the floor they end at."""
        decay = max(1, self.steps // 5)
        hundredth = 0.01 ** (1 / self.steps)
        needed: dict[str, dict[str, Any]] = {
            "warmup_stable_decay": {"num_decay_steps": decay},
            "cosine_with_min_lr": {"min_lr_rate": 0.1},
            "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
            "cosine_annealing_with_warm_restarts": {"T_0": max(1, (self.steps - self.warmup_steps) // 3)},
            "cyclic": {"step_size_up": max(1, self.steps // 4)},
            "exponential": {"gamma": hundredth},
            "multiplicative": {"factor": hundredth},
            "inverse_time": {"decay_steps": decay, "decay_rate": 1.0},
            "piecewise_interpolate": {"boundaries_and_scales": {0.8: 0.1}},
            "infinite": {"num_cooldown_steps": decay, "num_anneal_steps": decay},
            "power": {"batch_size": self.batch_size, "sequence_length": self.seq_len, "num_decay_steps": decay},
        }
        return needed.get(self.schedule, {})

    @property
    def save_every(self) -> int:
        """Steps between two checkpoints of a run; 0 for none."""
        return max(1, self.steps // 4) if self.checkpoint_steps is None else self.checkpoint_steps

    def differences(self, other: CompareConfig) -> list[str]:
        """One line per option in which `other` differs, as `steps: 160 against 200`."""
        names = [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]
        return [f"{name}: {getattr(self, name)!r} against {getattr(other, name)!r}" for name in names]


def parse_optimizers(names: Iterable[str]) -> tuple[str, ...]:
    """Canonical names of the optimizers, each once, in the given order.

    Raises:
        CompareError: A name is unknown (the closest ones are listed), there is none, or the Trainer cannot use it.
    """
    from hfoptim.registry.lookup import get_optimizer_info

    found: dict[str, None] = {}
    for part in ",".join(names).split(","):
        if part.strip():
            try:
                info = get_optimizer_info(part.strip())
            except ValueError as error:
                raise CompareError(str(error)) from error
            reason = _excluded(info)
            if reason is not None:
                raise CompareError(f"{info.name} cannot be compared: {reason}")
            found[info.name] = None
    if not found:
        raise CompareError("--optim names no optimizer; `hfoptim list` shows all of them")
    return tuple(found)


def parse_seeds(seeds: int | str | Iterable[int | str]) -> tuple[int, ...]:
    """The seeds, each once, in the given order.

    Raises:
        CompareError: One is no whole number from 0 to 2**32 - 1, or there is none.
    """
    texts = [str(seeds)] if isinstance(seeds, int | str) else [str(seed) for seed in seeds]
    parts = [part.strip() for text in texts for part in text.split(",")]
    try:
        return tuple(dict.fromkeys(map(int, parts)))
    except ValueError:
        raise CompareError(f"--seed: {', '.join(parts)}: no whole numbers; write 0 or 0,1,2") from None


def _excluded(info: OptimInfo) -> str | None:
    """Why an optimizer cannot take part, if it cannot: what the Trainer gives it here is no step of its."""
    if not info.in_trainer:
        return f"it needs {info.needs}"
    if info.name == "lbfgs":
        return "every run clips gradients, from whose differences it learns the curvature"
    if info.name.startswith("svrg_"):
        return "it takes the gradient of all batches, which a Trainer does not compute"
    return None


def parse_lr_grid(
    grid: Sequence[str] | Mapping[str, Sequence[float]], optimizers: Sequence[str]
) -> dict[str, tuple[float, ...]]:
    """The learning rates of every optimizer: those asked for, else the default ones.

    Args:
        grid: A mapping, or texts such as `1e-3,3e-3` (all optimizers) and `lion=1e-4,3e-4` (one).
        optimizers: Canonical names of the optimizers that take part.

    Raises:
        CompareError: A rate is no positive number, or a name is not among `optimizers`.
    """
    named: dict[str, tuple[float, ...]] = {}
    if isinstance(grid, Mapping):
        for name, rates in grid.items():
            named[_participant(name, optimizers)] = _rates(",".join(map(repr, rates)))
    else:
        for text in (text for text in grid if "=" not in text):
            named.update(dict.fromkeys(optimizers, _rates(text)))
        for text in (text for text in grid if "=" in text):
            name, _, values = text.partition("=")
            named[_participant(name.strip(), optimizers)] = _rates(values)
    return {name: named[name] if name in named else default_grid(name) for name in optimizers}


def default_grid(name: str) -> tuple[float, ...]:
    """The rates tried for an optimizer: of the table above, else around the optimizer's own default.

    Raises:
        CompareError: The optimizer has no default learning rate to build a grid around.
    """
    if name in DEFAULT_GRIDS:
        return DEFAULT_GRIDS[name]
    from hfoptim.registry.lookup import get_optimizer_class

    rate = default_lr(get_optimizer_class(name))
    if rate is None:
        raise CompareError(f"{name} has no default learning rate: give its rates, as in --lr-grid {name}=1e-3,3e-3")
    return tuple(float(f"{factor * rate:.3g}") for factor in (0.3, 1.0, 3.0))


def default_lr(optimizer: Any) -> float | None:
    """Default of the argument `lr` (Keras: `learning_rate`) of an optimizer class or partial; None without one."""
    import inspect

    parameters = inspect.signature(optimizer).parameters
    for name in ("lr", "learning_rate"):
        if name in parameters and isinstance(default := parameters[name].default, float):
            return default
    return None


def _participant(name: str, optimizers: Sequence[str]) -> str:
    (canonical,) = parse_optimizers([name])
    if canonical not in optimizers:
        raise CompareError(f"--lr-grid names {canonical}, which is not compared; compared are {', '.join(optimizers)}")
    return canonical


def _rates(text: str) -> tuple[float, ...]:
    rates: set[float] = set()
    for part in text.split(","):
        try:
            rate = float(part)
        except ValueError:
            rate = math.nan
        if not (rate > 0 and math.isfinite(rate)):
            raise CompareError(
                f"--lr-grid: {part.strip()!r} is no learning rate; write positive numbers as in 1e-3,3e-3"
            )
        rates.add(rate)
    return tuple(sorted(rates))


def _schedule_name(name: str) -> str:
    from hfoptim.schedules import get_schedule_info

    try:
        info = get_schedule_info(name)
    except ValueError as error:
        raise CompareError(str(error)) from error
    if info.needs_metric:
        raise CompareError(f"--schedule {info.name} follows a metric; take one that is fixed, such as cosine or linear")
    if info.name in COMPOSED_SCHEDULES:
        raise CompareError(f"--schedule {info.name} is made of other schedules; take one of these, such as cosine")
    return info.name


def _absolute(name: str | None) -> str | None:
    if name is None or not Path(name).exists():
        return name
    return str(Path(name).resolve())


def _check_seeds(seeds: tuple[int, ...]) -> None:
    if not seeds:
        raise CompareError("--seed names no seed; write 0 or 0,1,2")
    for seed in seeds:
        _check_int("seed", seed, 0)
        if seed >= 2**32:
            raise CompareError(f"--seed must be below 2**32, got {seed}")


def _check_int(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise CompareError(f"--{name.replace('_', '-')} must be a whole number of at least {least}, got {value!r}")
