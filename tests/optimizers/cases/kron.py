from __future__ import annotations

from random import Random
from typing import Any
from unittest import mock

import peers
import torch
from torch import Tensor

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid
from hfoptim.engine import storage


def _solved(rows: Tensor, triangular: Tensor) -> Tensor:
    return torch.linalg.solve(triangular.mT, rows.reshape(-1, rows.shape[-1]).mT).mT.reshape(rows.shape)


class _Answers:
    """A generator that gives the numbers in a list, one after another."""

    def __init__(self, answers: list[float]) -> None:
        self.answers = iter(answers)

    def random(self) -> float:
        return next(self.answers)


class _Peer:
    """timm's Kron with our draws, uncompiled, and with what it solves in float32 solved in double precision."""

    def __init__(self, who: str, params: dict[str, Tensor], options: Options) -> None:
        self.module: Any = peers.submodule("timm.optim.kron")
        self.balance_prob = options.pop("balance_prob", 0.01)
        with (
            mock.patch.object(self.module, "has_dynamo", False),
            mock.patch.object(self.module, "has_opt_einsum", True),
        ):
            self.optimizer = peers.load(who)(list(params.values()), **options)
        self.param_groups = self.optimizer.param_groups
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        (group,) = self.param_groups
        ours = Random(self.steps)
        numbers = [0.0 if ours.random() < self.balance_prob else 1.0]
        if group["weight_decay"] and group["stochastic_weight_decay"]:
            numbers.append(ours.random())
        self.optimizer.rng = _Answers(numbers * len(group["params"]))
        places = iter(range(len(group["params"])))

        def drawn(shape: Any, *, generator: None, dtype: torch.dtype, device: torch.device) -> Tensor:
            return storage.normal(shape, storage.row_seed(self.steps, next(places)), dtype, device)

        with (
            mock.patch.object(torch, "randn", drawn),
            mock.patch.object(self.module, "_solve_triangular_right", _solved),
        ):
            self.optimizer.step()


_RUNS: list[Options] = [
    {"balance_prob": 0.5, "weight_decay": 0.25},
    {"momentum": 0.5, "momentum_into_precond_update": False, "precond_lr": 0.3, "balance_prob": 0.2},
    {"memory_save_mode": "one_diag", "precond_init_scale": 2.0},
    {"memory_save_mode": "smart_one_diag", "preconditioner_update_probability": 0.3, "momentum": 0.0},
    {"memory_save_mode": "all_diag", "min_ndim_triangular": 1},
    {"min_ndim_triangular": 1, "max_size_triangular": 5, "flatten": True},
    {
        "decoupled_decay": True,
        "corrected_weight_decay": True,
        "weight_decay": 0.25,
        "stochastic_weight_decay": True,
    },
    *grid(flatten=[True], flatten_start_dim=[0, 1], flatten_end_dim=[-2, 2]),
]

KRON = Entry(
    "kron",
    hfoptim.Kron,
    variants={
        "decay": Variant(
            {"weight_decay": 0.1, "balance_prob": 0.5}, lr=1e-3, complex=False, alone=False, traceable=False
        ),
        "diagonal": Variant(
            {
                "memory_save_mode": "all_diag",
                "momentum_into_precond_update": False,
                "preconditioner_update_probability": 0.5,
                "flatten": True,
                "weight_decay": 0.0,
            },
            lr=1e-3,
            complex=False,
            alone=False,
            traceable=False,
        ),
    },
    references=[
        Reference(
            "timm.optim.kron.Kron",
            [{"lr": 1e-2, **each} for each in _RUNS],
            make=_Peer,
        ),
    ],
    numbers={
        "lr": -1e-3,
        "momentum": 1.0,
        "weight_decay": -0.1,
        "preconditioner_update_probability": -0.5,
        "max_size_triangular": -1.0,
        "min_ndim_triangular": -1,
        "flatten_start_dim": -65,
        "flatten_end_dim": -65,
        "precond_lr": -0.1,
        "precond_init_scale": -1.0,
        "balance_prob": 1.5,
    },
    small_steps={"lr": 1e-4},
)
