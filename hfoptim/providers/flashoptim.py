"""FlashOptim: momenta of 8 bits, and weights of bfloat16 with what is missing to 24 or 32 bits beside them."""

from __future__ import annotations

from hfoptim.providers.provider import Outside, Provider

_ALGORITHMS = {"Adam": "adam", "AdamW": "adamw", "Lion": "lion", "SGD": "momentum", "SGDW": "sgdw"}

# The package's whole name in front: `flash_adamw` is a name of ours.
FLASHOPTIM = Provider(
    "flashoptim",
    "flashoptim_",
    "flashoptim",
    "pip install flashoptim",
    "https://arxiv.org/abs/2602.23349",
    tuple(
        Outside(
            f"flashoptim_{cls.lower()}", f"flashoptim.Flash{cls}", algorithm, f"{cls} with small states and weights"
        )
        for cls, algorithm in _ALGORITHMS.items()
    ),
)
