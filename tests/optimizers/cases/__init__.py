"""The table of optimizers: every test of this folder runs over ENTRIES.

A new optimizer joins by one entry, in the file of its family.
"""

from cases.adafactor import ADAFACTOR
from cases.adagrad import ADAGRAD
from cases.adahessian import ADAHESSIAN
from cases.adam import ADAM, ADAMW
from cases.adam_mini import ADAM_MINI
from cases.adam_weight_decay import ADAM_WEIGHT_DECAY
from cases.adan import ADAN
from cases.ademamix import ADEMAMIX
from cases.adopt import ADOPT
from cases.entry import Checkpoint, Entry, Options, Reference, Variant
from cases.lamb import LAMB
from cases.lars import LARS
from cases.lion import LION
from cases.muon import MUON
from cases.novograd import NOVOGRAD
from cases.prodigy import PRODIGY
from cases.schedule_free import SCHEDULE_FREE
from cases.sgd import SGD

ENTRIES = [
    ADAMW,
    ADAM,
    SGD,
    LION,
    PRODIGY,
    SCHEDULE_FREE,
    ADAFACTOR,
    ADAM_WEIGHT_DECAY,
    ADAGRAD,
    ADAHESSIAN,
    ADAN,
    ADEMAMIX,
    ADOPT,
    LAMB,
    LARS,
    NOVOGRAD,
    MUON,
    ADAM_MINI,
]

__all__ = [
    "ADAFACTOR",
    "ADAGRAD",
    "ADAHESSIAN",
    "ADAM",
    "ADAMW",
    "ADAM_MINI",
    "ADAM_WEIGHT_DECAY",
    "ADAN",
    "ADEMAMIX",
    "ADOPT",
    "ENTRIES",
    "LAMB",
    "LARS",
    "LION",
    "MUON",
    "NOVOGRAD",
    "PRODIGY",
    "SCHEDULE_FREE",
    "SGD",
    "Checkpoint",
    "Entry",
    "Options",
    "Reference",
    "Variant",
]
