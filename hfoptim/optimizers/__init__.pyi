# Written by `python -m hfoptim.registry.stubs`, which `make lint` runs.
from hfoptim.engine.discovery import FoundModule
from hfoptim.optimizers.a2grad import A2Grad as A2Grad
from hfoptim.optimizers.accsgd import AccSGD as AccSGD
from hfoptim.optimizers.acprop import ACProp as ACProp
from hfoptim.optimizers.adabelief import AdaBelief as AdaBelief
from hfoptim.optimizers.adabound import AdaBound as AdaBound
from hfoptim.optimizers.adadelta import Adadelta as Adadelta
from hfoptim.optimizers.adafactor import Adafactor as Adafactor
from hfoptim.optimizers.adafactor import AdafactorSchedule as AdafactorSchedule
from hfoptim.optimizers.adafactor import get_adafactor_schedule as get_adafactor_schedule
from hfoptim.optimizers.adafactor_bv import AdafactorBigVision as AdafactorBigVision
from hfoptim.optimizers.adagc import AdaGC as AdaGC
from hfoptim.optimizers.adago import AdaGO as AdaGO
from hfoptim.optimizers.adagrad import Adagrad as Adagrad
from hfoptim.optimizers.adahessian import Adahessian as Adahessian
from hfoptim.optimizers.adai import Adai as Adai
from hfoptim.optimizers.adai import AdaiV2 as AdaiV2
from hfoptim.optimizers.adalite import Adalite as Adalite
from hfoptim.optimizers.adam import Adam as Adam
from hfoptim.optimizers.adam import AdamW as AdamW
from hfoptim.optimizers.adam_atan2 import AdamAtan2 as AdamAtan2
from hfoptim.optimizers.adam_mini import AdamMini as AdamMini
from hfoptim.optimizers.adam_weight_decay import AdamWeightDecay as AdamWeightDecay
from hfoptim.optimizers.adamax import Adamax as Adamax
from hfoptim.optimizers.adamg import AdamG as AdamG
from hfoptim.optimizers.adamod import AdaMod as AdaMod
from hfoptim.optimizers.adamp import AdamP as AdamP
from hfoptim.optimizers.adams import AdamS as AdamS
from hfoptim.optimizers.adamw_sn import AdamWSN as AdamWSN
from hfoptim.optimizers.adan import Adan as Adan
from hfoptim.optimizers.adanorm import AdaNorm as AdaNorm
from hfoptim.optimizers.adashift import AdaShift as AdaShift
from hfoptim.optimizers.adasmooth import AdaSmooth as AdaSmooth
from hfoptim.optimizers.ademamix import AdEMAMix as AdEMAMix
from hfoptim.optimizers.adopt import Adopt as Adopt
from hfoptim.optimizers.aggmo import AggMo as AggMo
from hfoptim.optimizers.aida import Aida as Aida
from hfoptim.optimizers.alice import Alice as Alice
from hfoptim.optimizers.alig import AliG as AliG
from hfoptim.optimizers.amos import Amos as Amos
from hfoptim.optimizers.ano import Ano as Ano
from hfoptim.optimizers.apollo import Apollo as Apollo
from hfoptim.optimizers.apollo_adamw import APOLLOAdamW as APOLLOAdamW
from hfoptim.optimizers.asgd import ASGD as ASGD
from hfoptim.optimizers.avagrad import AvaGrad as AvaGrad
from hfoptim.optimizers.bcos import BCOS as BCOS
from hfoptim.optimizers.bsam import BSAM as BSAM
from hfoptim.optimizers.came import CAME as CAME
from hfoptim.optimizers.cocob import COCOB as COCOB
from hfoptim.optimizers.conda import Conda as Conda
from hfoptim.optimizers.dadapt_adagrad import DAdaptAdaGrad as DAdaptAdaGrad
from hfoptim.optimizers.dadapt_adam import DAdaptAdam as DAdaptAdam
from hfoptim.optimizers.dadapt_adan import DAdaptAdan as DAdaptAdan
from hfoptim.optimizers.dadapt_lion import DAdaptLion as DAdaptLion
from hfoptim.optimizers.dadapt_sgd import DAdaptSGD as DAdaptSGD
from hfoptim.optimizers.demo import DeMo as DeMo
from hfoptim.optimizers.diffgrad import DiffGrad as DiffGrad
from hfoptim.optimizers.dion import Dion as Dion
from hfoptim.optimizers.dion2 import Dion2 as Dion2
from hfoptim.optimizers.dog import DoG as DoG
from hfoptim.optimizers.dog import DoWG as DoWG
from hfoptim.optimizers.dog import LDoG as LDoG
from hfoptim.optimizers.dual_adam import DualAdam as DualAdam
from hfoptim.optimizers.emo import EmoFact as EmoFact
from hfoptim.optimizers.emo import EmoLynx as EmoLynx
from hfoptim.optimizers.emo import EmoNavi as EmoNavi
from hfoptim.optimizers.exadam import EXAdam as EXAdam
from hfoptim.optimizers.fadam import FAdam as FAdam
from hfoptim.optimizers.fira import FiraAdamW as FiraAdamW
from hfoptim.optimizers.focus import FOCUS as FOCUS
from hfoptim.optimizers.fromage import Fromage as Fromage
from hfoptim.optimizers.ftrl import FTRL as FTRL
from hfoptim.optimizers.galore import GaLoreAdafactor as GaLoreAdafactor
from hfoptim.optimizers.galore import GaLoreAdamW as GaLoreAdamW
from hfoptim.optimizers.grams import Grams as Grams
from hfoptim.optimizers.gravity import Gravity as Gravity
from hfoptim.optimizers.grokadamw import GrokAdamW as GrokAdamW
from hfoptim.optimizers.kate import Kate as Kate
from hfoptim.optimizers.kl_shampoo import KLSOAP as KLSOAP
from hfoptim.optimizers.kl_shampoo import KLShampoo as KLShampoo
from hfoptim.optimizers.kourkoutas import Kourkoutas as Kourkoutas
from hfoptim.optimizers.kron import Kron as Kron
from hfoptim.optimizers.lamb import Lamb as Lamb
from hfoptim.optimizers.laprop import LaProp as LaProp
from hfoptim.optimizers.lars import Lars as Lars
from hfoptim.optimizers.ldadam import LDAdamW as LDAdamW
from hfoptim.optimizers.lion import Lion as Lion
from hfoptim.optimizers.lomo import AdaLomo as AdaLomo
from hfoptim.optimizers.lomo import Lomo as Lomo
from hfoptim.optimizers.lora_fa import LoraFAOptimizer as LoraFAOptimizer
from hfoptim.optimizers.lora_rite import LoRARite as LoRARite
from hfoptim.optimizers.madgrad import MADGRAD as MADGRAD
from hfoptim.optimizers.madgrad import MirrorMADGRAD as MirrorMADGRAD
from hfoptim.optimizers.mars import Mars as Mars
from hfoptim.optimizers.mars_m import MarsM as MarsM
from hfoptim.optimizers.momo import Momo as Momo
from hfoptim.optimizers.momo import MomoAdam as MomoAdam
from hfoptim.optimizers.msvag import MSVAG as MSVAG
from hfoptim.optimizers.muon import Muon as Muon
from hfoptim.optimizers.muon_clip import MuonClip as MuonClip
from hfoptim.optimizers.muown import Muown as Muown
from hfoptim.optimizers.nadam import NAdam as NAdam
from hfoptim.optimizers.nadam import NAdamW as NAdamW
from hfoptim.optimizers.nero import Nero as Nero
from hfoptim.optimizers.noisy_sgd import NoisySGD as NoisySGD
from hfoptim.optimizers.novograd import NvNovoGrad as NvNovoGrad
from hfoptim.optimizers.optimistic import OptimisticAdam as OptimisticAdam
from hfoptim.optimizers.optimistic import OptimisticGradientDescent as OptimisticGradientDescent
from hfoptim.optimizers.padam import Padam as Padam
from hfoptim.optimizers.pid import PID as PID
from hfoptim.optimizers.pnm import PNM as PNM
from hfoptim.optimizers.pnm import AdaPNM as AdaPNM
from hfoptim.optimizers.polargrad import PolarGrad as PolarGrad
from hfoptim.optimizers.prodigy import Prodigy as Prodigy
from hfoptim.optimizers.prodigy_plus import ProdigyPlusScheduleFree as ProdigyPlusScheduleFree
from hfoptim.optimizers.psgd_pro import PSGDPro as PSGDPro
from hfoptim.optimizers.qhm import QHM as QHM
from hfoptim.optimizers.qhm import QHAdam as QHAdam
from hfoptim.optimizers.racs import RACS as RACS
from hfoptim.optimizers.radam import RAdam as RAdam
from hfoptim.optimizers.ranger21 import Ranger21Base as Ranger21Base
from hfoptim.optimizers.rmsprop import RMSprop as RMSprop
from hfoptim.optimizers.rmsprop import RMSpropTF as RMSpropTF
from hfoptim.optimizers.rose import ROSE as ROSE
from hfoptim.optimizers.rprop import Rprop as Rprop
from hfoptim.optimizers.sara import SaRA as SaRA
from hfoptim.optimizers.schedule_free import AdamWScheduleFree as AdamWScheduleFree
from hfoptim.optimizers.schedule_free import RAdamScheduleFree as RAdamScheduleFree
from hfoptim.optimizers.schedule_free import SGDScheduleFree as SGDScheduleFree
from hfoptim.optimizers.schedule_free_plus import AdamCScheduleFreePlus as AdamCScheduleFreePlus
from hfoptim.optimizers.scion import Scion as Scion
from hfoptim.optimizers.scion import ScionLight as ScionLight
from hfoptim.optimizers.sgd import SGD as SGD
from hfoptim.optimizers.sgdp import SGDP as SGDP
from hfoptim.optimizers.sgdsai import SGDSaI as SGDSaI
from hfoptim.optimizers.sgdw import SGDW as SGDW
from hfoptim.optimizers.shampoo import DistributedShampoo as DistributedShampoo
from hfoptim.optimizers.shampoo import Shampoo as Shampoo
from hfoptim.optimizers.signsgd import SignSGD as SignSGD
from hfoptim.optimizers.simplified_ademamix import SimplifiedAdEMAMix as SimplifiedAdEMAMix
from hfoptim.optimizers.sinkgd import SinkGD as SinkGD
from hfoptim.optimizers.sm3 import SM3 as SM3
from hfoptim.optimizers.soap import SOAP as SOAP
from hfoptim.optimizers.soap_muon import SOAPMuon as SOAPMuon
from hfoptim.optimizers.sophia import SophiaG as SophiaG
from hfoptim.optimizers.sophia import SophiaH as SophiaH
from hfoptim.optimizers.spam import SPAM as SPAM
from hfoptim.optimizers.spam import StableSPAM as StableSPAM
from hfoptim.optimizers.sparse_adam import SparseAdam as SparseAdam
from hfoptim.optimizers.spectral_sphere import SpectralSphere as SpectralSphere
from hfoptim.optimizers.splus import SPlus as SPlus
from hfoptim.optimizers.srmm import SRMM as SRMM
from hfoptim.optimizers.stable_adamw import StableAdamW as StableAdamW
from hfoptim.optimizers.swats import SWATS as SWATS
from hfoptim.optimizers.tam import TAM as TAM
from hfoptim.optimizers.tam import AdaTAM as AdaTAM
from hfoptim.optimizers.tiger import Tiger as Tiger
from hfoptim.optimizers.torch_adafactor import TorchAdafactor as TorchAdafactor
from hfoptim.optimizers.vsgd import VSGD as VSGD
from hfoptim.optimizers.yogi import Yogi as Yogi

__all__ = [
    "ASGD",
    "BCOS",
    "BSAM",
    "CAME",
    "COCOB",
    "FOCUS",
    "FTRL",
    "KLSOAP",
    "MADGRAD",
    "MSVAG",
    "PID",
    "PNM",
    "QHM",
    "RACS",
    "ROSE",
    "SGD",
    "SGDP",
    "SGDW",
    "SM3",
    "SOAP",
    "SPAM",
    "SRMM",
    "SWATS",
    "TAM",
    "VSGD",
    "A2Grad",
    "ACProp",
    "APOLLOAdamW",
    "AccSGD",
    "AdEMAMix",
    "AdaBelief",
    "AdaBound",
    "AdaGC",
    "AdaGO",
    "AdaLomo",
    "AdaMod",
    "AdaNorm",
    "AdaPNM",
    "AdaShift",
    "AdaSmooth",
    "AdaTAM",
    "Adadelta",
    "Adafactor",
    "AdafactorBigVision",
    "AdafactorSchedule",
    "Adagrad",
    "Adahessian",
    "Adai",
    "AdaiV2",
    "Adalite",
    "Adam",
    "AdamAtan2",
    "AdamCScheduleFreePlus",
    "AdamG",
    "AdamMini",
    "AdamP",
    "AdamS",
    "AdamW",
    "AdamWSN",
    "AdamWScheduleFree",
    "AdamWeightDecay",
    "Adamax",
    "Adan",
    "Adopt",
    "AggMo",
    "Aida",
    "AliG",
    "Alice",
    "Amos",
    "Ano",
    "Apollo",
    "AvaGrad",
    "Conda",
    "DAdaptAdaGrad",
    "DAdaptAdam",
    "DAdaptAdan",
    "DAdaptLion",
    "DAdaptSGD",
    "DeMo",
    "DiffGrad",
    "Dion",
    "Dion2",
    "DistributedShampoo",
    "DoG",
    "DoWG",
    "DualAdam",
    "EXAdam",
    "EmoFact",
    "EmoLynx",
    "EmoNavi",
    "FAdam",
    "FiraAdamW",
    "Fromage",
    "GaLoreAdafactor",
    "GaLoreAdamW",
    "Grams",
    "Gravity",
    "GrokAdamW",
    "KLShampoo",
    "Kate",
    "Kourkoutas",
    "Kron",
    "LDAdamW",
    "LDoG",
    "LaProp",
    "Lamb",
    "Lars",
    "Lion",
    "LoRARite",
    "Lomo",
    "LoraFAOptimizer",
    "Mars",
    "MarsM",
    "MirrorMADGRAD",
    "Momo",
    "MomoAdam",
    "Muon",
    "MuonClip",
    "Muown",
    "NAdam",
    "NAdamW",
    "Nero",
    "NoisySGD",
    "NvNovoGrad",
    "OptimisticAdam",
    "OptimisticGradientDescent",
    "PSGDPro",
    "Padam",
    "PolarGrad",
    "Prodigy",
    "ProdigyPlusScheduleFree",
    "QHAdam",
    "RAdam",
    "RAdamScheduleFree",
    "RMSprop",
    "RMSpropTF",
    "Ranger21Base",
    "Rprop",
    "SGDSaI",
    "SGDScheduleFree",
    "SOAPMuon",
    "SPlus",
    "SaRA",
    "Scion",
    "ScionLight",
    "Shampoo",
    "SignSGD",
    "SimplifiedAdEMAMix",
    "SinkGD",
    "SophiaG",
    "SophiaH",
    "SparseAdam",
    "SpectralSphere",
    "StableAdamW",
    "StableSPAM",
    "Tiger",
    "TorchAdafactor",
    "Yogi",
    "get_adafactor_schedule",
]

def found() -> tuple[FoundModule, ...]: ...
def sources() -> dict[str, str]: ...
