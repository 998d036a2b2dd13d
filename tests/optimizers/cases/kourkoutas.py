from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid
from cases.transcribed import Transcribed


class KBeta(Transcribed):
    """The author's KourkoutasSoftmaxFlex with a layer for each tensor, and AdamW's weight decay."""

    defaults_: ClassVar[Options] = {
        **{"lr": 1e-3, "beta1": 0.9, "beta2_max": 0.999, "beta2_min": 0.9, "eps": 1e-8, "alpha": 0.9},
        **{"tiny_spike": 1e-8, "tiny_denom": 1e-8, "max_decay": None, "max_ratio": None, "adaptive_tiny": False},
        **{"bias_correction": "none", "warmup_steps": 0, "weight_decay": 0.0},
    }

    def move(self, p: Tensor, g: Tensor, s: dict[str, Any], o: dict[str, Any]) -> Tensor:
        t, norm = s["t"], torch.linalg.vector_norm(g)
        s["ema"] = o["alpha"] * s.get("ema", 0.0) + (1 - o["alpha"]) * norm
        ratio = norm / (s["ema"] + o["tiny_spike"])
        sun = ratio / (1 + ratio)
        beta2 = o["beta2_max"] - (o["beta2_max"] - o["beta2_min"]) * sun
        if t <= o["warmup_steps"]:
            beta2 = torch.full_like(norm, (o["beta2_min"] + o["beta2_max"]) / 2)
        s["m"] = o["beta1"] * s.get("m", 0.0) + (1 - o["beta1"]) * g
        s["v"] = beta2 * s.get("v", 0.0) + (1 - beta2) * g**2
        s["product"] = s.get("product", 1.0) * beta2
        v_hat, m_hat = s["v"], s["m"]
        if o["max_decay"] is not None or o["max_ratio"] is not None:
            leak = 1.0 if o["max_decay"] is None else o["max_decay"]
            s["v_max"] = v_hat = torch.maximum(leak * s.get("v_max", torch.zeros_like(g)), s["v"])
        if o["bias_correction"] != "none":
            left = s["product"] if o["bias_correction"] == "exact" else o["beta2_max"] ** t
            v_hat, m_hat = v_hat / (1 - left), m_hat / (1 - o["beta1"] ** t)
        tiny = o["tiny_denom"] * p.abs().mean().clamp(min=1.0) if o["adaptive_tiny"] else 0.0
        step = o["lr"] * m_hat / (v_hat.sqrt() + tiny + o["eps"])
        if o["max_ratio"] is not None:
            step = step.clamp(-o["lr"] * o["max_ratio"], o["lr"] * o["max_ratio"])
        return p - step - o["lr"] * o["weight_decay"] * p


KOURKOUTAS = Entry(
    "kourkoutas",
    hfoptim.Kourkoutas,
    variants={
        "plain": Variant({"weight_decay": 0.1}, lr=1e-3, complex=False, compiled=True),
        "all": Variant(
            {"max_decay": 0.98, "max_ratio": 3.0, "adaptive_tiny": True, "bias_correction": "exact", "warmup_steps": 2},
            complex=False,
        ),
    },
    references=[
        Reference(
            "cases.kourkoutas.KBeta",
            grid(lr=[1e-3], bias_correction=["none", "beta2max", "exact"], warmup_steps=[0, 5], weight_decay=[0.25])
            + grid(lr=[1e-3], max_decay=[0.98, None], max_ratio=[0.7], adaptive_tiny=[True], tiny_denom=[1e-2])
            + grid(lr=[1e-3], max_decay=[0.9], beta1=[0.5], beta2_min=[0.0], alpha=[0.5], eps=[1e-3]),
        ),
    ],
    numbers={
        "lr": -1e-3,
        "beta1": 1.0,
        "beta2_max": 1.0,
        "beta2_min": -0.1,
        "eps": -1e-8,
        "alpha": 1.0,
        "weight_decay": -0.1,
        "tiny_spike": -1e-8,
        "tiny_denom": -1e-8,
        "max_decay": 1.5,
        "max_ratio": -1.0,
        "warmup_steps": -1,
    },
)
