"""Optimizers around optimizers, and several as one."""

from hfoptim.wrappers.combined import CombinedOptimizer
from hfoptim.wrappers.ema import EMA
from hfoptim.wrappers.grokfast import GrokFast
from hfoptim.wrappers.lookahead import Lookahead
from hfoptim.wrappers.magma import Magma
from hfoptim.wrappers.sam import SAM
from hfoptim.wrappers.schedule_free import GPA, ScheduleFree
from hfoptim.wrappers.tuned import TRAC, Mechanic
from hfoptim.wrappers.wrapper import Wrapper, around

__all__ = [
    "EMA",
    "GPA",
    "SAM",
    "TRAC",
    "CombinedOptimizer",
    "GrokFast",
    "Lookahead",
    "Magma",
    "Mechanic",
    "ScheduleFree",
    "Wrapper",
    "around",
]
