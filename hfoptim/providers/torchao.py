"""torchao: Adam and AdamW with states of 8 and 4 bits and of float8, by torch.compile."""

from __future__ import annotations

from hfoptim.providers.provider import Outside, Provider

_STATES = {"8bit": "8 bits", "4bit": "4 bits", "Fp8": "float8, for GPUs that have it"}

TORCHAO = Provider(
    "torchao",
    "ao_",
    "torchao",
    "pip install torchao",
    "https://github.com/pytorch/ao",
    tuple(
        Outside(
            f"ao_{cls.lower()}{kind.lower()}",
            f"torchao.optim.{cls}{kind}",
            cls.lower(),
            f"{cls} with states of {states}",
            aliases=(f"torchao_{cls.lower()}{kind.lower()}",),  # as pytorch_optimizer calls them
        )
        for cls in ("Adam", "AdamW")
        for kind, states in _STATES.items()
    ),
)
