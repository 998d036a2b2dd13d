"""hfoptim in transformers' Trainer: `OptimizerCallback`, and names for TrainingArguments with `enable()`."""

from hfoptim.trainer.callback import OptimizerCallback
from hfoptim.trainer.names import disable, enable

__all__ = ["OptimizerCallback", "disable", "enable"]
