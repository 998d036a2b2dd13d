"""Learning-rate schedules for any torch optimizer, each a pure function of the step.

Those of transformers, timm, torch, pytorch_optimizer and DeepSpeed, some of Keras and optax, and those of papers about
long pre-training runs.

    >>> import schedules
    >>> schedule = schedules.get_scheduler("cosine", optimizer, num_warmup_steps=100, num_training_steps=1000)

Needs torch only.
"""

from .curves import Curve
from .drawing import plot
from .greedy import GreedyLR, get_greedy_schedule
from .hyperparameters import HyperparameterSchedule, ProportionScheduler, schedule_hyperparameter
from .learning_rate import PolynomialDecay, WarmUp
from .merging import merge_weights
from .metric import PlateauLR, ReduceLROnPlateau, get_plateau_schedule, get_reduce_on_plateau_schedule
from .named.deepspeed import (
    get_lr_range_test_schedule,
    get_warmup_cosine_lr_schedule,
    get_warmup_decay_lr_schedule,
    get_warmup_lr_schedule,
)
from .named.jax import get_inverse_time_schedule, get_piecewise_interpolate_schedule
from .named.papers import (
    get_chebyshev_schedule,
    get_cosine_annealing_with_warmup_schedule,
    get_infinite_schedule,
    get_noam_schedule,
    get_power_decay_schedule,
    get_power_schedule,
    get_proportion_schedule,
    get_rex_schedule,
)
from .named.pytorch import (
    cyclic_momentum,
    get_constant_factor_schedule,
    get_cosine_annealing_schedule,
    get_cosine_annealing_with_warm_restarts_schedule,
    get_cyclic_schedule,
    get_exponential_schedule,
    get_linear_factor_schedule,
    get_multiplicative_schedule,
    get_one_cycle_schedule,
    get_sequential_schedule,
    one_cycle_momentum,
)
from .named.seesaw import get_seesaw_schedule, seesaw_batch_factor
from .named.timm import (
    get_cosine_with_cycles_schedule,
    get_multistep_schedule,
    get_poly_schedule,
    get_rsqrt_schedule,
    get_step_schedule,
    get_tanh_schedule,
)
from .named.transformers import (
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
from .registry import SchedulerType, check_options, get_curve, get_scheduler
from .scheduler import ScheduleLR
from .shapes import (
    absolute,
    annealed,
    constant,
    cosine,
    exponential,
    inverse_sqrt,
    linear,
    one_minus_sqrt,
    polynomial,
    warmup,
)
from .table import ScheduleInfo, canonical_schedule_name, get_schedule_info, list_schedules
from .timm import TimmPlateau, TimmSchedule, create_scheduler, create_scheduler_v2, scheduler_kwargs

__all__ = [
    "Curve",
    "GreedyLR",
    "HyperparameterSchedule",
    "PlateauLR",
    "PolynomialDecay",
    "ProportionScheduler",
    "ReduceLROnPlateau",
    "ScheduleInfo",
    "ScheduleLR",
    "SchedulerType",
    "TimmPlateau",
    "TimmSchedule",
    "WarmUp",
    "absolute",
    "annealed",
    "canonical_schedule_name",
    "check_options",
    "constant",
    "cosine",
    "create_scheduler",
    "create_scheduler_v2",
    "cyclic_momentum",
    "exponential",
    "get_chebyshev_schedule",
    "get_constant_factor_schedule",
    "get_constant_schedule",
    "get_constant_schedule_with_warmup",
    "get_cosine_annealing_schedule",
    "get_cosine_annealing_with_warm_restarts_schedule",
    "get_cosine_annealing_with_warmup_schedule",
    "get_cosine_schedule_with_warmup",
    "get_cosine_with_cycles_schedule",
    "get_cosine_with_hard_restarts_schedule_with_warmup",
    "get_cosine_with_min_lr_schedule_with_warmup",
    "get_cosine_with_min_lr_schedule_with_warmup_lr_rate",
    "get_curve",
    "get_cyclic_schedule",
    "get_exponential_schedule",
    "get_greedy_schedule",
    "get_infinite_schedule",
    "get_inverse_sqrt_schedule",
    "get_inverse_time_schedule",
    "get_linear_factor_schedule",
    "get_linear_schedule_with_warmup",
    "get_lr_range_test_schedule",
    "get_multiplicative_schedule",
    "get_multistep_schedule",
    "get_noam_schedule",
    "get_one_cycle_schedule",
    "get_piecewise_interpolate_schedule",
    "get_plateau_schedule",
    "get_poly_schedule",
    "get_polynomial_decay_schedule_with_warmup",
    "get_power_decay_schedule",
    "get_power_schedule",
    "get_proportion_schedule",
    "get_reduce_on_plateau_schedule",
    "get_rex_schedule",
    "get_rsqrt_schedule",
    "get_schedule_info",
    "get_scheduler",
    "get_seesaw_schedule",
    "get_sequential_schedule",
    "get_step_schedule",
    "get_tanh_schedule",
    "get_warmup_cosine_lr_schedule",
    "get_warmup_decay_lr_schedule",
    "get_warmup_lr_schedule",
    "get_wsd_schedule",
    "inverse_sqrt",
    "linear",
    "list_schedules",
    "merge_weights",
    "one_cycle_momentum",
    "one_minus_sqrt",
    "plot",
    "polynomial",
    "schedule_hyperparameter",
    "scheduler_kwargs",
    "seesaw_batch_factor",
    "warmup",
]
