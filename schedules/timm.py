"""timm's own way to make and step schedules: create_scheduler_v2 and what belongs to it.

Here timm's conventions hold, where the names of :func:`schedules.get_scheduler` follow ours: lengths in epochs, a
schedule told at each call where it is, the warm-up inside the first cycle unless asked otherwise.

Source: timm 1.0.31, https://github.com/huggingface/pytorch-image-models, ``timm.scheduler``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, SupportsFloat

from torch.optim import Optimizer

from .checks import closest, real_number, whole_number
from .curves import Constant, Curve, bind_group
from .groups import check_optimizer, set_lr
from .metric import PlateauLR
from .named.timm import cycles, delayed, noise_bounds, noisy, risen, stable_then_decay
from .patterns import Milestones, Stairs
from .scheduler import ScheduleLR
from .shapes import Cosine, InverseSqrt, Polynomial, Tanh

SCHEDS = ("constant", "cosine", "multistep", "none", "plateau", "poly", "rsqrt", "step", "tanh", "wsd")


class TimmSchedule(ScheduleLR):
    """Learning rates by a curve, stepped as timm's schedules are: ``step(epoch)`` or ``step_update(num_updates)``.

    Of the two only the one that the schedule counts by does something, so that a training loop may call both. It takes
    the count itself, so any order of calls is right, and a repeated one harmless. ``step()`` without a count goes one
    on, as with every torch scheduler, so that Trainer and Accelerate drive it too.

    A group's ``lr_scale`` multiplies its learning rate: warm-up, curve and floor. It is not applied twice where the
    groups come with it applied, as those of ``hfoptim.layer_decay_groups(lr=...)`` do, see
    :func:`create_scheduler_v2`.

    Args:
        optimizer: the optimizer to drive.
        curve: the multiplier as a function of the epoch or update.
        step_on_epochs: True: ``step(epoch)`` counts; False: ``step_update(num_updates)`` does.
        last_epoch: the last epoch or update done; -1 for a new run.

    Raises:
        TypeError: ``optimizer`` is not an optimizer or ``curve`` is not a curve.
        ValueError: a floor of the curve is above a group's lr, or it cannot be told whether ``lr_scale`` is applied.
        KeyError: ``last_epoch`` is given, and a group has no ``initial_lr``.
    """

    def __init__(self, optimizer: Optimizer, curve: Curve, step_on_epochs: bool = True, last_epoch: int = -1) -> None:
        self.step_on_epochs = step_on_epochs
        self._lr_is_scaled = lr_is_scaled(check_optimizer(optimizer))
        super().__init__(optimizer, curve, last_epoch)

    def _bind(self, curve: Curve, initial_lrs: list[Any]) -> list[Callable[[int], float]]:
        curves: list[Callable[[int], float]] = []
        for index, (group, lr) in enumerate(zip(self.optimizer.param_groups, initial_lrs, strict=True)):
            scale = _lr_scale(group)
            # Absolute learning rates in the curve are scaled with everything else: they are bound to the unscaled lr.
            unscaled = float(lr) / scale if self._lr_is_scaled and scale else float(lr)
            bound = bind_group(curve, index, unscaled)
            curves.append(bound if self._lr_is_scaled or scale == 1.0 else bound * scale)
        return curves

    def step(self, epoch: int | None = None, metric: SupportsFloat | None = None) -> None:
        """Put the learning rates of an epoch into the optimizer; to be called at the end of the one before.

        Args:
            epoch: the epoch that follows, 0 being the first. None: one epoch or update further.
            metric: not used; ``plateau`` is the schedule that follows one.
        """
        if epoch is None:
            super().step()
        elif self.step_on_epochs:
            self.go_to(epoch)

    def step_update(self, num_updates: int, metric: SupportsFloat | None = None) -> None:
        """Put the learning rates of an update into the optimizer; to be called after the one before.

        Args:
            num_updates: how many updates were done since the beginning.
            metric: not used.
        """
        if not self.step_on_epochs:
            self.go_to(num_updates)

    def state_dict(self) -> dict[str, Any]:
        """Return the position and the base learning rates, see :meth:`ScheduleLR.state_dict`."""
        own = ("step_on_epochs", "_lr_is_scaled")
        return {key: value for key, value in super().state_dict().items() if key not in own}


class TimmPlateau:
    """A :class:`PlateauLR` with timm's calls: ``step(epoch, metric)``.

    Args:
        schedule: the schedule that does the work.
    """

    def __init__(self, schedule: PlateauLR) -> None:
        self.lr_scheduler = schedule
        self.optimizer = schedule.optimizer

    def step(self, epoch: int, metric: SupportsFloat | None = None) -> None:
        """Put the learning rates of the epoch that follows into the optimizer.

        Args:
            epoch: its number, 0 being the first.
            metric: that of the epoch before, which no one measured if None.
        """
        self.lr_scheduler.at(epoch, metric)

    def step_update(self, num_updates: int, metric: SupportsFloat | None = None) -> None:
        """Do nothing: this schedule counts epochs."""

    def get_last_lr(self) -> list[Any]:
        """Return the learning rate of every group."""
        return self.lr_scheduler.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs, see :class:`PlateauLR`."""
        return self.lr_scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state, see :meth:`PlateauLR.load_state_dict`."""
        self.lr_scheduler.load_state_dict(state_dict)


def _lr_scale(group: dict[str, Any]) -> float:
    return real_number("lr_scale", group.get("lr_scale", 1.0), at_least=0)


def lr_is_scaled(optimizer: Optimizer) -> bool:
    """Say whether the groups' ``lr_scale`` is in their learning rates already.

    It is not where the groups that have one (other than 1) share one lr: timm's groups. It is where they share one
    ``lr / lr_scale``: ours. If all have the same ``lr_scale``, the optimizer's default lr decides.

    Raises:
        ValueError: neither is so.
    """
    pairs = [(float(g.get("initial_lr", g["lr"])), _lr_scale(g)) for g in optimizer.param_groups]
    told = [(lr, scale) for lr, scale in pairs if scale not in (0.0, 1.0) and lr != 0.0]
    if not told:
        return False
    one_lr = _all_close([lr for lr, _ in told])
    one_ratio = _all_close([lr / scale for lr, scale in told])
    if one_lr and one_ratio:
        usual = float(optimizer.defaults.get("lr") or 0.0)
        lr, scale = told[0]
        one_lr, one_ratio = _all_close([lr, usual]), _all_close([lr, usual * scale])
    if one_lr == one_ratio:
        raise ValueError(
            "the param groups have an lr_scale, and their learning rates do not say whether it is applied: give all "
            f"of them one lr, or each lr * lr_scale; got (lr, lr_scale) {told}"
        )
    return one_ratio


def _all_close(values: Sequence[float]) -> bool:
    return all(math.isclose(value, values[0], rel_tol=1e-6) for value in values)


def create_scheduler_v2(
    optimizer: Optimizer,
    sched: str = "cosine",
    num_epochs: int = 300,
    decay_epochs: float | None = None,
    decay_milestones: Sequence[int] = (90, 180, 270),
    cooldown_epochs: int = 0,
    patience_epochs: int = 10,
    decay_rate: float = 0.1,
    min_lr: float = 0.0,
    warmup_lr: float = 1e-5,
    warmup_epochs: float = 0,
    warmup_prefix: bool = False,
    noise: float | Sequence[float] | None = None,
    noise_pct: float = 0.67,
    noise_std: float = 1.0,
    noise_seed: int = 42,
    cycle_mul: float = 1.0,
    cycle_decay: float = 0.1,
    cycle_limit: int = 1,
    k_decay: float = 1.0,
    decay_fn: str | None = None,
    stable_timescale: float | None = None,
    plateau_mode: str = "max",
    step_on_epochs: bool = True,
    updates_per_epoch: int = 0,
) -> tuple[TimmSchedule | TimmPlateau | None, int]:
    """Make a schedule by timm's name for it, with timm's arguments, defaults and conventions.

    - ``cosine``, ``tanh``, ``poly``: from lr to ``min_lr`` in ``num_epochs`` epochs, ``cycle_limit`` times over. After
      that the lr is ``min_lr``.
    - ``step``, ``multistep``: times ``decay_rate`` every ``decay_epochs`` epochs, or one epoch before each milestone.
    - ``constant``: the lr after the warm-up.
    - ``wsd``, ``rsqrt``: the lr, or ``lr / sqrt(1 + t / timescale)``, then a decay to ``min_lr`` in the last
      ``decay_epochs`` epochs.
    - ``plateau``: times ``decay_rate`` when the metric given to ``step(epoch, metric)`` stops improving.
    - ``none``: no schedule.

    Formulas are with the functions :func:`schedules.get_cosine_with_cycles_schedule` and so on, where the same
    schedules have our conventions.

    Layer-wise learning rates: a group with the key ``lr_scale`` gets ``lr_scale`` times the learning rate of the
    schedule, floor and warm-up included. Groups that share one lr are taken as timm's, to be scaled; groups whose lr is
    ``lr * lr_scale`` of one lr as scaled already. Either way the result is the same. Anything else is refused.

    Args:
        optimizer: the optimizer to drive.
        sched: ``cosine``, ``tanh``, ``poly``, ``step``, ``multistep``, ``constant``, ``wsd``, ``rsqrt``, ``plateau`` or
            ``none``.
        num_epochs: epochs of one cycle, or of the schedule, 1 or more; without the warm-up if ``warmup_prefix``.
        decay_epochs: ``step``: epochs between two decays, 90 by default. ``wsd``, ``rsqrt``: epochs of the decay, or a
            share of the epochs after the warm-up below 1, 0.2 by default.
        decay_milestones: epochs in ascending order; the lr is lowered from the one before on.
        cooldown_epochs: epochs at ``min_lr`` that are added to the number returned, where the schedule has an end.
        patience_epochs: ``plateau``: epochs without improvement that are let pass.
        decay_rate: factor of a decay; for ``poly`` the power.
        min_lr: absolute learning rate at the end, at most the smallest lr.
        warmup_lr: absolute learning rate at epoch 0.
        warmup_epochs: epochs of warm-up, 0 or more.
        warmup_prefix: the schedule begins after the warm-up; False: at epoch 0, and the warm-up takes the place of its
            first epochs. ``wsd`` and ``rsqrt`` always begin after it, and are shorter by it if False.
        noise: None: no noise; where it starts, or ``[start, stop]``, as shares of ``num_epochs``.
        noise_pct: bound of the noise n, above 0: ``lr * (1 + n)``.
        noise_std: standard deviation of n, above 0.
        noise_seed: seed of n.
        cycle_mul: length of a cycle over that of the one before, above 0.
        cycle_decay: top of a cycle over that of the one before.
        cycle_limit: how many cycles, 1 or more.
        k_decay: ``cosine``, ``poly``: above 1 a cycle stays longer near its top.
        decay_fn: ``wsd``, ``rsqrt``: ``1-sqrt`` (default of ``wsd``), ``linear`` (default of ``rsqrt``), ``cosine``,
            ``power`` or ``exp``.
        stable_timescale: ``rsqrt``: the time scale in epochs, above 0; by default the warm-up's length.
        plateau_mode: ``max`` or ``min``: which metric is better.
        step_on_epochs: the schedule follows ``step(epoch)``; False: ``step_update(num_updates)``, in finer steps.
        updates_per_epoch: updates of the optimizer in an epoch, needed with ``step_on_epochs=False``.

    Returns:
        The schedule (None for ``none``), and the epochs to train: all cycles, the warm-up if it comes before, and
        ``cooldown_epochs``.

    Raises:
        TypeError, ValueError: an unknown name or an argument out of range; a ``min_lr`` above a group's lr.

    Source: timm 1.0.31, ``timm.scheduler.create_scheduler_v2``. docs/schedules.md lists where this one differs.
    """
    if sched not in SCHEDS:
        raise ValueError(f"unknown schedule {sched!r}; {closest(str(sched), SCHEDS)}")
    check_optimizer(optimizer)
    epochs = whole_number("num_epochs", num_epochs, at_least=1)
    warmup_epochs = _plain("warmup_epochs", warmup_epochs)
    cooldown_epochs = whole_number("cooldown_epochs", cooldown_epochs)
    min_lr, warmup_lr = real_number("min_lr", min_lr, at_least=0), real_number("warmup_lr", warmup_lr, at_least=0)
    decay_rate = real_number("decay_rate", decay_rate, at_least=0)
    unit = 1
    if not step_on_epochs:
        if not real_number("updates_per_epoch", updates_per_epoch) > 0:
            raise ValueError("step_on_epochs=False needs updates_per_epoch, the updates of the optimizer in an epoch")
        unit = whole_number("updates_per_epoch", updates_per_epoch)
    steps, warmup = epochs * unit, warmup_epochs * unit
    start, stop = _noise_bounds(noise, steps)
    noise_seed = 42 if noise_seed is None else whole_number("noise_seed", noise_seed)

    prefix = warmup_prefix
    length: float | None = None
    main: Curve = Constant()
    if sched in ("cosine", "tanh", "poly"):
        limit = whole_number("cycle_limit", cycle_limit, at_least=1)
        share = _share(sched, real_number("k_decay", k_decay, above=0), decay_rate)
        main = cycles(share, steps, min_lr, cycle_mul, cycle_decay, limit)
        assert main.length is not None
        if main.length == math.inf:
            raise ValueError(f"cycle_limit={cycle_limit!r} with cycle_mul={cycle_mul!r} is longer than can be counted")
        # Rounding must not take an epoch away where the cycles end with one.
        length = math.floor(main.length * (1.0 + 1e-12)) + (warmup if prefix else 0)
    elif sched == "step":
        main = Stairs(real_number("decay_epochs", 90 if decay_epochs is None else decay_epochs) * unit, decay_rate)
    elif sched == "multistep":
        # A milestone is the step after the first with the lower lr: timm keeps this so for the sake of old runs.
        milestones = tuple(real_number("decay_milestones", each) * unit for each in decay_milestones)
        main = Milestones(milestones, decay_rate).ahead(1)
    elif sched in ("wsd", "rsqrt"):
        left = steps if prefix else steps - warmup
        timescale = warmup if stable_timescale is None else real_number("stable_timescale", stable_timescale) * unit
        main = _cooled(sched, left, 0.2 if decay_epochs is None else decay_epochs, unit, timescale, decay_fn, min_lr)
        prefix, length = True, warmup + left

    schedule: TimmSchedule | TimmPlateau | None = None
    if sched == "plateau":
        if not step_on_epochs:
            raise ValueError("plateau counts epochs, which have a metric: leave out step_on_epochs=False")
        schedule = _plateau(
            optimizer,
            mode=plateau_mode,
            factor=decay_rate,
            patience=patience_epochs,
            min_lr=min_lr,
            warmup_epochs=warmup_epochs,
            warmup_lr=warmup_lr,
            noise_range=None if start is None else [start] if stop is None else [start, stop],
            noise_pct=noise_pct,
            noise_std=noise_std,
            noise_seed=noise_seed,
        )
    elif sched != "none":
        curve = risen(main, warmup, warmup_lr, prefix, meets_curve=sched == "tanh")
        curve = noisy(curve, start, stop, noise_pct, noise_std, noise_seed)
        schedule = TimmSchedule(optimizer, curve, step_on_epochs)

    if length is None:
        return schedule, math.ceil(epochs + (warmup_epochs if warmup_prefix else 0))
    return schedule, math.ceil((length + cooldown_epochs * unit) // unit if unit > 1 else length + cooldown_epochs)


def _share(sched: str, k_decay: float, power: float) -> Curve:
    if sched == "tanh":
        return Tanh(1)
    return delayed(Cosine(1) if sched == "cosine" else Polynomial(1, power), k_decay)


def _cooled(
    sched: str, left: float, decay_epochs: float, unit: int, timescale: float, decay_fn: str | None, min_lr: float
) -> Curve:
    decay_epochs = real_number("decay_epochs", decay_epochs, above=0)
    decay = round(decay_epochs * left if decay_epochs < 1 else decay_epochs * unit)
    if not 0 < decay <= left:
        raise ValueError(
            f"{sched} would decay in the last {decay} of the {left} steps after the warm-up: "
            f"decay_epochs={decay_epochs:g} must come to 1 step or more, and fit"
        )
    if sched == "wsd":
        return stable_then_decay(Constant(), left, decay, decay_fn or "1-sqrt", min_lr)
    if not timescale > 0:
        raise ValueError("rsqrt needs stable_timescale above 0, or a warm-up, whose length it is by default")
    return stable_then_decay(InverseSqrt(timescale), left, decay, decay_fn or "linear", min_lr)


def _plain(name: str, value: Any) -> Any:
    """A number of 0 or more, as an int where it has no fraction."""
    number = real_number(name, value, at_least=0)
    return int(number) if number.is_integer() else number


def _noise_bounds(noise: float | Sequence[float] | None, steps: int) -> tuple[float | None, float | None]:
    if noise is None:
        return None, None
    bounds = [share * steps for share in noise_bounds("noise", noise)]
    return bounds[0], bounds[1] if bounds[1:] else None


def _plateau(optimizer: Optimizer, warmup_lr: float, **options: Any) -> TimmPlateau:
    scaled = lr_is_scaled(optimizer)
    warmup_lrs = []
    for group in optimizer.param_groups:
        scale = _lr_scale(group)
        warmup_lrs.append(warmup_lr * scale)
        group.setdefault("initial_lr", float(group["lr"]))
        # A group that already went through a schedule begins anew, as with every other schedule.
        set_lr(group, float(group["initial_lr"]) * (1.0 if scaled else scale))
    return TimmPlateau(PlateauLR(optimizer, warmup_lr=warmup_lrs, **options))


# Argument of create_scheduler_v2 -> attribute of timm's configuration, and what holds without it.
_CONFIGURED: dict[str, tuple[str, Any]] = {
    "num_epochs": ("epochs", 100),
    "decay_epochs": ("decay_epochs", 30),
    "decay_milestones": ("decay_milestones", (30, 60)),
    "warmup_epochs": ("warmup_epochs", 5),
    "cooldown_epochs": ("cooldown_epochs", 0),
    "patience_epochs": ("patience_epochs", 10),
    "decay_rate": ("decay_rate", 0.1),
    "min_lr": ("min_lr", 0.0),
    "warmup_lr": ("warmup_lr", 1e-5),
    "warmup_prefix": ("warmup_prefix", False),
    "noise": ("lr_noise", None),
    "noise_pct": ("lr_noise_pct", 0.67),
    "noise_std": ("lr_noise_std", 1.0),
    "noise_seed": ("seed", 42),
    "cycle_mul": ("lr_cycle_mul", 1.0),
    "cycle_decay": ("lr_cycle_decay", 0.1),
    "cycle_limit": ("lr_cycle_limit", 1),
    "k_decay": ("lr_k_decay", 1.0),
    "decay_fn": ("lr_decay_fn", None),
    "stable_timescale": ("lr_stable_timescale", None),
}


def scheduler_kwargs(cfg: Any, decreasing_metric: bool | None = None) -> dict[str, Any]:
    """Return the arguments of :func:`create_scheduler_v2` that timm's configuration stands for.

    Args:
        cfg: an object with timm's attributes, such as parsed arguments of its train.py: ``sched``, which must be there,
            ``epochs`` (100 if it is not), ``decay_epochs`` (30), ``decay_milestones`` (30, 60), ``warmup_epochs`` (5),
            ``warmup_lr`` (1e-5), ``min_lr`` (0), ``lr_noise``, ``lr_cycle_mul``, ``lr_k_decay``, ``seed``, ...
        decreasing_metric: for ``plateau``: whether a smaller metric is better. None: so it is if ``cfg.eval_metric``
            has "loss" in its name.

    Raises:
        AttributeError: ``cfg`` has no ``sched``.
    """
    if decreasing_metric is None:
        decreasing_metric = "loss" in getattr(cfg, "eval_metric", "top1")
    kwargs = {"sched": cfg.sched}
    kwargs.update({name: getattr(cfg, attribute, usual) for name, (attribute, usual) in _CONFIGURED.items()})
    kwargs["plateau_mode"] = "min" if decreasing_metric else "max"
    kwargs["step_on_epochs"] = not getattr(cfg, "sched_on_updates", False)
    return kwargs


def create_scheduler(
    args: Any, optimizer: Optimizer, updates_per_epoch: int = 0
) -> tuple[TimmSchedule | TimmPlateau | None, int]:
    """Make a schedule of timm's configuration.

    Args:
        args: see :func:`scheduler_kwargs`.
        optimizer: the optimizer to drive.
        updates_per_epoch: updates of the optimizer in an epoch, needed with ``args.sched_on_updates``.

    Returns:
        As :func:`create_scheduler_v2`: the schedule, and the epochs to train.

    Raises:
        TypeError, ValueError: as :func:`create_scheduler_v2`.
    """
    return create_scheduler_v2(optimizer=optimizer, **scheduler_kwargs(args), updates_per_epoch=updates_per_epoch)
