from __future__ import annotations

import peers
from torch import Tensor

import hfoptim
import schedules
from cases.entry import Entry, Options, Reference, Variant, grid


def _keras(who: str, params: dict[str, Tensor], options: Options) -> peers.KerasOptimizer:
    include, exclude = options.pop("include_in_weight_decay", None), options.pop("exclude_from_weight_decay", None)
    rate = options.pop("weight_decay_rate", None)
    return peers.KerasOptimizer(
        list(params.items()),
        options.pop("learning_rate"),
        peers.decayed_by_name(include, exclude),
        weight_decay=rate or None,
        **options,
    )


_KERAS = grid(learning_rate=[1e-2], amsgrad=[False, True], weight_decay_rate=[0.0, 0.25])
_PATTERNS = [
    {"exclude_from_weight_decay": ["vector", "^sca.*r$"]},
    {"include_in_weight_decay": ["matrix"], "exclude_from_weight_decay": ["."]},
]
_RATE = schedules.WarmUp(1e-2, schedules.PolynomialDecay(1e-2, 20, 1e-4), 5)

ADAM_WEIGHT_DECAY = Entry(
    "adam_weight_decay",
    hfoptim.AdamWeightDecay,
    variants={
        "decay": Variant({"weight_decay_rate": 0.1, "exclude_from_weight_decay": ["vector"]}),
        "amsgrad": Variant({"amsgrad": True, "clipvalue": 0.5, "weight_decay_rate": 0.1}),
        "clipnorm": Variant({"clipnorm": 0.5}, complex=False),
        "global_clipnorm": Variant({"global_clipnorm": 0.5}, alone=False, compiled=True),
        "schedule": Variant({"learning_rate": _RATE, "weight_decay_rate": 0.1}, lr=None, alone=False),
    },
    references=[
        Reference("keras.optimizers.Adam", _KERAS, make=_keras),
        Reference(
            "keras.optimizers.Adam", grid(learning_rate=[1e-2], beta_1=[0.5], beta_2=[0.9], epsilon=[1e-2]), make=_keras
        ),
        Reference(
            "keras.optimizers.Adam",
            [
                {"learning_rate": 1e-2, "weight_decay_rate": 0.25, "amsgrad": a, **clip}
                for a in (False, True)
                for clip in ({"clipnorm": 0.5}, {"clipvalue": 0.2}, {"global_clipnorm": 0.7}, {"global_clipnorm": 1e6})
            ],
            make=_keras,
            tolerance=1e-7,  # Keras takes max(norm, limit) in float32
        ),
        Reference(
            "keras.optimizers.Adam",
            [{"learning_rate": 1e-2, "weight_decay_rate": 0.25, **patterns} for patterns in _PATTERNS],
            make=_keras,
        ),
        Reference(
            "keras.optimizers.Adam",
            [{"learning_rate": _RATE, "weight_decay_rate": 0.25}],
            make=_keras,
            lr_moves=False,
        ),
    ],
    numbers={
        "learning_rate": -1e-3,
        "beta_1": 1.0,
        "beta_2": -0.1,
        "epsilon": -1e-8,
        "weight_decay_rate": -0.1,
        "clipnorm": -1.0,
        "clipvalue": -1.0,
        "global_clipnorm": -1.0,
    },
    small_steps={"learning_rate": 1e-4, "weight_decay_rate": 0.1},
)
