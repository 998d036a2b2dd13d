"""Learning-rate schedules for any torch optimizer: those of transformers, each a pure function of the step.

    >>> import schedules
    >>> schedule = schedules.get_scheduler("cosine", optimizer, num_warmup_steps=100, num_training_steps=1000)

Needs torch only.
"""

from .catalogue import ScheduleInfo, SchedulerType, canonical_schedule_name
from .curves import Curve
from .factories import (
    get_constant_schedule,
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_cosine_with_hard_restarts_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup_lr_rate,
    get_inverse_sqrt_schedule,
    get_linear_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
    get_wsd_schedule,
)
from .greedy import GreedyLR, get_greedy_schedule
from .learning_rate import PolynomialDecay, WarmUp
from .plateau import ReduceLROnPlateau, get_reduce_on_plateau_schedule
from .registry import get_curve, get_schedule_info, get_scheduler, list_schedules
from .scheduler import ScheduleLR
from .words import (
    absolute,
    constant,
    cosine,
    exponential,
    inverse_sqrt,
    linear,
    one_minus_sqrt,
    polynomial,
    warmup,
)

__all__ = [
    "Curve",
    "GreedyLR",
    "PolynomialDecay",
    "ReduceLROnPlateau",
    "ScheduleInfo",
    "ScheduleLR",
    "SchedulerType",
    "WarmUp",
    "absolute",
    "canonical_schedule_name",
    "constant",
    "cosine",
    "exponential",
    "get_constant_schedule",
    "get_constant_schedule_with_warmup",
    "get_cosine_schedule_with_warmup",
    "get_cosine_with_hard_restarts_schedule_with_warmup",
    "get_cosine_with_min_lr_schedule_with_warmup",
    "get_cosine_with_min_lr_schedule_with_warmup_lr_rate",
    "get_curve",
    "get_greedy_schedule",
    "get_inverse_sqrt_schedule",
    "get_linear_schedule_with_warmup",
    "get_polynomial_decay_schedule_with_warmup",
    "get_reduce_on_plateau_schedule",
    "get_schedule_info",
    "get_scheduler",
    "get_wsd_schedule",
    "inverse_sqrt",
    "linear",
    "list_schedules",
    "one_minus_sqrt",
    "polynomial",
    "warmup",
]
