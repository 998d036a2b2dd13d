from __future__ import annotations

import functools
from importlib import import_module
from typing import Any
from unittest import mock

import peers
import torch
from torch import Tensor

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid
from cases.muon import MATRICES, InFloat64


def peer(groups: list[Options], **options: Any) -> InFloat64:
    """pytorch_optimizer's, in double precision."""
    cls = peers.load("pytorch_optimizer.MuonClip")
    module: Any = import_module(cls.__mro__[2].__module__)  # of its base
    iterate = functools.partial(module.zero_power_via_newton_schulz_5, dtype=torch.float64)
    patch = mock.patch.object(module, "zero_power_via_newton_schulz_5", iterate)
    return InFloat64(cls(groups, foreach=False, **options), patch)


def _peer(who: str, params: dict[str, Tensor], options: Options) -> Any:
    options = {"weight_decay": 0.1, **options}
    rest = {"betas": (0.9, 0.95), "eps": 1e-7, "lr": options["lr"], "weight_decay": options["weight_decay"]}
    matrices = [param for name, param in params.items() if name in MATRICES]
    vectors = [param for name, param in params.items() if name not in MATRICES]
    return peer([{"params": matrices, "use_muon": True}, {"params": vectors, "use_muon": False, **rest}], **options)


MUON_CLIP = Entry(
    "muonclip",
    hfoptim.MuonClip,
    counted=False,
    variants={"decay": Variant({"weight_decay": 0.1}, complex=False, alone=False)},
    references=[
        Reference(
            "pytorch_optimizer.MuonClip",
            grid(lr=[1e-2], momentum=[0.95, 0.5], weight_decay=[0.0, 0.25]),
            make=_peer,
            layouts=("matrix", "wide", "narrow", "transposed", "conv", "scalar", "vector", "row"),
        )
    ],
    numbers={
        "lr": -1e-3,
        "weight_decay": -0.1,
        "momentum": 1.0,
        "eps": -1e-8,
        "ns_steps": 0,
        "fallback_lr_scale": -1.0,
        "safety_factor": -1.0,
        "qk_clip_threshold": -1.0,
        "qk_clip_alpha": 1.5,
    },
    small_steps={"lr": 1e-4, "momentum": 0.9},
)
