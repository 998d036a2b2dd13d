"""Optimizers around optimizers."""

from hfoptim.wrappers.lookahead import Lookahead
from hfoptim.wrappers.sam import SAM
from hfoptim.wrappers.wrapper import Wrapper, around

__all__ = ["SAM", "Lookahead", "Wrapper", "around"]
