"""Optimizers around optimizers, and several as one."""

from hfoptim.wrappers.badam import BAdam
from hfoptim.wrappers.combined import CombinedOptimizer
from hfoptim.wrappers.ema import EMA
from hfoptim.wrappers.ema_nesterov import EMANesterov
from hfoptim.wrappers.grokfast import GrokFast
from hfoptim.wrappers.lookahead import Lookahead
from hfoptim.wrappers.magma import Magma
from hfoptim.wrappers.sam import SAM
from hfoptim.wrappers.sam_family import GSAM, WSAM, FriendlySAM, LookSAM
from hfoptim.wrappers.schedule_free import GPA, ScheduleFree
from hfoptim.wrappers.svrg import SVRG
from hfoptim.wrappers.tuned import TRAC, Mechanic
from hfoptim.wrappers.two_points import TwoPoints
from hfoptim.wrappers.wrapper import Wrapper, around

__all__ = [
    "EMA",
    "GPA",
    "GSAM",
    "SAM",
    "SVRG",
    "TRAC",
    "WSAM",
    "BAdam",
    "CombinedOptimizer",
    "EMANesterov",
    "FriendlySAM",
    "GrokFast",
    "LookSAM",
    "Lookahead",
    "Magma",
    "Mechanic",
    "ScheduleFree",
    "TwoPoints",
    "Wrapper",
    "around",
]
