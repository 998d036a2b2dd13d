"""A value that follows the learning rate of a running schedule, such as the rho of GSAM."""

from __future__ import annotations

from torch.optim.lr_scheduler import LRScheduler

from .checks import real_number

__all__ = ["ProportionScheduler"]


class ProportionScheduler:
    """``min_value + (max_value - min_value) * (lr - min_lr) / (max_lr - min_lr)``, lr that of the first param group.

    It reads the learning rate when it is made and at each ``step()``, to be called after that of the schedule. It keeps
    nothing that a checkpoint needs. To write such a value into an optimizer's groups, use
    :func:`schedules.schedule_hyperparameter` with the curve ``get_curve("proportion", ...)``.

    Args:
        lr_scheduler: the schedule, any of torch's or of this package.
        max_lr: the learning rate at ``max_value``.
        min_lr: the learning rate at ``min_value``, 0 or more, below ``max_lr``.
        max_value: the value at ``max_lr``.
        min_value: the value at ``min_lr``.

    Raises:
        TypeError: ``lr_scheduler`` has no optimizer, or an argument is not a number.
        ValueError: ``min_lr`` is not below ``max_lr``, or an argument is not finite.

    Source: Surrogate Gap Minimization (GSAM), https://arxiv.org/abs/2203.08065; signature of pytorch_optimizer.
    """

    def __init__(
        self,
        lr_scheduler: LRScheduler,
        max_lr: float,
        min_lr: float = 0.0,
        max_value: float = 2.0,
        min_value: float = 2.0,
    ) -> None:
        if not hasattr(getattr(lr_scheduler, "optimizer", None), "param_groups"):
            raise TypeError(f"lr_scheduler must drive an optimizer, got {type(lr_scheduler).__name__}")
        self.lr_scheduler = lr_scheduler
        self.max_lr = real_number("max_lr", max_lr, above=0)
        self.min_lr = real_number("min_lr", min_lr, at_least=0, below=self.max_lr)
        self.max_value = real_number("max_value", max_value)
        self.min_value = real_number("min_value", min_value)
        self.step_t = 0
        self.last_lr: list[float] = []
        self.step()

    def get_lr(self) -> float:
        """Return the value of the last ``step()``."""
        return self.last_lr[0]

    def step(self) -> float:
        """Return the value for the learning rate that the optimizer has now."""
        lr = float(self.lr_scheduler.optimizer.param_groups[0]["lr"])
        share = (lr - self.min_lr) / (self.max_lr - self.min_lr)
        value = self.min_value + (self.max_value - self.min_value) * share
        self.step_t += 1
        self.last_lr = [value]
        return value
