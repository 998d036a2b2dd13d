"""Optimizers around optimizers, and several as one."""

from hfoptim.wrappers.combined import CombinedOptimizer
from hfoptim.wrappers.ema import EMA
from hfoptim.wrappers.lookahead import Lookahead
from hfoptim.wrappers.magma import Magma
from hfoptim.wrappers.sam import SAM
from hfoptim.wrappers.wrapper import Wrapper, around

__all__ = ["EMA", "SAM", "CombinedOptimizer", "Lookahead", "Magma", "Wrapper", "around"]
