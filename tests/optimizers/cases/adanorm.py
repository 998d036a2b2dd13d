from __future__ import annotations

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid
from cases.repaired import without_root_eps


def _po(options: Options) -> Options:
    return {"ams_bound" if name == "amsgrad" else name: value for name, value in options.items()}


ADANORM = Entry(
    "adanorm",
    hfoptim.AdaNorm,
    variants={
        "decay": Variant({"weight_decay": 0.1}, complex=False, compiled=True),
        "amsgrad": Variant({"weight_decay": 0.1, "weight_decouple": False, "amsgrad": True}, complex=False),
    },
    references=[
        # It divides eps by the bias correction; of this size it makes no difference.
        Reference(
            "pytorch_optimizer.AdaNorm",
            grid(
                lr=[1e-2],
                eps=[1e-30],
                betas=[(0.9, 0.99), (0.5, 0.0)],
                weight_decouple=[True, False],
                weight_decay=[0.2],
            )
            + grid(lr=[1e-2], eps=[1e-30], weight_decay=[0.02], fixed_decay=[True])
            + grid(lr=[1e-2], eps=[1e-30], r=[0.5], amsgrad=[True], maximize=[True]),
            _po,
            make=without_root_eps,
            tolerance=1e-9,
        ),
    ],
    numbers={"lr": -1e-3, "r": 1.0, "eps": -1e-8, "weight_decay": -0.1},
)
