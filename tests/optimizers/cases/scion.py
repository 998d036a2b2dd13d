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
from cases.muon import InFloat64

_NUMBERS = {"Auto": 1, "Spectral": 2, "SpectralConv": 3, "Sign": 4, "BiasRMS": 5, "ColNorm": 6, "RowNorm": 7}
_NAMED = {"normalized": "normalize", "max": "max_scale"}


class _LightPeer(InFloat64):
    """pytorch_optimizer's SCIONLight, whose sum lies in the gradients: it is put there anew for every step."""

    def __init__(self, optimizer: Any, patch: Any) -> None:
        super().__init__(optimizer, patch)
        self.kept: dict[Tensor, Tensor] = {}

    def step(self) -> None:
        params = [param for group in self.param_groups for param in group["params"] if param.grad is not None]
        fresh = {param: param.grad for param in params}
        for param in params:
            param.grad = fresh[param].clone() + self.kept.get(param, 0.0)
        super().step()
        if self.param_groups[0]["momentum"] < 1.0:  # else it leaves the gradients whole, to be zeroed by their owner
            self.kept |= {param: param.grad for param in params}
        for param in params:
            param.grad = fresh[param]


def _peer(who: str, params: dict[str, Tensor], options: Options) -> Any:
    norm = options.pop("norm_type", "Auto")
    options["norm_type"] = _NUMBERS[norm]
    if norm.startswith("Spectral"):
        given = options.get("norm_kwargs", {})
        options["norm_kwargs"] = {_NAMED[name]: value for name, value in given.items()}
    if norm == "Sign" and "norm_kwargs" in options:
        options["norm_kwargs"] = {"normalize": options["norm_kwargs"]["normalized"]}
    options["constraint"] = not options.pop("unconstrained", False)
    module: Any = import_module(peers.load(who).__module__)
    iterate = functools.partial(module.zero_power_via_newton_schulz_5, dtype=torch.float64)
    patch = mock.patch.object(module, "zero_power_via_newton_schulz_5", iterate)
    peer = peers.load(who)(list(params.values()), **{"momentum": 1.0, "foreach": False, **options})
    return (_LightPeer if who.endswith("Light") else InFloat64)(peer, patch)


_FLAT = ("matrix", "row", "column", "transposed", "gaps", "expanded")
_REST = ("scalar", "one", "vector")
_CONV = ("conv", "channels_last", "mixed")


def _references(who: str) -> list[Reference]:
    auto = [
        {"lr": 1e-2, "momentum": 0.1},
        {"lr": 1e-2, "unconstrained": True, "scale": 3.0, "weight_decay": 0.1},
        {"lr": 1e-2, "momentum": 0.3, **({"maximize": True} if who.endswith("SCION") else {})},
    ]
    flat = [
        {"lr": 1e-2, "momentum": 0.1, "norm_type": norm, **({"norm_kwargs": kwargs} if kwargs else {})}
        for norm, kwargs in (
            ("Sign", None),
            ("Sign", {"normalized": False}),
            ("Spectral", {"max": True}),
            ("Spectral", {"normalized": False}),
            ("ColNorm", None),
            ("ColNorm", {"normalized": True, "transpose": True}),
            ("RowNorm", None),
            ("RowNorm", {"normalized": False, "transpose": True}),
        )
    ]
    return [
        # It takes a row for a matrix.
        Reference(who, auto, make=_peer, layouts=(*_FLAT[3:], "matrix", *_REST, *_CONV)),
        Reference(who, flat if who.endswith("SCION") else flat[:1], make=_peer, layouts=_FLAT),
        Reference(who, grid(lr=[1e-2], norm_type=["BiasRMS"]), make=_peer, layouts=("one", "vector")),
    ]


_NUMBER_RANGES: Options = {
    "lr": -1e-3,
    "momentum": -0.1,
    "scale": -1.0,
    "weight_decay": -0.1,
    "ns_steps": 0,
    "safety_factor": -1.0,
}

SCION = Entry(
    "scion",
    hfoptim.Scion,
    variants={
        "constrained": Variant({"momentum": 0.1}, complex=False),
        "rows": Variant(
            {"momentum": 0.1, "norm_type": "RowNorm", "unconstrained": True, "weight_decay": 0.1}, complex=False
        ),
    },
    references=_references("pytorch_optimizer.SCION"),
    numbers=_NUMBER_RANGES,
    small_steps={"lr": 1e-4, "momentum": 0.1, "unconstrained": True},
)

SCION_LIGHT = Entry(
    "scionlight",
    hfoptim.ScionLight,
    # Matrices of one shape are stacked, and a product of several may be rounded otherwise than that of one.
    variants={"constrained": Variant({"momentum": 0.1}, complex=False, alone=False)},
    references=_references("pytorch_optimizer.SCIONLight"),
    numbers=_NUMBER_RANGES,
    small_steps={"lr": 1e-4, "momentum": 0.1, "unconstrained": True},
)
