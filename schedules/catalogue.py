"""The table of schedules: every name, the functions behind it, and what they need."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from torch.optim.lr_scheduler import LRScheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau as TorchReduceLROnPlateau

from . import factories
from .checks import closest
from .curves import Curve
from .greedy import GreedyLR, get_greedy_schedule
from .named import pretraining, pytorch, pytorch_optimizer, sequence, timm, transformers
from .plateau import accepted_options, get_reduce_on_plateau_schedule
from .plateau_warmup import PlateauLR, get_plateau_schedule

__all__ = ["ALIASES", "LENGTHS", "SCHEDULES", "ScheduleInfo", "SchedulerType", "canonical_schedule_name"]


class SchedulerType(str, Enum):
    """The names of all schedules, those of transformers first. Each member equals its name as a string."""

    LINEAR = "linear"
    COSINE = "cosine"
    COSINE_WITH_RESTARTS = "cosine_with_restarts"
    POLYNOMIAL = "polynomial"
    CONSTANT = "constant"
    CONSTANT_WITH_WARMUP = "constant_with_warmup"
    INVERSE_SQRT = "inverse_sqrt"
    REDUCE_ON_PLATEAU = "reduce_lr_on_plateau"
    COSINE_WITH_MIN_LR = "cosine_with_min_lr"
    COSINE_WARMUP_WITH_MIN_LR = "cosine_warmup_with_min_lr"
    WARMUP_STABLE_DECAY = "warmup_stable_decay"
    GREEDY = "greedy"
    CONSTANT_FACTOR = "constant_factor"
    LINEAR_FACTOR = "linear_factor"
    EXPONENTIAL = "exponential"
    MULTIPLICATIVE = "multiplicative"
    COSINE_ANNEALING = "cosine_annealing"
    COSINE_ANNEALING_WITH_WARM_RESTARTS = "cosine_annealing_with_warm_restarts"
    COSINE_ANNEALING_WITH_WARMUP = "cosine_annealing_with_warmup"
    ONE_CYCLE = "one_cycle"
    CYCLIC = "cyclic"
    SEQUENTIAL = "sequential"
    REX = "rex"
    CHEBYSHEV = "chebyshev"
    PROPORTION = "proportion"
    NOAM = "noam"
    POWER = "power"
    INFINITE = "infinite"
    COSINE_WITH_CYCLES = "cosine_with_cycles"
    TANH = "tanh"
    POLY = "poly"
    STEP = "step"
    MULTISTEP = "multistep"
    RSQRT = "rsqrt"
    PLATEAU = "plateau"

    def __str__(self) -> str:
        return str(self.value)

    @classmethod
    def _missing_(cls, value: object) -> SchedulerType | None:
        name = canonical_schedule_name(value)  # type: ignore[arg-type]
        return next((member for member in cls if member.value == name), None)


@dataclass(frozen=True)
class ScheduleInfo:
    """What is known of a schedule.

    Attributes:
        name: the canonical name.
        description: one line.
        factory: the ``get_*`` function behind the name: of the optimizer and the schedule's arguments.
        curve: the function that makes its curve of the same arguments; None for a schedule that follows a metric.
        kwargs: what ``scheduler_specific_kwargs`` may hold.
        required_kwargs: what it must hold.
        needs_warmup: ``num_warmup_steps`` must be given.
        needs_total: ``num_training_steps`` must be given.
        needs_metric: its ``step`` takes a metric: ``schedule.step(eval_loss)``.
    """

    name: str
    description: str
    factory: Callable[..., LRScheduler]
    curve: Callable[..., Curve] | None
    kwargs: tuple[str, ...]
    required_kwargs: tuple[str, ...]
    needs_warmup: bool
    needs_total: bool
    needs_metric: bool


def _describe(
    name: SchedulerType,
    factory: Callable[..., LRScheduler],
    curve: Callable[..., Curve] | None,
    description: str,
    options_of: type | None = None,
) -> ScheduleInfo:
    parameters = inspect.signature(factory).parameters
    options = accepted_options(options_of) if options_of else dict(parameters)
    own = {key: each for key, each in options.items() if key not in ("optimizer", *LENGTHS)}

    def needs(parameter: str) -> bool:
        return parameter in parameters and parameters[parameter].default is inspect.Parameter.empty

    return ScheduleInfo(
        name=name.value,
        description=description,
        factory=factory,
        curve=curve,
        kwargs=tuple(own),
        required_kwargs=tuple(key for key, each in own.items() if each.default is inspect.Parameter.empty),
        needs_warmup=needs("num_warmup_steps"),
        needs_total=needs("num_training_steps"),
        needs_metric=options_of is not None,
    )


LENGTHS = ("num_warmup_steps", "num_training_steps")
_T = SchedulerType
SCHEDULES: dict[str, ScheduleInfo] = {
    info.name: info
    for info in (
        _describe(
            _T.LINEAR, factories.get_linear_schedule_with_warmup, transformers.linear_curve, "warm-up, then a line to 0"
        ),
        _describe(
            _T.COSINE,
            factories.get_cosine_schedule_with_warmup,
            transformers.cosine_curve,
            "warm-up, then half a cosine to 0",
        ),
        _describe(
            _T.COSINE_WITH_RESTARTS,
            factories.get_cosine_with_hard_restarts_schedule_with_warmup,
            transformers.cosine_with_restarts_curve,
            "warm-up, then half cosines to 0, each starting at the peak again",
        ),
        _describe(
            _T.POLYNOMIAL,
            factories.get_polynomial_decay_schedule_with_warmup,
            transformers.polynomial_curve,
            "warm-up, then a power of the remaining share, down to lr_end",
        ),
        _describe(
            _T.CONSTANT,
            factories.get_constant_schedule,
            transformers.constant_curve,
            "the initial learning rate throughout",
        ),
        _describe(
            _T.CONSTANT_WITH_WARMUP,
            factories.get_constant_schedule_with_warmup,
            transformers.constant_with_warmup_curve,
            "warm-up, then the initial learning rate",
        ),
        _describe(
            _T.INVERSE_SQRT,
            factories.get_inverse_sqrt_schedule,
            transformers.inverse_sqrt_curve,
            "warm-up, then one over the root of the steps, no end",
        ),
        _describe(
            _T.REDUCE_ON_PLATEAU,
            get_reduce_on_plateau_schedule,
            None,
            "multiplied by a factor when a metric stops improving",
            TorchReduceLROnPlateau,
        ),
        _describe(
            _T.COSINE_WITH_MIN_LR,
            factories.get_cosine_with_min_lr_schedule_with_warmup,
            transformers.cosine_with_min_lr_curve,
            "warm-up, then half a cosine to min_lr or min_lr_rate (one is required)",
        ),
        _describe(
            _T.COSINE_WARMUP_WITH_MIN_LR,
            factories.get_cosine_with_min_lr_schedule_with_warmup_lr_rate,
            transformers.cosine_warmup_with_min_lr_curve,
            "the same a step earlier: the warm-up starts above 0, the last step has min_lr or min_lr_rate",
        ),
        _describe(
            _T.WARMUP_STABLE_DECAY,
            factories.get_wsd_schedule,
            transformers.wsd_curve,
            "warm-up, the initial learning rate, then num_decay_steps of decay",
        ),
        _describe(
            _T.GREEDY,
            get_greedy_schedule,
            None,
            "raised while a metric improves, lowered while it does not",
            GreedyLR,
        ),
        _describe(
            _T.CONSTANT_FACTOR,
            factories.get_constant_factor_schedule,
            pytorch.constant_factor_curve,
            "a factor for total_iters steps, then the initial learning rate",
        ),
        _describe(
            _T.LINEAR_FACTOR,
            factories.get_linear_factor_schedule,
            pytorch.linear_factor_curve,
            "from one factor to another on a line in total_iters steps",
        ),
        _describe(
            _T.EXPONENTIAL,
            factories.get_exponential_schedule,
            pytorch.exponential_curve,
            "warm-up, then multiplied by gamma at every step",
        ),
        _describe(
            _T.MULTIPLICATIVE,
            factories.get_multiplicative_schedule,
            pytorch.multiplicative_curve,
            "warm-up, then multiplied by a factor at every step: a number, a list or a function",
        ),
        _describe(
            _T.COSINE_ANNEALING,
            factories.get_cosine_annealing_schedule,
            pytorch.cosine_annealing_curve,
            "warm-up, then half a cosine to the learning rate eta_min",
        ),
        _describe(
            _T.COSINE_ANNEALING_WITH_WARM_RESTARTS,
            factories.get_cosine_annealing_with_warm_restarts_schedule,
            pytorch.cosine_annealing_with_warm_restarts_curve,
            "warm-up, then half cosines of growing length, each from the peak",
        ),
        _describe(
            _T.COSINE_ANNEALING_WITH_WARMUP,
            factories.get_cosine_annealing_with_warmup_schedule,
            pytorch_optimizer.cosine_annealing_with_warmup_curve,
            "cycles of a warm-up and half a cosine, with falling peaks",
        ),
        _describe(
            _T.ONE_CYCLE,
            factories.get_one_cycle_schedule,
            pytorch.one_cycle_curve,
            "up to the peak, then far below where it began",
        ),
        _describe(
            _T.CYCLIC,
            factories.get_cyclic_schedule,
            pytorch.cyclic_curve,
            "triangles between two learning rates, with a scale for each cycle",
        ),
        _describe(
            _T.SEQUENTIAL,
            factories.get_sequential_schedule,
            sequence.sequential_curve,
            "several schedules one after the other",
        ),
        _describe(
            _T.REX,
            factories.get_rex_schedule,
            pytorch_optimizer.rex_curve,
            "warm-up, then a ratio of lines to min_lr: high for long, then steep",
        ),
        _describe(
            _T.CHEBYSHEV,
            factories.get_chebyshev_schedule,
            pytorch_optimizer.chebyshev_curve,
            "warm-up, then large and small steps in fractal order",
        ),
        _describe(
            _T.PROPORTION,
            factories.get_proportion_schedule,
            pytorch_optimizer.proportion_curve,
            "a value that rises and falls with another schedule",
        ),
        _describe(
            _T.NOAM,
            factories.get_noam_schedule,
            pretraining.noam_curve,
            "a line up, then one over the root of the steps, by the width of the model if given",
        ),
        _describe(
            _T.POWER,
            factories.get_power_schedule,
            pretraining.power_curve,
            "warm-up, then a power of the tokens seen, a decay at the end",
        ),
        _describe(
            _T.INFINITE,
            factories.get_infinite_schedule,
            pretraining.infinite_curve,
            "warm-up, down to a constant learning rate, annealed at the end or on demand",
        ),
        _describe(
            _T.COSINE_WITH_CYCLES,
            factories.get_cosine_with_cycles_schedule,
            timm.cosine_with_cycles_curve,
            "warm-up, then half cosines to min_lr, whose lengths and tops may change from one to the next",
        ),
        _describe(
            _T.TANH,
            factories.get_tanh_schedule,
            timm.tanh_curve,
            "warm-up, then along the hyperbolic tangent to min_lr, in cycles if wanted",
        ),
        _describe(
            _T.POLY,
            factories.get_poly_schedule,
            timm.poly_curve,
            "warm-up, then a power of the remaining share to min_lr, in cycles if wanted",
        ),
        _describe(
            _T.STEP,
            factories.get_step_schedule,
            timm.step_curve,
            "warm-up, multiplied by decay_rate every decay_steps steps",
        ),
        _describe(
            _T.MULTISTEP,
            factories.get_multistep_schedule,
            timm.multistep_curve,
            "warm-up, multiplied by decay_rate at every one of milestones",
        ),
        _describe(
            _T.RSQRT,
            factories.get_rsqrt_schedule,
            timm.rsqrt_curve,
            "warm-up, then one over the root of the steps, cooled down to min_lr at the end",
        ),
        _describe(
            _T.PLATEAU,
            get_plateau_schedule,
            None,
            "warm-up, multiplied by a factor when a metric stops improving, with noise if wanted",
            PlateauLR,
        ),
    )
}

# Other names for the same: the shorter ones in use, and those of timm, torch and pytorch_optimizer.
ALIASES: dict[str, str] = {
    "cosine_annealing_warm_restarts": "cosine_annealing_with_warm_restarts",
    "cosine_annealing_with_warm_restart": "cosine_annealing_with_warm_restarts",
    "multi_step": "multistep",
    "onecycle": "one_cycle",
    "wsd": "warmup_stable_decay",
}


def canonical_schedule_name(name: str) -> str:
    """Return the canonical form of a schedule's name.

    Args:
        name: the name in any case, with ``-`` or ``_``; also a SchedulerType, this one or that of transformers.

    Raises:
        TypeError: ``name`` is not a string.
        ValueError: no schedule has this name; the closest ones are listed.
    """
    plain = name.value if isinstance(name, Enum) else name
    if not isinstance(plain, str):
        raise TypeError(f"the name of a schedule must be a str, got {name!r} of type {type(name).__name__}")
    wanted = plain.lower().replace("-", "_")
    wanted = ALIASES.get(wanted, wanted)
    if wanted not in SCHEDULES:
        raise ValueError(f"unknown schedule {plain!r}; {closest(wanted, [*SCHEDULES, *ALIASES])}")
    return wanted
