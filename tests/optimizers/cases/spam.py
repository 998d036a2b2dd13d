from __future__ import annotations

import math
from typing import Any

import peers
import torch
from torch import Tensor

import hfoptim
from cases.entry import BETAS, Entry, Options, Reference, Variant, grid
from hfoptim.engine import storage


class _Cosine:
    """The authors' cosine, which pytorch_optimizer steps in another way."""

    def __init__(self, start: float, length: int, least: float) -> None:
        self.start, self.length, self.least = start, length, least

    def get_death_rate(self, step: int) -> float:
        if step >= self.length:
            return self.least
        angle = math.pi * step / (self.length + 1)
        return self.least + (self.start - self.least) * (1.0 + math.cos(angle)) / 2.0


def _with_the_cosine(who: str, params: dict[str, Tensor], options: Options) -> Any:
    stable = who.endswith("StableSPAM")
    length = options.get("t_max") if stable else options.get("warmup_epoch", 150)

    class Peer(peers.load(who)):  # type: ignore[misc]
        @property
        def warmup(self) -> Any:
            if length is None:
                return None
            return _Cosine(1.0, length, options.get("eta_min", 0.5)) if stable else _Cosine(0.99, length, 0.0)

        @warmup.setter
        def warmup(self, value: Any) -> None:
            pass

    return Peer(list(params.values()), **options)


def _with_the_masks(who: str, params: dict[str, Tensor], options: Options) -> Any:
    """The peer with the masks that ours draws: for 2-D parameters, those before the first reset and later ones."""
    peer = _with_the_cosine(who, params, options)
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    chosen = float(normal.icdf(torch.tensor(options["density"], dtype=torch.float64)))
    places = {param: place for place, param in enumerate(params.values())}

    def mask(param: Tensor, step: int) -> Tensor:
        seed = storage.drawing_seed(step, places[param]) if step else storage.row_seed(0, places[param])
        return storage.normal(param.shape, seed, torch.float64, torch.device("cpu")) < chosen

    for param in params.values():
        if param.ndim == 2:
            peer.state[param]["mask"] = mask(param, 0)
    # Its moments are set to 0 at every reset, which is when it draws.
    peer.update_masks = lambda: [
        peer.state[param].update(mask=mask(param, peer.state["total_step"] + 1))
        for param in params.values()
        if param.ndim == 2
    ]
    return peer


def _spam(options: Options) -> Options:
    out = {name: value for name, value in options.items() if name != "warmup_steps"}
    return {**out, "warmup_epoch": options.get("warmup_steps", 150)}


_SHORT = {"lr": [1e-2], "update_proj_gap": [12], "warmup_steps": [5], "grad_accu_steps": [3]}

SPAM = Entry(
    "spam",
    hfoptim.SPAM,
    variants={
        "resets": Variant(
            {"update_proj_gap": 4, "warmup_steps": 3, "grad_accu_steps": 2, "threshold": 2.0, "weight_decay": 0.1},
            compiled=True,
        ),
        "sparse": Variant(
            {"update_proj_gap": 4, "warmup_steps": 3, "grad_accu_steps": 2, "density": 0.3, "weight_decay": 0.1},
            complex=False,
            alone=False,
        ),
    },
    references=[
        Reference(
            "pytorch_optimizer.SPAM",
            grid(**_SHORT, threshold=[2], weight_decay=[0.25], density=[0.3, 0.9]),
            _spam,
            make=_with_the_masks,
        ),
        Reference(
            "pytorch_optimizer.SPAM",
            grid(**_SHORT, betas=BETAS, weight_decay=[0.25])
            + grid(**_SHORT, threshold=[2, 0], eps=[1e-3], weight_decay=[0.0, 0.1]),
            _spam,
            make=_with_the_cosine,
        ),
    ],
    numbers={
        "lr": -1e-3,
        "eps": -1e-8,
        "weight_decay": -0.1,
        "warmup_steps": -1,
        "threshold": -1.0,
        "density": 1.5,
        "update_proj_gap": 0,
        "grad_accu_steps": -1,
    },
)

STABLE_SPAM = Entry(
    "stablespam",
    hfoptim.StableSPAM,
    variants={
        "resets": Variant({"update_proj_gap": 4, "t_max": 6, "weight_decay": 0.1}, complex=False, compiled=True),
    },
    references=[
        Reference(
            "pytorch_optimizer.StableSPAM",
            grid(lr=[1e-2], update_proj_gap=[12], t_max=[None, 20], weight_decay=[0.0, 0.25])
            + grid(
                lr=[1e-2], betas=[(0.5, 0.9)], gamma1=[-1.0, 0.3], gamma2=[0.5], theta=[0.9], eps=[1e-3], t_max=[40]
            ),
            make=_with_the_cosine,
        ),
    ],
    numbers={
        "lr": -1e-3,
        "gamma1": 1.0,
        "gamma2": 1.0,
        "theta": 1.0,
        "t_max": 0,
        "eta_min": 1.5,
        "weight_decay": -0.1,
        "update_proj_gap": -1,
        "eps": -1e-8,
    },
)
