"""NVIDIA's Apex: CUDA kernels for all parameters at once. Names and what they bind are timm's."""

from __future__ import annotations

from hfoptim.providers.provider import Outside, Provider

APEX = Provider(
    "apex",
    "fused",
    "apex.optimizers",
    "build it from https://github.com/NVIDIA/apex with its CUDA extensions",
    "https://github.com/NVIDIA/apex",
    (
        Outside(
            "fusedsgd",
            "apex.optimizers.FusedSGD",
            "sgd",
            "SGD with Nesterov's momentum",
            {"lr": 1e-2, "momentum": 0.9, "nesterov": True},
        ),
        Outside(
            "fusedmomentum",
            "apex.optimizers.FusedSGD",
            "momentum",
            "SGD with momentum",
            {"lr": 1e-2, "momentum": 0.9, "nesterov": False},
        ),
        Outside("fusedadam", "apex.optimizers.FusedAdam", "adam", "Adam", {"adam_w_mode": False}),
        Outside("fusedadamw", "apex.optimizers.FusedAdam", "adamw", "AdamW", {"adam_w_mode": True}),
        Outside("fusedlamb", "apex.optimizers.FusedLAMB", "lamb", "LAMB"),
        Outside("fusednovograd", "apex.optimizers.FusedNovoGrad", "novograd", "NovoGrad", {"betas": (0.95, 0.98)}),
        Outside("fusedadagrad", "apex.optimizers.FusedAdagrad", "adagrad", "Adagrad"),
    ),
)
