"""The catalogue: one file per family, with the rules (mathematics) and the classes (signatures)."""

from hfoptim.optimizers.adafactor import Adafactor, AdafactorSchedule, get_adafactor_schedule
from hfoptim.optimizers.adam import Adam, AdamW
from hfoptim.optimizers.adam_weight_decay import AdamWeightDecay
from hfoptim.optimizers.lion import Lion
from hfoptim.optimizers.sgd import SGD

__all__ = [
    "SGD",
    "Adafactor",
    "AdafactorSchedule",
    "Adam",
    "AdamW",
    "AdamWeightDecay",
    "Lion",
    "get_adafactor_schedule",
]
