from __future__ import annotations

from typing import Any

import peers
from torch import Tensor

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid, without


def _whole_first(who: str, params: dict[str, Tensor], options: Options) -> Any:
    """pytorch_optimizer's, whose buffer begins with a whole gradient, as the author's, and not with a tenth of it."""

    class Repaired(peers.load(who)):  # type: ignore[misc]
        def init_group(self, group: Any, **kwargs: Any) -> None:
            new = [param for param in group["params"] if not self.state[param]]
            super().init_group(group, **kwargs)
            for param in new:
                self.state[param]["momentum_buffer"].copy_(param.grad)

    return Repaired(list(params.values()), **options)


SGDSAI = Entry(
    "sgdsai",
    hfoptim.SGDSaI,
    variants={"default": Variant(complex=False, compiled=True)},
    references=[
        # Its deviation is that of tensors of several rows only.
        Reference(
            "pytorch_optimizer.SGDSaI",
            grid(lr=[1e-3], momentum=[0.9, 0.5], eps=[1e-8, 0.1], weight_decay=[0.0, 0.25]),
            without(foreach=False),
            make=_whole_first,
            layouts=("scalar", "one", "matrix", "column", "conv", "transposed", "channels_last", "gaps"),
        ),
    ],
    numbers={"lr": -1e-3, "momentum": -0.1, "eps": -1e-8, "weight_decay": -0.1},
    small_steps={"lr": 1e-5, "weight_decay": 0.1},
)
