# Written by `python -m hfoptim.registry.stubs`, which `make lint` runs.
from hfoptim.engine.discovery import FoundModule
from hfoptim.optimizers.adabelief import AdaBelief as AdaBelief
from hfoptim.optimizers.adabound import AdaBound as AdaBound
from hfoptim.optimizers.adafactor import Adafactor as Adafactor
from hfoptim.optimizers.adafactor import AdafactorSchedule as AdafactorSchedule
from hfoptim.optimizers.adafactor import get_adafactor_schedule as get_adafactor_schedule
from hfoptim.optimizers.adafactor_bv import AdafactorBigVision as AdafactorBigVision
from hfoptim.optimizers.adagc import AdaGC as AdaGC
from hfoptim.optimizers.adagrad import Adagrad as Adagrad
from hfoptim.optimizers.adahessian import Adahessian as Adahessian
from hfoptim.optimizers.adam import Adam as Adam
from hfoptim.optimizers.adam import AdamW as AdamW
from hfoptim.optimizers.adam_mini import AdamMini as AdamMini
from hfoptim.optimizers.adam_weight_decay import AdamWeightDecay as AdamWeightDecay
from hfoptim.optimizers.adamod import AdaMod as AdaMod
from hfoptim.optimizers.adan import Adan as Adan
from hfoptim.optimizers.ademamix import AdEMAMix as AdEMAMix
from hfoptim.optimizers.adopt import Adopt as Adopt
from hfoptim.optimizers.alig import AliG as AliG
from hfoptim.optimizers.amos import Amos as Amos
from hfoptim.optimizers.apollo import Apollo as Apollo
from hfoptim.optimizers.came import CAME as CAME
from hfoptim.optimizers.diffgrad import DiffGrad as DiffGrad
from hfoptim.optimizers.emo import EmoFact as EmoFact
from hfoptim.optimizers.emo import EmoLynx as EmoLynx
from hfoptim.optimizers.emo import EmoNavi as EmoNavi
from hfoptim.optimizers.focus import FOCUS as FOCUS
from hfoptim.optimizers.lamb import Lamb as Lamb
from hfoptim.optimizers.laprop import LaProp as LaProp
from hfoptim.optimizers.lars import Lars as Lars
from hfoptim.optimizers.lion import Lion as Lion
from hfoptim.optimizers.lomo import AdaLomo as AdaLomo
from hfoptim.optimizers.lomo import Lomo as Lomo
from hfoptim.optimizers.madgrad import MADGRAD as MADGRAD
from hfoptim.optimizers.madgrad import MirrorMADGRAD as MirrorMADGRAD
from hfoptim.optimizers.mars import Mars as Mars
from hfoptim.optimizers.momo import Momo as Momo
from hfoptim.optimizers.momo import MomoAdam as MomoAdam
from hfoptim.optimizers.muon import Muon as Muon
from hfoptim.optimizers.novograd import NvNovoGrad as NvNovoGrad
from hfoptim.optimizers.padam import Padam as Padam
from hfoptim.optimizers.prodigy import Prodigy as Prodigy
from hfoptim.optimizers.rose import ROSE as ROSE
from hfoptim.optimizers.schedule_free import AdamWScheduleFree as AdamWScheduleFree
from hfoptim.optimizers.sgd import SGD as SGD
from hfoptim.optimizers.sm3 import SM3 as SM3
from hfoptim.optimizers.sophia import SophiaG as SophiaG
from hfoptim.optimizers.sophia import SophiaH as SophiaH
from hfoptim.optimizers.spam import SPAM as SPAM
from hfoptim.optimizers.spam import StableSPAM as StableSPAM
from hfoptim.optimizers.torch_adafactor import TorchAdafactor as TorchAdafactor
from hfoptim.optimizers.yogi import Yogi as Yogi

__all__ = [
    "CAME",
    "FOCUS",
    "MADGRAD",
    "ROSE",
    "SGD",
    "SM3",
    "SPAM",
    "AdEMAMix",
    "AdaBelief",
    "AdaBound",
    "AdaGC",
    "AdaLomo",
    "AdaMod",
    "Adafactor",
    "AdafactorBigVision",
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
    "AliG",
    "Amos",
    "Apollo",
    "DiffGrad",
    "EmoFact",
    "EmoLynx",
    "EmoNavi",
    "LaProp",
    "Lamb",
    "Lars",
    "Lion",
    "Lomo",
    "Mars",
    "MirrorMADGRAD",
    "Momo",
    "MomoAdam",
    "Muon",
    "NvNovoGrad",
    "Padam",
    "Prodigy",
    "SophiaG",
    "SophiaH",
    "StableSPAM",
    "TorchAdafactor",
    "Yogi",
    "get_adafactor_schedule",
]

def found() -> tuple[FoundModule, ...]: ...
def sources() -> dict[str, str]: ...
