from __future__ import annotations

import functools
from typing import Any
from unittest import mock

import peers
import torch
from torch import Tensor

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid
from cases.transcribed import Peer


class InFloat64:
    """A peer whose Newton-Schulz iteration computes in the dtype of its parameters, not in bfloat16."""

    def __init__(self, optimizer: Any, patch: Any) -> None:
        self.optimizer = optimizer
        self.patch = patch
        self.param_groups = optimizer.param_groups

    def step(self) -> None:
        with self.patch:
            self.optimizer.step()


def torch_in_float64(optimizer: Any) -> InFloat64:
    return InFloat64(optimizer, mock.patch.object(Tensor, "bfloat16", lambda tensor: tensor.clone()))


def timm_in_float64(optimizer: Any) -> InFloat64:
    module = peers.submodule("timm.optim.muon")
    iterate = functools.partial(module.zeropower_via_newtonschulz, dtype=torch.float64)
    return InFloat64(optimizer, mock.patch.object(module, "zeropower_via_newtonschulz", iterate))


class Together:
    """Several optimizers as one."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts
        self.param_groups = [group for part in parts for group in part.param_groups]

    def step(self) -> None:
        for part in self.parts:
            part.step()


class TorchMuonAndAdamW(Together):
    """torch.optim.Muon for matrices and torch.optim.AdamW for everything else."""

    def __init__(self, params: dict[str, Tensor], options: Options) -> None:
        shared: Options = {name: options[name] for name in ("lr", "weight_decay", "eps") if name in options}
        rest: Options = {name: options.pop(name) for name in ("betas",) if name in options}
        matrices = [param for name, param in params.items() if name in MATRICES]
        vectors = [param for name, param in params.items() if name not in MATRICES]
        super().__init__(
            torch_in_float64(torch.optim.Muon(matrices, **options)),
            torch.optim.AdamW(vectors, **{"eps": 1e-7, "betas": (0.9, 0.95), "weight_decay": 0.1, **shared, **rest}),
        )


def _torch(who: str, params: dict[str, Tensor], options: Options) -> Any:
    if not hasattr(torch.optim, "Muon"):
        raise peers.MissingPeer("torch.optim.Muon came with torch 2.9")
    return TorchMuonAndAdamW(params, options)


def _torch_in_bfloat16(who: str, params: dict[str, Tensor], options: Options) -> Any:
    if not hasattr(torch.optim, "Muon"):
        raise peers.MissingPeer("torch.optim.Muon came with torch 2.9")
    del options["ns_dtype"]
    return torch.optim.Muon(list(params.values()), **options)


def _as_ours(options: Options) -> Options:
    """Our options with our defaults, where timm has others."""
    ours = {"nesterov": True, "weight_decay": 0.1, "ns_coefficients": "original", "adjust_lr_fn": "original"}
    return {**ours, **options}


def _timm(who: str, params: dict[str, Tensor], options: Options) -> Any:
    matrices = [param for name, param in params.items() if name in MATRICES]
    vectors = [param for name, param in params.items() if name not in MATRICES]
    options.pop("fallback", None)
    groups = [{"params": matrices, "use_muon": True}, {"params": vectors, "use_muon": False}]
    return timm_in_float64(peers.load(who)(groups, **options))


class TranscribedAndAdamW(Together):
    """A transcription for matrices and torch.optim.AdamW for everything else.

    Args:
        cls: our class, whose defaults hold where a run gives no option.
        who, params, options: as a `Reference` has them.
    """

    def __init__(self, cls: Any, who: str, params: dict[str, Tensor], options: Options) -> None:
        options = {name: each.default for name, each in cls.hypers.items()} | options
        adamw = {name: options[name] for name in ("lr", "weight_decay", "betas")}
        matrices = {name: param for name, param in params.items() if name in MATRICES}
        vectors = [param for name, param in params.items() if name not in MATRICES]
        super().__init__(
            Peer(peers.load(who), matrices, options),
            torch.optim.AdamW(vectors, eps=options.get("adam_eps", options["eps"]), **adamw),
        )


def transcribed(cls: Any, runs: list[Options], **more: Any) -> Reference:
    """The transcription of a class's name, beside AdamW, as a reference; rounding goes through Newton-Schulz."""
    make = functools.partial(TranscribedAndAdamW, cls)
    return Reference(
        f"transcriptions.{cls.__name__}", runs, make=make, layouts=(*_FLAT, *_REST), tolerance=1e-9, **more
    )


MATRICES = ("matrix", "wide", "narrow", "transposed", "gaps", "expanded", "conv", "channels_last", "mixed", "conv_wide")
_FLAT = ("matrix", "wide", "narrow", "transposed", "gaps", "expanded")
_REST = ("scalar", "one", "vector", "row", "column")

MUON = Entry(
    "muon",
    hfoptim.Muon,
    counted=False,
    variants={
        # A vector alone is no case for Muon: that a parameter steps alike alone and among others has a test of its own.
        "decay": Variant({"weight_decay": 0.1}, complex=False, alone=False),
        "rms": Variant(
            {"adjust_lr_fn": "match_rms_adamw", "nesterov": False, "fallback": "nadamw", "weight_decay": 0.0},
            complex=False,
            alone=False,
        ),
        "caution": Variant({"caution": True, "weight_decay": 0.0}, complex=False, alone=False),
        "adamuon": Variant(
            {"algo": "adamuon", "adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.1}, complex=False, alone=False
        ),
        "normuon": Variant({"algo": "normuon", "weight_decay": 0.1}, complex=False, alone=False),
    },
    references=[
        Reference(
            "torch.optim.Muon",
            [
                *grid(lr=[1e-2], nesterov=[False, True], adjust_lr_fn=[None, "original", "match_rms_adamw"]),
                {"lr": 1e-2, "betas": (0.5, 0.9), "eps": 1e-3, "momentum": 0.5, "weight_decay": 0.0},
                {"lr": 1e-2, "ns_steps": 1, "ns_coefficients": (1.5, -0.5, 0.0), "weight_decay": 0.25},
            ],
            make=_torch,
            layouts=(*_FLAT, *_REST),
        ),
        # As it is: in bfloat16, where the order of its roundings decides a percent or two.
        Reference(
            "torch.optim.Muon",
            [{"lr": 1e-2, "ns_dtype": "bfloat16"}],
            make=_torch_in_bfloat16,
            dtype=torch.float32,
            layouts=("matrix", "wide", "transposed"),
            tolerance=0.03,
        ),
        Reference(
            "timm.optim.muon.Muon",
            [
                {"lr": 1e-2, "nesterov": False, **options}
                for options in (
                    *grid(adjust_lr_fn=["original", "match_rms_adamw", "rms_to_rms"]),
                    {"ns_coefficients": "quintic", "ns_steps": 3, "weight_decay": 0.0},
                    {"ns_coefficients": "polar_express", "ns_steps": 9, "safety_factor": 1.01},
                    {"ns_coefficients": "polar_express_safer"},
                    {"ns_coefficients": [(3.0, -3.0, 1.0), (1.5, -0.5, 0.0)], "betas": (0.5, 0.9)},
                    {"fallback_lr_scale": 0.1, "weight_decay": 0.25},
                )
            ],
            _as_ours,
            _timm,
            layouts=(*MATRICES, *_REST),
        ),
        # timm takes NAdamW for everything else where nesterov is on.
        Reference(
            "timm.optim.muon.Muon",
            [
                {"lr": 1e-2, "fallback": "nadamw", **options}
                for options in (
                    {"adjust_lr_fn": "match_rms_adamw", "betas": (0.5, 0.99)},
                    *grid(
                        algo=["adamuon"],
                        adjust_lr_fn=["match_rms_adamw", "rms_to_rms", "rsqrt_in"],
                        betas=[(0.5, 0.99)],
                    ),
                )
            ],
            _as_ours,
            _timm,
            layouts=(*MATRICES, *_REST),
        ),
        Reference(
            "transcriptions.NorMuon",
            grid(lr=[1e-2], algo=["normuon"], adjust_lr_fn=["original", "match_rms_adamw"], betas=[(0.9, 0.95)])
            + grid(lr=[1e-2], algo=["normuon"], betas=[(0.9, 0.5)], momentum=[0.5], weight_decay=[0.25]),
            make=functools.partial(TranscribedAndAdamW, hfoptim.Muon),
            layouts=(*_FLAT, *_REST),
            tolerance=1e-9,
        ),
        Reference(
            "transcriptions.TurboMuon",
            [{"lr": 1e-2, "ns_coefficients": "turbo", "ns_steps": 4, "weight_decay": 0.25}],
            make=functools.partial(TranscribedAndAdamW, hfoptim.Muon),
            layouts=(*_FLAT, *_REST),
            tolerance=1e-9,
        ),
    ],
    numbers={
        "lr": -1e-3,
        "weight_decay": -0.1,
        "momentum": 1.0,
        "eps": -1e-8,
        "ns_steps": 0,
        "fallback_lr_scale": -1.0,
        "safety_factor": -1.0,
    },
    small_steps={"lr": 1e-4, "momentum": 0.9},
)
