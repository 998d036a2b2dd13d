from __future__ import annotations

import hfoptim
from cases.entry import Checkpoint, Entry, Options, Reference, Variant, grid


def _timm_adafactor(options: Options) -> Options:
    out = {k: v for k, v in options.items() if k not in ("relative_step", "beta1")}
    out["eps"], out["eps_scale"] = options.get("eps", (1e-30, 1e-3))
    out["betas"] = None if options.get("beta1") is None else (options["beta1"], 0.0)
    return out


_ADAFACTOR_STEPS = (
    [{"relative_step": True, "warmup_init": w, "scale_parameter": s} for w in (False, True) for s in (False, True)],
    [{"relative_step": False, "lr": 1e-2, "scale_parameter": s} for s in (False, True)],
)
_ADAFACTOR_REST = grid(beta1=[None, 0.9], weight_decay=[0.0, 0.1], clip_threshold=[1.0, 0.3], decay_rate=[-0.8, -0.3])
_ADAFACTOR_SHAPES = ("scalar", "vector", "matrix", "conv", "transposed", "gaps")
_FACTORING = ("scalar", "one", "vector", "matrix", "wide", "narrow", "conv", "conv_wide", "stack", "transposed")

ADAFACTOR = Entry(
    "adafactor",
    hfoptim.Adafactor,
    variants={
        "relative": Variant({}, lr=None, complex=False, compiled=True, layouts=("vector", "matrix", "row", "large")),
        "warmup": Variant({"warmup_init": True, "beta1": 0.9, "weight_decay": 0.1}, lr=None, complex=False),
        "lr": Variant({"lr": 1e-2, "relative_step": False, "scale_parameter": False}, complex=False),
        "timm": Variant(
            {"lr": 1e-2, "relative_step": False, "min_dim_size_to_factor": 4, "weight_decay": 0.1}, complex=False
        ),
    },
    references=[
        Reference(
            "transformers.Adafactor",
            [{**s, **r} for s in _ADAFACTOR_STEPS[0] for r in _ADAFACTOR_REST],
            layouts=_ADAFACTOR_SHAPES,
            lr_moves=False,
        ),
        Reference(
            "transformers.Adafactor",
            [{**s, **r} for s in _ADAFACTOR_STEPS[1] for r in _ADAFACTOR_REST],
            layouts=_ADAFACTOR_SHAPES,
        ),
        Reference("transformers.Adafactor", [{"eps": (1e-3, 0.5), "lr": 1e-2, "relative_step": False}]),
        # timm scales relative steps only.
        Reference(
            "timm.optim.adafactor.Adafactor",
            grid(
                min_dim_size_to_factor=[16],
                scale_parameter=[True, False],
                warmup_init=[True, False],
                beta1=[None, 0.8],
                weight_decay=[0.0, 0.1],
            ),
            _timm_adafactor,
            layouts=_FACTORING,
            lr_moves=False,
        ),
        Reference(
            "timm.optim.adafactor.Adafactor",
            grid(
                lr=[1e-2],
                relative_step=[False],
                scale_parameter=[False],
                min_dim_size_to_factor=[16, 4],
                beta1=[None, 0.8],
                weight_decay=[0.0, 0.1],
                eps=[(1e-30, 1e-3), (1e-2, 1e-3)],
            ),
            _timm_adafactor,
            layouts=_FACTORING,
        ),
    ],
    numbers={
        "lr": -1e-3,
        "clip_threshold": -1.0,
        "decay_rate": 0.5,
        "beta1": 1.0,
        "weight_decay": -0.1,
        "eps_scale": -1.0,
        "min_dim_size_to_factor": -1,
    },
    checkpoints=[
        Checkpoint("transformers.Adafactor", {}, {}),
        Checkpoint(
            "transformers.Adafactor",
            {"lr": 1e-3, "relative_step": False},
            {"lr": 1e-2, "relative_step": False, "beta1": 0.9, "weight_decay": 0.1, "clip_threshold": 0.5},
        ),
        Checkpoint("transformers.Adafactor", {}, {"warmup_init": True, "scale_parameter": False, "beta1": 0.7}),
    ],
    small_steps={"lr": 1e-4, "relative_step": False, "scale_parameter": False},
)
