from __future__ import annotations

import hfoptim
from cases.entry import BETAS, Checkpoint, Entry, Options, Reference, Variant, grid, without

_LAMB = (
    grid(lr=[1e-2], betas=BETAS, max_grad_norm=[1.0, None], weight_decay=[0.0, 0.25], always_adapt=[False, True])
    + grid(lr=[1e-2], bias_correction=[False], grad_averaging=[False, True], always_adapt=[False, True])
    + grid(lr=[1e-2], grad_averaging=[False], trust_clip=[False, True], weight_decay=[0.25])
    + grid(lr=[1e-2], trust_clip=[True], max_grad_norm=[0.1], eps=[1e-2], weight_decay=[0.25])
    + grid(lr=[1e-2], caution=["momentum"], weight_decay=[0.0, 0.25], trust_clip=[False, True])
    + grid(lr=[1e-2], decoupled_decay=[True], weight_decay=[0.0, 0.25], trust_clip=[False, True])
    # Where nothing is adapted, timm masks the finished update, too.
    + grid(lr=[1e-2], caution=[True], weight_decay=[0.0])
)


def _timm(options: Options) -> Options:
    """Caution of the momentum is all there is."""
    return without(foreach=False, caution=bool(options.get("caution")))(options)


LAMB = Entry(
    "lamb",
    hfoptim.Lamb,
    variants={
        "decay": Variant({"weight_decay": 0.1}, complex=False, alone=False),
        "always": Variant(
            {"always_adapt": True, "weight_decay": 0.1},
            complex=False,
            alone=False,
            compiled=True,
            layouts=("vector", "row", "large"),
        ),
        "unclipped": Variant(
            {"max_grad_norm": None, "grad_averaging": False, "decoupled_decay": True, "weight_decay": 0.1},
            complex=False,
        ),
        "not_adapted": Variant({"weight_decay": 0.0, "max_grad_norm": None}),
        "caution": Variant({"weight_decay": 0.1, "caution": "momentum"}, complex=False, alone=False),
    },
    references=[Reference("timm.optim.lamb.Lamb", _LAMB, _timm)],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1, "max_grad_norm": -1.0},
    checkpoints=[
        Checkpoint(
            "timm.optim.lamb.Lamb",
            {},
            {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-4, "weight_decay": 0.2, "max_grad_norm": 0.5},
        ),
        Checkpoint(
            "timm.optim.lamb.Lamb",
            {"always_adapt": True},
            {"bias_correction": False, "grad_averaging": False, "max_grad_norm": None, "weight_decay": 0.0},
        ),
    ],
)
