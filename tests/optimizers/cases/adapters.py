from __future__ import annotations

from typing import Any

import peers
from torch import Tensor

import hfoptim
from cases.entry import Entry, Options, Reference, Variant

_FACTORS = tuple(f"{layer}.lora_{side}.weight" for layer in ("q_proj", "o_proj") for side in "AB")


def _pytorch_optimizers(who: str, params: dict[str, Tensor], options: Options) -> Any:
    """The peer without the eps^2 that it alone adds to the second moment."""
    peer = peers.load(who)(list(params.values()), **options)
    peer.param_groups[0]["eps_root"] = 0.0
    return peer


def _pefts(who: str, params: dict[str, Tensor], options: Options) -> Any:
    names = list(params)
    scales = [options.pop("lora_scaling", 1.0)] * len(names)
    return peers.load(who)([{"params": list(params.values()), "names": names, "scaling_factors": scales}], **options)


LORA_RITE = Entry(
    "lora_rite",
    hfoptim.LoRARite,
    # Without an adapter it is Adam; tests/optimizers/test_adapters.py is about factors.
    variants={"decay": Variant({"weight_decay": 0.1}, lr=1e-3)},
    references=[
        Reference(
            "pytorch_optimizer.LoRARite",
            [
                {"lr": 1e-2, "weight_decay": 0.1},
                {"lr": 1e-2, "apply_escape": True, "update_skipping": 0.0, "clip_unmagnified_grad": 3.0},
                {"lr": 1e-2, "clip_unmagnified_grad": 0.0, "betas": (0.5, 0.9), "eps": 1e-3, "update_skipping": 9.0},
            ],
            make=_pytorch_optimizers,
            layouts=_FACTORS,
        ),
    ],
    numbers={
        "lr": -1e-3,
        "eps": -1e-8,
        "clip_unmagnified_grad": -1.0,
        "update_capping": -1.0,
        "update_skipping": -1.0,
        "weight_decay": -0.1,
    },
)

LORA_FA = Entry(
    "lora_fa",
    hfoptim.LoraFAOptimizer,
    variants={"decay": Variant({"weight_decay": 0.1}, lr=1e-3)},
    references=[
        # A does not move, so that its B is followed in test_adapters.py.
        Reference(
            "peft.optimizers.lorafa.LoraFAOptimizer",
            [{"lr": 1e-2, "weight_decay": 0.25}, {"lr": 1e-2, "correct_bias": False, "betas": (0.5, 0.9), "eps": 1e-3}],
            make=_pefts,
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1, "max_lr": -1.0, "lora_scaling": -1.0},
)
