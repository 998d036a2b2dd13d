from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from unittest import mock

import peers
import torch
from torch import Tensor

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid
from cases.muon import InFloat64
from hfoptim.engine import storage

# Without "expanded": of a gradient of equal rows most singular vectors are as good as any others.
_MATRICES = ("matrix", "wide", "narrow", "transposed", "gaps")
_REST = ("scalar", "one", "vector")
_OF_GROUPS = ("rank", "update_proj_gap", "proj_type", "scale", "alpha", "proj", "scale_type")


def _in_float64(projector: Any) -> Any:
    """A peer's projector that takes singular vectors in the dtype of the gradient, there in float32."""

    class Projector(projector):  # type: ignore[misc]
        def get_orthogonal_matrix(self, weights: Tensor, rank: int, type: str) -> Any:
            left, _, right = torch.linalg.svd(weights, full_matrices=False)
            found = {"left": left[:, :rank], "right": right[:rank]}
            return [*found.values()] if type == "full" else found[type]

    return Projector


def _groups(params: dict[str, Tensor], options: Options) -> list[Options]:
    """What of the options is of matrices' groups, taken out of them."""
    of_matrices = {name: options.pop(name) for name in _OF_GROUPS if name in options}
    return [
        {"params": [param for name, param in params.items() if name in _MATRICES], **of_matrices},
        {"params": [param for name, param in params.items() if name not in _MATRICES]},
    ]


def _galore(who: str, params: dict[str, Tensor], options: Options) -> Any:
    module = peers.submodule(who.rpartition(".")[0])
    groups = _groups(params, options)
    if who.endswith("AdamW"):
        options["no_deprecation_warning"] = True
    peer = getattr(module, who.rpartition(".")[2])(groups, **options)
    return InFloat64(peer, mock.patch.object(module, "GaLoreProjector", _in_float64(module.GaLoreProjector)))


def _apollo(who: str, params: dict[str, Tensor], options: Options) -> Any:
    """The author's class with our random numbers."""
    module = peers.submodule(who.rpartition(".")[0])

    class Projector(module.GradientProjector):  # type: ignore[misc, name-defined]
        seed: int
        ordinal: int

        def project(self, grad: Tensor, taken: int) -> Tensor:
            self.taken = taken
            projected: Tensor = super().project(grad, taken)
            return projected

        def get_orthogonal_matrix(self, weights: Tensor, rank: int, type: str, seed: int) -> Tensor:
            shape = (len(weights), rank) if type == "left" else (rank, weights.shape[1])
            first, later = storage.row_seed(0, self.ordinal), storage.drawing_seed(self.taken + 1, self.ordinal)
            return storage.normal(shape, later if self.taken else first, weights.dtype, weights.device) / math.sqrt(
                rank
            )

        def update_ortho_matrix(self, grad: Tensor, proj_type: str) -> None:
            self.ordinal, self.seed = getattr(self, "ordinal", self.seed), 0
            super().update_ortho_matrix(grad, proj_type)

    peer = getattr(module, who.rpartition(".")[2])(_groups(params, options), **options)
    for place, param in enumerate(params.values()):
        peer.state[param]["seed"] = place
    svd = mock.patch.object(module, "GaLoreProjector", _in_float64(module.GaLoreProjector))
    return InFloat64(InFloat64(peer, svd), mock.patch.object(module, "GradientProjector", Projector))


def _fira(who: str, params: dict[str, Tensor], options: Options) -> Any:
    """pytorch_optimizer's class, with a projector that counts steps from 0 and takes singular vectors in float64."""
    import pytorch_optimizer.optimizer.fira as module

    class Projector(module.GaLoreProjector):
        def project(self, grad: Tensor, num_steps: int, *args: Any, **given: Any) -> Tensor:
            return super().project(grad, num_steps - 1, *args, **given)

        def get_orthogonal_matrix(self, weights: Tensor, projection_type: str, *args: Any, **given: Any) -> Any:
            left, _, right = torch.linalg.svd(weights, full_matrices=False)
            return left[:, : self.rank] if projection_type == "left" else right[: self.rank]

    groups = _groups(params, options)
    groups[0]["projection_type"] = groups[0].pop("proj_type", "std")
    groups[0]["scale"] = groups[0].pop("alpha")
    peer = peers.load(who)(groups, **options, foreach=False)
    return InFloat64(peer, mock.patch.object(module, "GaLoreProjector", Projector))


def _variants(*options: Options, names: Sequence[str] = ("projected", "other")) -> dict[str, Variant]:
    """The rank is below the sides of the matrices there, and renewed within few steps. A vector alone is no case."""
    return {
        name: Variant(
            {"rank": 2, "update_proj_gap": 3, **each},
            lr=1e-3,
            complex=False,
            alone=False,
            linear=False,
            traceable=False,
        )
        for name, each in zip(names, options, strict=True)
    }


_NUMBERS = {"lr": -1e-3, "weight_decay": -0.1, "rank": 0, "update_proj_gap": 0}
_TYPES = ["std", "reverse_std", "right", "left", "full"]
_SMALL = {"lr": 1e-4, "weight_decay": 0.1, "rank": 2}

GALORE_ADAMW = Entry(
    "galore_adamw",
    hfoptim.GaLoreAdamW,
    variants=_variants({"weight_decay": 0.1}, {"proj_type": "full"}),
    references=[
        Reference(
            "galore_torch.adamw.AdamW",
            [
                *grid(lr=[1e-2], rank=[2], update_proj_gap=[4], scale=[0.5], proj_type=_TYPES, weight_decay=[0.1]),
                {"lr": 1e-2, "rank": 1, "update_proj_gap": 9, "scale": 1.0, "proj_type": "std", "correct_bias": False},
            ],
            make=_galore,
            layouts=(*_MATRICES, *_REST),
        ),
    ],
    numbers={**_NUMBERS, "eps": -1e-8, "max_lr": -1.0, "scale": -1.0},
    small_steps=_SMALL,
)

GALORE_ADAFACTOR = Entry(
    "galore_adafactor",
    hfoptim.GaLoreAdafactor,
    variants=_variants(
        {"lr": 1e-3, "relative_step": False, "weight_decay": 0.1},
        {"lr": 1e-3, "relative_step": False, "scale_parameter": False, "beta1": 0.9},
    ),
    references=[
        Reference(
            "galore_torch.adafactor.Adafactor",
            [
                {"lr": 1e-2, "relative_step": False, "rank": 2, "update_proj_gap": 4, "scale": 0.5, **each}
                for each in (
                    {"proj_type": "std", "weight_decay": 0.1},
                    {"proj_type": "reverse_std", "beta1": 0.9},
                    {"proj_type": "full", "scale_parameter": False},
                )
            ],
            make=_galore,
            layouts=(*_MATRICES, *_REST),
        ),
    ],
    numbers={
        **_NUMBERS,
        "scale": -1.0,
        "clip_threshold": -1.0,
        "decay_rate": 0.5,
        "beta1": 1.0,
        "eps_scale": -1.0,
        "min_dim_size_to_factor": -1,
    },
    small_steps={**_SMALL, "relative_step": False},
)

APOLLO_ADAMW = Entry(
    "apollo_adamw",
    hfoptim.APOLLOAdamW,
    variants=_variants({"weight_decay": 0.1}, {"scale_type": "tensor", "proj": "svd", "disable_nl": True}),
    references=[
        Reference(
            "apollo_torch.apollo.AdamW",
            [
                {"lr": 1e-3, "rank": 2, "update_proj_gap": 4, "scale": 2.0, "proj_type": "std", **each}
                for each in (
                    {"scale_type": "channel", "proj": "random", "weight_decay": 0.1},
                    {"scale_type": "tensor", "proj": "random", "rank": 1, "scale": 128.0, "scale_front": True},
                    {"scale_type": "channel", "proj": "svd", "disable_nl": True},
                )
            ],
            make=_apollo,
            layouts=(*_MATRICES, *_REST),
        ),
    ],
    numbers={**_NUMBERS, "eps": -1e-8, "max_lr": -1.0, "scale": -1.0},
    small_steps=_SMALL,
)

FIRA = Entry(
    "fira",
    hfoptim.FiraAdamW,
    variants=_variants({"weight_decay": 0.1}, names=("projected",)),
    references=[
        Reference(
            "pytorch_optimizer.Fira",
            grid(lr=[1e-3], rank=[2], update_proj_gap=[4], alpha=[0.5, 1.0], weight_decay=[0.1], proj_type=_TYPES[:4]),
            make=_fira,
            layouts=(*_MATRICES, *_REST),
        ),
    ],
    numbers={**_NUMBERS, "eps": -1e-8, "max_lr": -1.0, "alpha": -1.0},
    small_steps=_SMALL,
)
