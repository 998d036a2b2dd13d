"""Methods written out in NumPy from their papers and their authors' code, by somebody who had not read the rule here
(averages.py, checked.py, factors.py, spectral.py and subspaces.py: by the writer of the rule).

`tests/optimizers` follows them where no package ships a method as its paper has it. Nothing here imports torch or this
package. Each class names the algorithm it was written from.
"""

from .authors import (
    SRMM,
    EmoFact,
    EmoLynx,
    EmoNavi,
    GrokAdamW,
    Nero,
    NorMuon,
    OptimisticAdam,
    OptimisticGradientDescent,
)
from .averages import AdamCScheduleFreePlus, ProdigyPlusScheduleFree
from .base import Array, Transcription
from .checked import BSAM, COCOB, ACProp, DeMo, DoWG, MarsM
from .factors import KLSOAP, SOAP, DistributedShampoo, KLShampoo, PSGDPro, SOAPMuon
from .moments import AdamAtan2, AdamG, AdaPNM, DualAdam, FAdam, Padam, SimplifiedAdEMAMix
from .signs import Ano, SophiaG, Tiger
from .spectral import AdaGO, Dion, Dion2, Muown, PolarGrad, SinkGD, SpectralSphere, TurboMuon
from .subspaces import RACS, Alice, LDAdamW
from .sums import BCOS, A2Grad, AdaSmooth, Kate, MirrorMADGRAD
from .tensors import TAM, AdaTAM, Aida, Kourkoutas
from .together import SWATS, Momo, MomoAdam

__all__ = [
    "BCOS",
    "BSAM",
    "COCOB",
    "KLSOAP",
    "RACS",
    "SOAP",
    "SRMM",
    "SWATS",
    "TAM",
    "A2Grad",
    "ACProp",
    "AdaGO",
    "AdaPNM",
    "AdaSmooth",
    "AdaTAM",
    "AdamAtan2",
    "AdamCScheduleFreePlus",
    "AdamG",
    "Aida",
    "Alice",
    "Ano",
    "Array",
    "DeMo",
    "Dion",
    "Dion2",
    "DistributedShampoo",
    "DoWG",
    "DualAdam",
    "EmoFact",
    "EmoLynx",
    "EmoNavi",
    "FAdam",
    "GrokAdamW",
    "KLShampoo",
    "Kate",
    "Kourkoutas",
    "LDAdamW",
    "MarsM",
    "MirrorMADGRAD",
    "Momo",
    "MomoAdam",
    "Muown",
    "Nero",
    "NorMuon",
    "OptimisticAdam",
    "OptimisticGradientDescent",
    "PSGDPro",
    "Padam",
    "PolarGrad",
    "ProdigyPlusScheduleFree",
    "SOAPMuon",
    "SimplifiedAdEMAMix",
    "SinkGD",
    "SophiaG",
    "SpectralSphere",
    "Tiger",
    "Transcription",
    "TurboMuon",
]
