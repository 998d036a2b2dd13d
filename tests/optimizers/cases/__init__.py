"""The table of optimizers: every test of this folder runs over ENTRIES.

A new optimizer joins by one entry, in the file of its family.
"""

from cases.adafactor import ADAFACTOR
from cases.adam import ADAM, ADAMW
from cases.adam_weight_decay import ADAM_WEIGHT_DECAY
from cases.entry import Checkpoint, Entry, Options, Reference, Variant
from cases.lion import LION
from cases.sgd import SGD

ENTRIES = [ADAMW, ADAM, SGD, LION, ADAFACTOR, ADAM_WEIGHT_DECAY]

__all__ = [
    "ADAFACTOR",
    "ADAM",
    "ADAMW",
    "ADAM_WEIGHT_DECAY",
    "ENTRIES",
    "LION",
    "SGD",
    "Checkpoint",
    "Entry",
    "Options",
    "Reference",
    "Variant",
]
