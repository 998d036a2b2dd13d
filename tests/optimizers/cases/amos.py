from __future__ import annotations

from typing import Any

import peers
from torch import Tensor

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid


def _amos(who: str, params: dict[str, Tensor], options: Options) -> Any:
    """pytorch_optimizer's with extra_l2 as the authors have it: there it is halved and subtracted."""
    extra, eta = options.pop("extra_l2", 0.0), options.pop("eta", None)
    peer = peers.load(who)(list(params.values()), **options)
    peer.param_groups[0]["extra_l2"] = -2.0 * extra
    if eta is not None:
        peer.get_scale = lambda param: eta
    return peer


AMOS = Entry(
    "amos",
    hfoptim.Amos,
    variants={
        "momentum": Variant({"momentum": 0.9, "weight_decay": 0.1}, complex=False, compiled=True, linear=False),
        "plain": Variant({"eta": 0.2, "lr": 0.1}, lr=0.1, complex=False, linear=False),
    },
    references=[
        Reference(
            "pytorch_optimizer.Amos",
            grid(lr=[0.1], momentum=[0.0, 0.9], extra_l2=[0.0, 1e-2], beta=[0.999, 0.5])
            + grid(lr=[0.3], c_coef=[0.5], d_coef=[0.1], eta=[0.3]),
            make=_amos,
        ),
    ],
    numbers={
        "lr": -1e-3,
        "beta": 1.0,
        "momentum": 1.0,
        "extra_l2": -0.1,
        "c_coef": -1.0,
        "d_coef": -1.0,
        "eps": -1e-8,
        "eta": -1.0,
        "weight_decay": -0.1,
    },
)
