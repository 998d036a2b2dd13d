from __future__ import annotations

from typing import Any

import numpy as np
import peers
import torch
from harness import SMALL
from torch import Tensor

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid
from cases.transcribed import transcription
from hfoptim.optimizers.shared import kronecker

# Without the one whose gradients are of rank 1 at every step, and rounding in all other directions.
_LAYOUTS = tuple(name for name in SMALL if name != "expanded")


def _from_the_first_step(who: str, params: dict[str, Tensor], options: Options) -> Any:
    """pytorch_optimizer's, which makes its first roots at the first step."""
    optimizer = peers.load(who)(list(params.values()), **options)
    for group in optimizer.param_groups:
        group["step"] = -1
    return optimizer


# An epsilon that counts for nothing: theirs is added before the bias of L and R would be corrected.
_DASH: Options = {
    "epsilon": 1e-200,
    "max_preconditioner_dim": 4,
    "precondition_frequency": 10,
    "start_preconditioning_step": 1,
    "grafting": "adam",
    "grafting_beta2": 0.9,
    "grafting_epsilon": 1e-8,
    "root_method": "newton_db",
}
_DASH_NAMES = {
    "epsilon": "matrix_eps",
    "max_preconditioner_dim": "block_size",
    "grafting_beta2": "grafting_beta",
    "grafting_epsilon": "eps",
    "root_method": "inverse_root_method",
}


def _in_eigenvalues(matrix: Tensor, root: int, degree: int) -> Tensor:
    """Chebyshev's root from eigenvalues, with coefficients by NumPy's Fourier transform of 10,000 points."""
    values, vectors = torch.linalg.eigh(matrix)
    bound = kronecker.eigenvalue_bound(matrix)[..., 0]
    points, eps = 10_000, _DASH["epsilon"]
    samples = (0.5 * np.cos((np.arange(points) + 0.5) * np.pi / points) + 0.5 + eps) ** (-1.0 / root)
    transformed = np.fft.fft(np.concatenate([samples, samples[::-1]]))[: degree + 1]
    series = (transformed * np.exp(-0.5j * np.pi * np.arange(degree + 1) / points)).real / points
    series[0] /= 2.0
    of_values = np.polynomial.chebyshev.chebval((2.0 * values / bound - 1.0).numpy(), series)
    rooted = torch.from_numpy(of_values) * bound ** (-1.0 / root)
    return (vectors * rooted.unsqueeze(-2)) @ vectors.mT


def _dash(who: str, params: dict[str, Tensor], options: Options) -> Any:
    """pytorch_optimizer's, with our bound of the eigenvalues in place of one from random vectors."""
    degree = options.get("chebyshev_degree")
    ours = ("grafting", "chebyshev_degree", *(["root_method"] if degree else []))
    named = {_DASH_NAMES.get(name, name): value for name, value in options.items() if name not in ours}
    optimizer = peers.load(who)(list(params.values()), **named)
    if degree:
        optimizer.compute_inverse_root = lambda matrix, root, group: _in_eigenvalues(matrix, root, degree)
    optimizer.scale_matrix = lambda matrix, group: kronecker.eigenvalue_bound(matrix)
    return optimizer


SHAMPOO = Entry(
    "shampoo",
    hfoptim.Shampoo,
    variants={
        # How a product is rounded depends on where its matrices lie in memory, and so on what is stacked with them.
        "decay": Variant({"weight_decay": 0.1, "momentum": 0.9}, complex=False, alone=False, traceable=False),
        "decoupled": Variant(
            {"weight_decay": 0.1, "weight_decouple": True, "preconditioning_compute_steps": 2},
            complex=False,
            alone=False,
            traceable=False,
        ),
    },
    references=[
        Reference(
            "pytorch_optimizer.Shampoo",
            [
                {"lr": 1e-2, "matrix_eps": 1e-2, **more}
                for more in (
                    *grid(momentum=[0.0, 0.9], weight_decay=[0.0, 0.1]),
                    {"preconditioning_compute_steps": 3, "weight_decay": 0.1, "weight_decouple": True},
                    {"momentum": 0.5, "weight_decay": 0.01, "weight_decouple": True, "fixed_decay": True},
                )
            ],
            make=_from_the_first_step,
            layouts=_LAYOUTS,
        )
    ],
    numbers={
        "lr": -1e-3,
        "momentum": 1.0,
        "weight_decay": -0.1,
        "preconditioning_compute_steps": 0,
        "matrix_eps": -1e-6,
    },
)

DISTRIBUTED_SHAMPOO = Entry(
    "distributed_shampoo",
    hfoptim.DistributedShampoo,
    variants={
        "adam": Variant(
            {
                "grafting": "adam",
                "betas": (0.9, 0.99),
                "precondition_frequency": 2,
                "max_preconditioner_dim": 12,
                "weight_decay": 0.1,
                # Where a gradient has rows of zeros, roots of the default's 1e-12 make rounding large.
                "epsilon": 1e-4,
            },
            complex=False,
            alone=False,
            traceable=False,
        ),
        "dash": Variant(
            {
                "grafting": "adam",
                "betas": (0.9, 0.95),
                "max_preconditioner_dim": 24,
                "root_method": "newton_db",
                "weight_decay": 0.1,
            },
            complex=False,
            alone=False,
            traceable=False,
        ),
        "plain": Variant({"epsilon": 1e-2, "max_preconditioner_dim": 24}, complex=False, alone=False, traceable=False),
    },
    references=[
        transcription(
            hfoptim.DistributedShampoo,
            [
                {"lr": 1e-2, "epsilon": 1e-2, **more}
                for more in (
                    {"max_preconditioner_dim": 4, "betas": (0.9, 0.99), "weight_decay": 0.1},
                    {"grafting": "adam", "precondition_frequency": 3, "betas": (0.9, 0.99), "grafting_beta2": 0.9},
                    {
                        "grafting": "rmsprop",
                        "start_preconditioning_step": 5,
                        "precondition_frequency": 2,
                        "use_bias_correction": False,
                        "betas": (0.0, 0.9),
                    },
                    {"grafting": "sgd", "beta3": 0.8, "max_preconditioner_dim": 7},
                    {"grafting": "adagrad", "max_preconditioner_dim": 5, "grafting_epsilon": 1e-3},
                )
            ],
            layouts=_LAYOUTS,
        ),
        Reference(
            "pytorch_optimizer.DASH",
            [
                {"lr": 1e-2, **_DASH, "betas": (0.9, 0.95), "grafting_beta2": 0.95, "weight_decay": 0.1},
                {"lr": 1e-2, **_DASH, "betas": (0.0, 0.9), "newton_steps": 4, "start_preconditioning_step": 4},
                {"lr": 1e-2, **_DASH, "betas": (0.9, 0.95), "root_method": "chebyshev", "chebyshev_degree": 12},
            ],
            make=_dash,
            layouts=tuple(name for name in _LAYOUTS if name != "scalar"),
        ),
    ],
    numbers={
        "lr": -1e-3,
        "beta3": 1.0,
        "epsilon": -1e-6,
        "weight_decay": -0.1,
        "max_preconditioner_dim": 0,
        "precondition_frequency": 0,
        "start_preconditioning_step": -2,
        "grafting_beta2": 1.0,
        "grafting_epsilon": -1e-8,
        "newton_steps": 0,
        "chebyshev_degree": 1,
    },
    small_steps={"lr": 1e-4, "weight_decay": 0.1, "epsilon": 1e-2},
)
