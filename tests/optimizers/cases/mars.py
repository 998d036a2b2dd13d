from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import peers
import torch
from torch import Tensor

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid


def _amsgrad(who: str, params: dict[str, Tensor], options: Options) -> Any:
    """pytorch_optimizer's with the paper's first step, and nothing added under the root."""

    class Peer(peers.load(who)):  # type: ignore[misc]
        @staticmethod
        def apply_ams_bound(ams_bound: bool, exp_avg_sq: Tensor, largest: Tensor, eps: float) -> Tensor:
            return torch.maximum(largest, exp_avg_sq, out=largest).sqrt()

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                if "step" not in group:
                    self.init_group(group)
                    for param in group["params"]:
                        self.state[param]["last_grad"].copy_(param.grad)
            return super().step(closure)

    renamed = {"amsgrad": "ams_bound"}
    return Peer(
        list(params.values()), **{renamed.get(n, n): value for n, value in options.items()}, foreach=False, lr_1d=1e-2
    )


def _shampoo(who: str, params: dict[str, Tensor], options: Options) -> Any:
    """pytorch_optimizer's with the paper's first step, and Newton-Schulz in double precision."""

    class Peer(peers.load(who)):  # type: ignore[misc]
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            module: Any = import_module(type(self).__mro__[1].__module__)
            kept = module.zero_power_via_newton_schulz_5
            for group in self.param_groups:
                if "step" not in group:
                    self.init_group(group)
                    for param in group["params"]:
                        self.state[param]["last_grad"].copy_(param.grad)
            module.zero_power_via_newton_schulz_5 = partial(kept, dtype=torch.float64)
            try:
                return super().step(closure)
            finally:
                module.zero_power_via_newton_schulz_5 = kept

    return Peer(list(params.values()), **options)


_1D = {"lr_1d_factor": [0.5], "betas_1d": [(0.8, 0.95)]}

MARS = Entry(
    "mars",
    hfoptim.Mars,
    variants={
        "adamw": Variant({"weight_decay": 0.1, "gamma": 0.5}, complex=False, compiled=True),
        "amsgrad": Variant({"weight_decay": 0.1, "amsgrad": True}, complex=False),
        "lion": Variant({"mars_type": "lion", "optimize_1d": True}, lr=1e-3, complex=False),
        "shampoo": Variant({"mars_type": "shampoo", "weight_decay": 0.1}, complex=False, traceable=False),
    },
    references=[
        Reference(
            "timm.optim.mars.Mars",
            grid(lr=[1e-2], mars_type=["adamw", "lion"], gamma=[0.025], weight_decay=[0.0, 0.25], optimize_1d=[True])
            + grid(lr=[1e-2], gamma=[0.5], caution=[False, True], optimize_1d=[False], **_1D)
            + grid(lr=[1e-2], betas=[(0.5, 0.0), (0.0, 0.9)], eps=[1e-2], weight_decay=[0.25]),
        ),
        # Its vectors decay by 0.1.
        Reference(
            "pytorch_optimizer.MARS",
            grid(lr=[1e-2], betas=[(0.9, 0.9)], betas_1d=[(0.8, 0.9)], amsgrad=[True], eps=[0.0], weight_decay=[0.1]),
            make=_amsgrad,
        ),
        Reference(
            "pytorch_optimizer.MARS",
            grid(lr=[1e-2], betas=[(0.9, 0.99)], mars_type=["shampoo"], weight_decay=[0.0, 0.25], gamma=[0.025, 0.3]),
            make=_shampoo,
            layouts=("matrix", "row", "transposed", "wide"),
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1, "gamma": -0.1, "lr_1d_factor": -1.0},
)
