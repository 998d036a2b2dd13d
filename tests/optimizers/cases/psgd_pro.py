from __future__ import annotations

from typing import Any

import numpy as np
import torch

import hfoptim
from cases.entry import Entry, Options, Variant
from cases.transcribed import Peer, transcription
from hfoptim.engine import storage
from hfoptim.optimizers.shared import psgd


def _drawn(shape: tuple[int, ...], seed: int) -> Any:
    return storage.normal(shape, seed, torch.float64, torch.device("cpu")).numpy()


def _noise(t: int, place: int, shape: tuple[int, ...]) -> Any:
    return _drawn(shape, storage.row_seed(t, place))


def _vectors(n: int) -> Any:
    return np.asarray(_drawn((psgd.VECTORS, n), psgd.SUBSPACE))


def _peer(written: Any, params: Any, options: Options) -> Peer:
    """The transcription, with our draws."""
    return Peer(written, params, {**options, "noise": _noise, "vectors": _vectors})


PSGD_PRO = Entry(
    "psgd_pro",
    hfoptim.PSGDPro,
    variants={"decay": Variant({"weight_decay": 0.1}, lr=1e-3, complex=False, alone=False, traceable=False)},
    references=[
        transcription(
            hfoptim.PSGDPro,
            [
                {"lr": 1e-2, "preconditioner_max_skew": None, "preconditioner_max_size": 5, "warmup_steps": 10},
                {
                    "lr": 1e-2,
                    "momentum": 0.5,
                    "damping_noise_scale": 0.1,
                    "precond_init_scale": 0.5,
                    "max_update_rms": 0.5,
                    "beta_lip": 0.5,
                    "precond_lr": 0.5,
                    "min_precond_lr": 0.3,
                    "weight_decay": 0.25,
                },
            ],
            _peer,
            tolerance=1e-8,
        )
    ],
    numbers={
        "lr": -1e-3,
        "weight_decay": -0.1,
        "momentum": 1.0,
        "beta_lip": 1.5,
        "precond_lr": -0.1,
        "precond_init_scale": -1.0,
        "damping_noise_scale": -0.1,
        "min_precond_lr": -0.1,
        "warmup_steps": 0,
        "max_update_rms": -1.0,
        "preconditioner_max_size": -1.0,
        "preconditioner_max_skew": -1.0,
    },
)
