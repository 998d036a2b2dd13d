"""torch's own classes, where one wants these and not ours of the same name: torch.optim.AdamW is `torch_adamw`."""

from __future__ import annotations

import torch

from hfoptim.providers.provider import Outside, Provider

# Class -> the name of ours with its equations, where that is not the class's.
_OTHERS = {"Adafactor": "adafactor_torch", "SGD": "momentum", "SparseAdam": "sparse_adam"}

TORCH = Provider(
    "torch",
    "torch_",
    "torch",
    "pip install -U torch",
    "https://docs.pytorch.org/docs/stable/optim.html",
    tuple(
        Outside(
            f"torch_{_OTHERS[name] if name == 'SparseAdam' else name.lower()}",
            f"torch.optim.{name}",
            _OTHERS.get(name, name.lower()),
            f"torch's own {name}",
        )
        for name, cls in sorted(vars(torch.optim).items())
        if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer
    ),
)
