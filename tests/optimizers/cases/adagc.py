from __future__ import annotations

from typing import Any

from torch import Tensor

import hfoptim
from cases.entry import BETAS, Entry, Options, Reference, Variant, grid
from cases.repaired import norm_in_double


def _adagc(who: str, params: dict[str, Tensor], options: Options) -> Any:
    return norm_in_double(who)(list(params.values()), **options)


ADAGC = Entry(
    "adagc",
    hfoptim.AdaGC,
    variants={"decay": Variant({"weight_decay": 0.1, "warmup_steps": 4}, complex=False, alone=False, compiled=True)},
    references=[
        Reference(
            "pytorch_optimizer.AdaGC",
            grid(lr=[1e-2], betas=BETAS, warmup_steps=[10], weight_decay=[0.25])
            + grid(lr=[1e-2], warmup_steps=[0, 100], lambda_abs=[0.1], lambda_rel=[0.8], beta=[0.5], eps=[1e-2]),
            make=_adagc,
        ),
    ],
    numbers={
        "lr": -1e-3,
        "beta": 1.0,
        "lambda_abs": -1.0,
        "lambda_rel": -1.0,
        "warmup_steps": -1,
        "weight_decay": -0.1,
        "eps": -1e-8,
    },
)
