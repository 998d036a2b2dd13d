from __future__ import annotations

from typing import Any

import peers
from torch import Tensor

import hfoptim
from cases.entry import BETAS, Entry, Options, Reference, Variant, grid

# A model of this width has heads of 8 entries.
_MODEL = {"dim": 4, "n_heads": 2}
# One parameter for each line of the table of blocks.
NAMED = (
    *("embed.weight", "q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight"),
    *("mlp.weight", "mlp.bias", "norm.weight", "lm_head.weight", "conv", "matrix", "scalar"),
)


def _authors(who: str, params: dict[str, Tensor], options: Options) -> Any:
    return peers.load(who)(params.items(), verbose=False, **options)


ADAM_MINI = Entry(
    "adam_mini",
    hfoptim.AdamMini,
    variants={
        "decay": Variant(
            {"weight_decay": 0.1, **_MODEL},
            complex=False,
            compiled=True,
            layouts=("vector", "large", "q_proj.large", "mlp.large"),
        ),
        "caution": Variant({"caution": True}, complex=False),
    },
    references=[
        Reference(
            "adam_mini.Adam_mini",
            [
                *({**_MODEL, **options} for options in grid(lr=[1e-2], betas=BETAS, weight_decay=[0.0, 0.25])),
                {"lr": 1e-2, "eps": 1e-2, **_MODEL},
                {"lr": 1e-2, "dim": 4, "n_heads": 4, "n_kv_heads": 2, "weight_decay": 0.1},
            ],
            make=_authors,
            layouts=NAMED,
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1, "dim": 0, "n_heads": 0, "n_kv_heads": 0},
)
