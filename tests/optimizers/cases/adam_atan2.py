from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

import hfoptim
from cases.entry import BETAS, Entry, Options, Reference, Variant, grid
from cases.transcribed import Transcribed


class Atan2(Transcribed):
    """The algorithm of arXiv 2407.05872 with lucidrains' constants and weight decay."""

    defaults_: ClassVar[Options] = {
        **{"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0, "decouple_lr": False, "a": 1.27, "b": 1.0}
    }

    def move(self, p: Tensor, g: Tensor, s: dict[str, Any], o: dict[str, Any]) -> Tensor:
        beta1, beta2 = o["betas"]
        s["m"] = beta1 * s.get("m", 0.0) + (1 - beta1) * g
        s["v"] = beta2 * s.get("v", 0.0) + (1 - beta2) * g**2
        m_hat, v_hat = s["m"] / (1 - beta1 ** s["t"]), s["v"] / (1 - beta2 ** s["t"])
        decay = o["weight_decay"] / (self.defaults["lr"] if o["decouple_lr"] else 1.0)
        return p * (1 - o["lr"] * decay) - o["lr"] * o["a"] * torch.atan2(m_hat, o["b"] * v_hat.sqrt())


ADAM_ATAN2 = Entry(
    "adam_atan2",
    hfoptim.AdamAtan2,
    variants={
        "decay": Variant({"weight_decay": 0.1}, compiled=True),
        "constants": Variant({"a": 1.0, "b": 2.0, "maximize": True}),
    },
    references=[
        Reference(
            "cases.adam_atan2.Atan2",
            grid(lr=[1e-2], betas=BETAS, weight_decay=[0.0, 0.25])
            + grid(lr=[1e-2], weight_decay=[0.02], decouple_lr=[True], a=[1.0], b=[1.0, 2.0]),
        ),
    ],
    numbers={"lr": -1e-3, "weight_decay": -0.1, "max_lr": -1.0, "a": -1.0, "b": -1.0},
)
