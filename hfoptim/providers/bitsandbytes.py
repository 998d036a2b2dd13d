"""bitsandbytes: states of 8 bits in blocks of 256, and such that move to the host's memory when the GPU's is short.

Its classes decide by `min_8bit_size` which parameters are large enough for 8 bits; smaller ones have 32. On a CPU the
paged ones are as the others.
"""

from __future__ import annotations

from collections.abc import Iterator

from hfoptim.providers.provider import Outside, Provider

# Class -> the name of ours with its equations. bitsandbytes' Adam decays as its AdamW does.
_ALGORITHMS = {
    "Adagrad": "adagrad",
    "Adam": "adam",
    "AdamW": "adamw",
    "AdEMAMix": "ademamix",
    "LAMB": "lamb",
    "LARS": "lars",
    "Lion": "lion",
    "RMSprop": "rmsprop",
    "SGD": "momentum",
}
_PAGED = ("Adam", "AdamW", "AdEMAMix", "Lion")
# The classes have no learning rate of their own, and refuse to be without momentum. The rate is that of PytorchLARS.
_BOUND = {"LARS": {"lr": 1e-2, "momentum": 0.9}, "SGD": {"lr": 1e-2, "momentum": 0.9, "nesterov": True}}


def _classes() -> Iterator[Outside]:
    for cls, algorithm in _ALGORITHMS.items():
        for paged in ("", "Paged") if cls in _PAGED else ("",):
            for bits, states in (("", "32 bits, or 8 by optim_bits"), ("8bit", "8 bits"), ("32bit", "32 bits")):
                yield Outside(
                    f"bnb_{'paged_' if paged else ''}{cls.lower()}{bits}",
                    f"bitsandbytes.optim.{paged}{cls}{bits}",
                    algorithm,
                    f"{cls} with states of {states}{', paged' if paged else ''}",
                    _BOUND.get(cls, {}),
                )


BITSANDBYTES = Provider(
    "bitsandbytes",
    "bnb_",
    "bitsandbytes",
    'pip install "bitsandbytes>=0.46"',
    "https://github.com/bitsandbytes-foundation/bitsandbytes",
    (
        *_classes(),
        Outside("bnb_pytorchlars", "bitsandbytes.optim.PytorchLARS", "lars", "LARS in plain torch", {"momentum": 0.9}),
    ),
)
