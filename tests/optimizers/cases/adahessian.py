from __future__ import annotations

from dataclasses import replace
from typing import Any

import peers
import torch
from torch import Tensor

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid


def curvature(param: Tensor) -> Tensor:
    """In place of the Hessian's diagonal: the harness makes gradients without a graph. Never near 0."""
    wide = param.detach().to(torch.promote_types(param.dtype, torch.float32))
    return (1.5 + (3.0 * wide).cos()).copysign(wide)


class Curved(hfoptim.Adahessian):
    """Adahessian with a Hessian that depends on the parameter alone; test_adahessian.py has the true one."""

    curvature = replace(
        hfoptim.Adahessian.curvature, estimate=lambda due, step: [curvature(param) for _, param, _ in due]
    )


def curved(who: str, params: dict[str, Tensor], options: Options) -> Any:
    """timm's with the same Hessian."""

    class Peer(peers.load(who)):  # type: ignore[misc]
        def zero_hessian(self) -> None:
            pass

        def set_hessian(self) -> None:
            for param in self.get_params():
                if self.state[param]["hessian step"] % self.update_each == 0:
                    param.hess = curvature(param)
                self.state[param]["hessian step"] += 1

    return Peer(list(params.values()), **options)


ADAHESSIAN = Entry(
    "adahessian",
    Curved,
    variants={
        "decay": Variant({"weight_decay": 0.1}, complex=False, compiled=True),
        "conv": Variant({"avg_conv_kernel": True, "hessian_power": 0.5, "update_each": 3}, complex=False),
    },
    references=[
        Reference(
            "timm.optim.adahessian.Adahessian",
            [
                *grid(lr=[1e-2], betas=[(0.9, 0.999), (0.5, 0.0), (0.0, 0.9)], weight_decay=[0.0, 0.25]),
                *grid(lr=[1e-2], hessian_power=[0.0, 0.3], eps=[1e-8, 1e-2], weight_decay=[0.0, 0.25]),
                *grid(lr=[1e-2], avg_conv_kernel=[True, False], update_each=[1, 3]),
            ],
            make=curved,
        ),
    ],
    numbers={
        "lr": -1e-3,
        "eps": -1e-8,
        "weight_decay": -0.1,
        "hessian_power": 1.5,
        "update_each": 0,
        "n_samples": 0,
    },
)
