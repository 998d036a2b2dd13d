from __future__ import annotations

import hfoptim
from cases.entry import Checkpoint, Entry, Reference, Variant, grid, without

RPROP = Entry(
    "rprop",
    hfoptim.Rprop,
    variants={"default": Variant(lr=None, linear=False, compiled=True)},
    references=[
        Reference(
            "torch.optim.Rprop",
            [
                *grid(lr=[1e-2], etas=[(0.5, 1.2), (0.7, 1.1)], step_sizes=[(1e-6, 50.0), (1e-2, 2e-2)]),
                {"lr": 1e-2, "maximize": True},
            ],
            without(foreach=False),
        ),
    ],
    numbers={"lr": -1e-3, "weight_decay": -0.1},
    checkpoints=[Checkpoint("torch.optim.Rprop", {}, {"lr": 3e-2, "etas": (0.7, 1.3), "step_sizes": (1e-3, 1.0)})],
    small_steps={"lr": 1e-4, "step_sizes": (1e-4, 1e-4)},
)
