from __future__ import annotations

from typing import Any

import peers
from sparsified import sparsified
from torch import Tensor

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid, without


def _sparse(who: str, params: dict[str, Tensor], options: Options) -> Any:
    return sparsified(peers.load(who))(list(params.values()), **options)


SPARSE_ADAM = Entry(
    "sparse_adam",
    sparsified(hfoptim.SparseAdam),
    variants={"plain": Variant(complex=False, layouts=("vector", "matrix", "conv"))},
    references=[
        Reference(
            "torch.optim.SparseAdam",
            grid(lr=[1e-2], betas=[(0.9, 0.999), (0.0, 0.9)], eps=[1e-8, 1e-2]) + grid(lr=[1e-2], maximize=[True]),
            without(foreach=False),
            make=lambda who, params, options: _sparse(who, params, without("foreach")(options)),
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8},
    small_steps={"lr": 1e-4},
)
