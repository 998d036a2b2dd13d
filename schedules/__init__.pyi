# Written by `python -m hfoptim.registry.stubs`, which `make lint` runs.
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from .curves import Curve as Curve
from .drawing import plot as plot
from .greedy import GreedyLR as GreedyLR
from .hyperparameters import HyperparameterSchedule as HyperparameterSchedule
from .hyperparameters import ProportionScheduler as ProportionScheduler
from .hyperparameters import schedule_hyperparameter as schedule_hyperparameter
from .learning_rate import PolynomialDecay as PolynomialDecay
from .learning_rate import WarmUp as WarmUp
from .merging import merge_weights as merge_weights
from .metric import PlateauLR as PlateauLR
from .metric import ReduceLROnPlateau as ReduceLROnPlateau
from .named.pytorch import cyclic_momentum as cyclic_momentum
from .named.pytorch import one_cycle_momentum as one_cycle_momentum
from .named.seesaw import seesaw_batch_factor as seesaw_batch_factor
from .registry import SchedulerType as SchedulerType
from .registry import check_options as check_options
from .registry import get_curve as get_curve
from .registry import get_scheduler as get_scheduler
from .scheduler import ScheduleLR as ScheduleLR
from .shapes import absolute as absolute
from .shapes import annealed as annealed
from .shapes import constant as constant
from .shapes import cosine as cosine
from .shapes import exponential as exponential
from .shapes import inverse_sqrt as inverse_sqrt
from .shapes import linear as linear
from .shapes import one_minus_sqrt as one_minus_sqrt
from .shapes import polynomial as polynomial
from .shapes import warmup as warmup
from .table import ScheduleInfo as ScheduleInfo
from .table import canonical_schedule_name as canonical_schedule_name
from .table import get_schedule_info as get_schedule_info
from .table import list_schedules as list_schedules
from .timm import TimmPlateau as TimmPlateau
from .timm import TimmSchedule as TimmSchedule
from .timm import create_scheduler as create_scheduler
from .timm import create_scheduler_v2 as create_scheduler_v2
from .timm import scheduler_kwargs as scheduler_kwargs

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

def get_chebyshev_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float,
    num_training_steps: int,
    *,
    small: float = 0.05,
    big: float = 1.0,
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_constant_factor_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float = 0,
    num_training_steps: int | None = None,
    *,
    factor: float = 0.3333333333333333,
    total_iters: int = 5,
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_constant_schedule(
    optimizer: Optimizer,
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_constant_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_cosine_annealing_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float,
    num_training_steps: int,
    *,
    T_max: int | None = None,
    eta_min: float = 0.0,
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_cosine_annealing_with_warm_restarts_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float = 0,
    num_training_steps: int | None = None,
    *,
    T_0: int,
    T_mult: float = 1,
    eta_min: float = 0.0,
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_cosine_annealing_with_warmup_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float,
    num_training_steps: int,
    *,
    first_cycle_steps: int | None = None,
    cycle_mult: float = 1.0,
    max_lr: float | None = None,
    min_lr: float = 1e-06,
    gamma: float = 0.9,
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_cosine_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int | float,
    num_training_steps: int,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_cosine_with_cycles_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float,
    num_training_steps: int,
    *,
    k_decay: float = 1.0,
    min_lr: float = 0.0,
    cycle_mul: float = 1.0,
    cycle_decay: float = 1.0,
    cycle_limit: int | None = 1,
    cycle_steps: float | None = None,
    warmup_lr: float = 0.0,
    warmup_prefix: bool = True,
    noise_range: float | Sequence[float] | None = None,
    noise_pct: float = 0.67,
    noise_std: float = 1.0,
    noise_seed: int = 42,
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_cosine_with_hard_restarts_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int | float,
    num_training_steps: int,
    num_cycles: int = 1,
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_cosine_with_min_lr_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int | float,
    num_training_steps: int,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
) -> ScheduleLR: ...
def get_cosine_with_min_lr_schedule_with_warmup_lr_rate(
    optimizer: Optimizer,
    num_warmup_steps: int | float,
    num_training_steps: int,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
    warmup_lr_rate: float | None = None,
) -> ScheduleLR: ...
def get_cyclic_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float = 0,
    num_training_steps: int | None = None,
    *,
    base_lr: float | None = None,
    max_lr: float | None = None,
    step_size_up: int = 2000,
    step_size_down: int | None = None,
    mode: str = "triangular",
    gamma: float = 1.0,
    scale_fn: Callable[[float], float] | None = None,
    scale_mode: str = "cycle",
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_exponential_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float = 0,
    num_training_steps: int | None = None,
    *,
    gamma: float,
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_greedy_schedule(
    optimizer: Optimizer,
    **kwargs: Any,
) -> GreedyLR: ...
def get_infinite_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float = 0,
    num_training_steps: int | None = None,
    *,
    num_cooldown_steps: int | float,
    constant_lr_rate: float | None = None,
    cooldown_type: str = "cosine",
    anneal_start: int | None = None,
    num_anneal_steps: int | float = 0,
    anneal_type: str = "exponential",
    min_lr_rate: float = 0.1,
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_inverse_sqrt_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int,
    timescale: int | None = None,
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_inverse_time_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float = 0,
    num_training_steps: int | None = None,
    *,
    decay_steps: int,
    decay_rate: float,
    staircase: bool = False,
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_linear_factor_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float = 0,
    num_training_steps: int | None = None,
    *,
    start_factor: float = 0.3333333333333333,
    end_factor: float = 1.0,
    total_iters: int = 5,
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_linear_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int | float,
    num_training_steps: int,
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_lr_range_test_schedule(
    optimizer: Optimizer,
    num_training_steps: int | None = None,
    *,
    min_lr: float | None = None,
    step_size: int = 2000,
    step_rate: float = 1.0,
    staircase: bool = False,
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_multiplicative_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float = 0,
    num_training_steps: int | None = None,
    *,
    factor: float | Sequence[float] | Callable[[int], float],
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_multistep_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float,
    num_training_steps: int,
    *,
    milestones: Sequence[float] = (0.3, 0.6, 0.9),
    decay_rate: float = 0.1,
    warmup_lr: float = 0.0,
    warmup_prefix: bool = False,
    noise_range: float | Sequence[float] | None = None,
    noise_pct: float = 0.67,
    noise_std: float = 1.0,
    noise_seed: int = 42,
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_noam_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float,
    num_training_steps: int | None = None,
    *,
    d_model: int | None = None,
    factor: float = 1.0,
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_one_cycle_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float,
    num_training_steps: int,
    *,
    max_lr: float | None = None,
    pct_start: float | None = None,
    anneal_strategy: str = "cos",
    div_factor: float = 25.0,
    final_div_factor: float = 10000.0,
    three_phase: bool = False,
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_piecewise_interpolate_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float = 0,
    num_training_steps: int | None = None,
    *,
    boundaries_and_scales: Mapping[Any, float],
    interpolate_type: str = "linear",
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_plateau_schedule(
    optimizer: Optimizer,
    **kwargs: Any,
) -> PlateauLR: ...
def get_poly_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float,
    num_training_steps: int,
    *,
    power: float = 0.5,
    k_decay: float = 1.0,
    min_lr: float = 0.0,
    cycle_mul: float = 1.0,
    cycle_decay: float = 1.0,
    cycle_limit: int | None = 1,
    cycle_steps: float | None = None,
    warmup_lr: float = 0.0,
    warmup_prefix: bool = True,
    noise_range: float | Sequence[float] | None = None,
    noise_pct: float = 0.67,
    noise_std: float = 1.0,
    noise_seed: int = 42,
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_polynomial_decay_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int | float,
    num_training_steps: int,
    lr_end: float = 1e-07,
    power: float = 1.0,
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_power_decay_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float,
    num_training_steps: int,
    *,
    capacity: float = 1.5,
    num_decay_steps: int | float | None = None,
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_power_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float = 0,
    num_training_steps: int | None = None,
    *,
    batch_size: int,
    sequence_length: int,
    a: float = 4.0,
    b: float = -0.51,
    max_lr: float | None = None,
    num_decay_steps: int | float = 0,
    decay_type: str = "exponential",
    min_lr_ratio: float = 0.0,
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_proportion_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float = 0,
    num_training_steps: int | None = None,
    *,
    schedule: Curve | str | Sequence[Any],
    max_value: float,
    min_value: float,
    max_lr: float = 1.0,
    min_lr: float = 0.0,
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_reduce_on_plateau_schedule(
    optimizer: Optimizer,
    **kwargs: Any,
) -> ReduceLROnPlateau: ...
def get_rex_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float,
    num_training_steps: int,
    *,
    max_lr: float | None = None,
    min_lr: float = 0.0,
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_rsqrt_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float,
    num_training_steps: int,
    *,
    min_lr: float = 0.0,
    decay_steps: float = 0.2,
    decay_fn: str = "linear",
    stable_timescale: float | None = None,
    warmup_lr: float = 0.0,
    noise_range: float | Sequence[float] | None = None,
    noise_pct: float = 0.67,
    noise_std: float = 1.0,
    noise_seed: int = 42,
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_seesaw_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float,
    num_training_steps: int,
    *,
    schedule: Curve | str | Sequence[Any] = "cosine",
    cut: float = 2.0,
    max_batch_factor: float | None = None,
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_sequential_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float = 0,
    num_training_steps: int | None = None,
    *,
    schedules: Sequence[Curve | str | Sequence[Any]],
    milestones: Sequence[int] = (),
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_step_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float,
    num_training_steps: int,
    *,
    decay_steps: float = 0.3,
    decay_rate: float = 0.1,
    warmup_lr: float = 0.0,
    warmup_prefix: bool = False,
    noise_range: float | Sequence[float] | None = None,
    noise_pct: float = 0.67,
    noise_std: float = 1.0,
    noise_seed: int = 42,
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_tanh_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float,
    num_training_steps: int,
    *,
    lb: float = -7.0,
    ub: float = 3.0,
    min_lr: float = 0.0,
    cycle_mul: float = 1.0,
    cycle_decay: float = 1.0,
    cycle_limit: int | None = 1,
    cycle_steps: float | None = None,
    warmup_lr: float = 0.0,
    warmup_prefix: bool = True,
    noise_range: float | Sequence[float] | None = None,
    noise_pct: float = 0.67,
    noise_std: float = 1.0,
    noise_seed: int = 42,
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_warmup_cosine_lr_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float,
    num_training_steps: int,
    *,
    warmup_min_ratio: float = 0.0,
    cos_min_ratio: float = 0.0001,
    warmup_type: str = "log",
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_warmup_decay_lr_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float,
    num_training_steps: int,
    *,
    min_lr: float = 0.0,
    max_lr: float | None = None,
    warmup_type: str = "log",
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_warmup_lr_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float,
    num_training_steps: int | None = None,
    *,
    min_lr: float = 0.0,
    max_lr: float | None = None,
    warmup_type: str = "log",
    last_epoch: int = -1,
) -> ScheduleLR: ...
def get_wsd_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int | float,
    num_decay_steps: int | float,
    num_training_steps: int | None = None,
    num_stable_steps: int | None = None,
    warmup_type: str = "linear",
    decay_type: str = "cosine",
    min_lr_ratio: float = 0,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
) -> ScheduleLR: ...
