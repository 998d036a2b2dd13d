from __future__ import annotations

import hfoptim
from cases.entry import Checkpoint, Entry, Options, Reference, Variant, grid, without
from cases.repaired import norm_in_double

_BETAS = [(0.98, 0.92, 0.99), (0.5, 0.0, 0.9), (0.0, 0.9, 0.0)]
_ADAN = grid(lr=[1e-2], betas=_BETAS, eps=[1e-8], weight_decay=[0.25], no_prox=[False, True]) + grid(
    lr=[1e-2], eps=[1e-8, 1e-2], weight_decay=[0.0], no_prox=[False]
)


def _po(options: Options) -> Options:
    """`no_prox` by its name in pytorch_optimizer."""
    return without("no_prox", weight_decouple=options["no_prox"], foreach=False)(options)


ADAN = Entry(
    "adan",
    hfoptim.Adan,
    variants={
        "proximal": Variant({"weight_decay": 0.1}, compiled=True),
        "no_prox": Variant({"weight_decay": 0.1, "no_prox": True}),
        "fully_decoupled": Variant({"weight_decay": 1e-3, "decouple_lr": True, "max_lr": 0.02}),
        "clipped": Variant({"weight_decay": 0.1, "max_grad_norm": 0.5}, alone=False),
        "caution": Variant({"weight_decay": 0.1, "caution": "momentum"}, complex=False),
    },
    references=[
        Reference("timm.optim.adan.Adan", _ADAN, without(foreach=False)),
        Reference(
            "timm.optim.adan.Adan",
            grid(lr=[1e-2], weight_decay=[0.25], no_prox=[False, True], caution=["momentum"]),
            without(foreach=False, caution=True),
        ),
        Reference("pytorch_optimizer.Adan", _ADAN, _po),
        # It adds eps to the norm, and takes it in float32.
        Reference(
            "pytorch_optimizer.Adan",
            grid(lr=[1e-2], eps=[1e-30], weight_decay=[0.25], no_prox=[True], max_grad_norm=[0.5]),
            _po,
            make=lambda who, params, options: norm_in_double(who)(list(params.values()), **options),
        ),
        # optimi does not hand its option for the other decay on.
        Reference(
            "optimi.Adan",
            [options for options in _ADAN if not options["no_prox"]]
            + grid(lr=[1e-2], eps=[1e-6], weight_decay=[0.0, 0.02], decouple_lr=[True])
            + grid(lr=[1e-2], eps=[1e-6], weight_decay=[0.02], decouple_lr=[True], max_lr=[0.03]),
            without("no_prox", foreach=False, triton=False),
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1, "max_lr": -1e-3, "max_grad_norm": -1.0},
    checkpoints=[
        Checkpoint(
            "timm.optim.adan.Adan",
            {},
            {"lr": 1e-2, "betas": (0.9, 0.8, 0.95), "eps": 1e-4, "weight_decay": 0.2, "no_prox": True},
        ),
        Checkpoint("timm.optim.adan.Adan", {"no_prox": True}, {"lr": 1e-2, "weight_decay": 0.2}),
    ],
)
