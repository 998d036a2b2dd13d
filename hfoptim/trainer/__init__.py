"""hfoptim in transformers' Trainer: `OptimizerCallback`, and names for TrainingArguments with `enable()`."""

from hfoptim.trainer.callback import OptimizerCallback
from hfoptim.trainer.checkpoints import last_whole_checkpoint
from hfoptim.trainer.guard import GuardSteps
from hfoptim.trainer.losses import TellLoss
from hfoptim.trainer.modes import EvaluationWeights
from hfoptim.trainer.monitor import OptimizerMonitor
from hfoptim.trainer.names import disable, enable
from hfoptim.trainer.schedule_change import ScheduleChange
from hfoptim.trainer.second_pass import SecondPass
from hfoptim.trainer.token_weights import TokenWeights

__all__ = [
    "EvaluationWeights",
    "GuardSteps",
    "OptimizerCallback",
    "OptimizerMonitor",
    "ScheduleChange",
    "SecondPass",
    "TellLoss",
    "TokenWeights",
    "disable",
    "enable",
    "last_whole_checkpoint",
]
