from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import hfoptim
from cases.entry import Entry, Reference, Variant, grid
from cases.transcribed import Transcribed


class PapersNero(Transcribed):
    """arXiv 2102.07227, algorithm 1, neuron by neuron."""

    defaults_ = {"lr": 1e-2, "beta": 0.999, "constraints": True, "eps": 1e-8, "bias_scale": 0.01}

    def move(self, p: Tensor, g: Tensor, s: dict[str, Any], o: dict[str, Any]) -> Tensor:
        beta, fade = o["beta"], 1 - o["beta"] ** s["t"]
        if p.numel() == (len(p) if p.ndim > 1 else p.numel()):
            scale = s.setdefault("scale", float(p.abs().mean()) or o["bias_scale"])
            s["g"] = beta * s.get("g", 0.0) + (1 - beta) * g**2
            return p - o["lr"] * scale / ((s["g"] / fade).sqrt() + o["eps"]) * g
        neurons, squares = [], s.setdefault("neurons", [0.0] * len(p))
        for n, (w, gw) in enumerate(zip(p, g, strict=True)):
            squares[n] = beta * squares[n] + (1 - beta) * float((gw**2).sum())
            w = w - o["lr"] * w.norm() / (math.sqrt(squares[n] / fade) + o["eps"]) * gw
            if o["constraints"]:
                w = w - w.mean()
                w = w / w.norm()
            neurons.append(w)
        return torch.stack(neurons)


NERO = Entry(
    "nero",
    hfoptim.Nero,
    variants={
        "balanced": Variant({}, complex=False, linear=False, compiled=True, layouts=("matrix", "conv", "vector")),
        "free": Variant({"constraints": False, "weight_decay": 0.1}, complex=False),
    },
    references=[
        Reference(
            "cases.nero.PapersNero",
            grid(lr=[1e-2], beta=[0.999, 0.5], constraints=[True, False]) + grid(lr=[1e-2], eps=[1e-2]),
        ),
    ],
    numbers={"lr": -1e-3, "beta": 1.0, "eps": -1.0, "bias_scale": -1.0, "weight_decay": -0.1},
    small_steps={"lr": 1e-4, "constraints": False},
)
