from __future__ import annotations

from typing import Any

import peers
from torch import Tensor

import hfoptim
from cases.entry import BETAS, Entry, Options, Reference, Variant, grid


def _with_flag(who: str, params: dict[str, Tensor], options: Options) -> Any:
    """pytorch_optimizer's, whose `sn` is an entry of the groups and no argument."""
    sn = options.pop("sn")
    return peers.load(who)([{"params": list(params.values()), "sn": sn}], **options, foreach=False)


# It views parameters and gradients that are contiguous, and wants subsets no larger than a parameter.
_LAYOUTS = ("scalar", "one", "vector", "matrix", "row", "column", "conv", "wide")


ADAMW_SN = Entry(
    "adamw_sn",
    hfoptim.AdamWSN,
    variants={
        "matrices": Variant({"weight_decay": 0.1}, complex=False, compiled=True, layouts=("vector", "matrix", "large")),
        "sizes": Variant({"sn": True, "subset_size": 5}, complex=False),
    },
    references=[
        Reference(
            "pytorch_optimizer.AdamWSN",
            grid(lr=[1e-2], betas=BETAS, sn=[True], weight_decay=[0.25])
            + grid(lr=[1e-2], sn=[False], weight_decay=[0.25]),
            make=_with_flag,
            layouts=_LAYOUTS,
        ),
        Reference(
            "pytorch_optimizer.AdamWSN",
            grid(lr=[1e-2], sn=[True], subset_size=[7, -2], eps=[1e-2], maximize=[True]),
            make=_with_flag,
            layouts=("conv", "matrix", "wide"),
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1},
)
