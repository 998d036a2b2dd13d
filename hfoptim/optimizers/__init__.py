"""The catalogue: one file per family, with the rules (mathematics) and the classes (signatures)."""

from hfoptim.optimizers.adafactor import Adafactor, AdafactorSchedule, get_adafactor_schedule
from hfoptim.optimizers.adagrad import Adagrad
from hfoptim.optimizers.adahessian import Adahessian
from hfoptim.optimizers.adam import Adam, AdamW
from hfoptim.optimizers.adam_mini import AdamMini
from hfoptim.optimizers.adam_weight_decay import AdamWeightDecay
from hfoptim.optimizers.adan import Adan
from hfoptim.optimizers.ademamix import AdEMAMix
from hfoptim.optimizers.adopt import Adopt
from hfoptim.optimizers.lamb import Lamb
from hfoptim.optimizers.lars import Lars
from hfoptim.optimizers.lion import Lion
from hfoptim.optimizers.muon import Muon
from hfoptim.optimizers.novograd import NvNovoGrad
from hfoptim.optimizers.prodigy import Prodigy
from hfoptim.optimizers.schedule_free import AdamWScheduleFree
from hfoptim.optimizers.sgd import SGD

__all__ = [
    "SGD",
    "AdEMAMix",
    "Adafactor",
    "AdafactorSchedule",
    "Adagrad",
    "Adahessian",
    "Adam",
    "AdamMini",
    "AdamW",
    "AdamWScheduleFree",
    "AdamWeightDecay",
    "Adan",
    "Adopt",
    "Lamb",
    "Lars",
    "Lion",
    "Muon",
    "NvNovoGrad",
    "Prodigy",
    "get_adafactor_schedule",
]
