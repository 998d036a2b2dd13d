from __future__ import annotations

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, without


def _po(options: Options) -> Options:
    """Without its schedule, and with a Lookahead that stays; it clips and centralises unless told not to."""
    own = {"num_iterations": 1000, "disable_lr_scheduler": True, "lookahead_blending_alpha": 1.0, "foreach": False}
    own["agc_clipping_value"] = options.get("adaptive_clip") or 1e9
    own["centralize_gradients"] = options.get("gradient_centralization", False)
    return without("adaptive_clip", "gradient_centralization", **own)(options)


_USUAL = {"gradient_centralization": True, "adaptive_clip": 0.01}

RANGER21 = Entry(
    "ranger21_base",
    hfoptim.Ranger21Base,
    variants={
        "usual": Variant(
            {"weight_decay": 0.1, **_USUAL},
            alone=False,
            complex=False,
            compiled=True,
            layouts=("vector", "matrix", "large"),
        ),
        "plain": Variant(
            {"use_softplus": False, "normalize_gradients": False, "norm_loss_factor": 0.1},
            lr=1e-3,
            alone=False,
            complex=False,
        ),
    },
    references=[
        Reference(
            "pytorch_optimizer.Ranger21",
            [
                {"lr": 1e-2, "weight_decay": 0.25, **_USUAL},
                {"lr": 1e-2, "betas": (0.5, 0.9), "beta0": 0.0, "adaptive_clip": 0.1, "norm_loss_factor": 0.5},
                {"lr": 1e-3, "use_softplus": False, "gradient_centralization": True, "eps": 1e-3},
                {"lr": 1e-2, "normalize_gradients": False, "beta_softplus": 2.0, "weight_decay": 0.1},
            ],
            _po,
        ),
    ],
    numbers={
        "lr": -1e-3,
        "eps": -1e-8,
        "weight_decay": -0.1,
        "beta0": -0.1,
        "beta_softplus": -1.0,
        "norm_loss_factor": -1e-4,
    },
)
