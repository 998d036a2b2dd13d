"""Parameter groups of adapters: LoRA+, in which the two factors of a low-rank update learn at rates of their own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from hfoptim.engine.checks import number
from hfoptim.param_groups.selection import ParamGroups, decayed_names


def param_groups_lora_plus(
    model: nn.Module,
    lr: float,
    lr_ratio: float,
    lr_embedding: float = 1e-6,
    weight_decay: float = 0.0,
    no_weight_decay_list: Iterable[str] = (),
) -> ParamGroups:
    """Groups for LoRA+: the factors B of a model with LoRA, which begin at zero, learn `lr_ratio` times as fast as A.

    With an optimizer by name, or in the Trainer, `param_options={"*lora_B*": {"lr_scale": lr_ratio}}` says the same of
    B. The rates are those of peft's `create_loraplus_optimizer`, which gives vectors the one of B, too.

    Args:
        model: its trainable parameters are grouped, each once, by name: `lora_B`, `lora_embedding_`, and the others.
        lr: learning rate of A and of whole matrices.
        lr_ratio: that of B and of vectors, as a multiple of lr, above 0; the paper's experiments have 16.
        lr_embedding (default 1e-6): learning rate of both factors of embeddings.
        weight_decay (0.0): of matrices; not of biases, norms and other vectors.
        no_weight_decay_list (()): names or wildcard patterns of further parameters without decay.

    Returns:
        Parameter groups with named parameters and `lr`; empty ones are left out.

    Raises:
        ValueError: a number out of range, or no parameter is a `lora_B`.

    Source:
        Hayou, Ghosh and Yu, arXiv 2402.12354; peft, `optimizers.loraplus`.
    """
    lr, decay = number("lr", lr), number("weight_decay", weight_decay)
    ratio, of_embeddings = number("lr_ratio", lr_ratio), number("lr_embedding", lr_embedding)
    if ratio == 0.0:
        raise ValueError("lr_ratio=0 would freeze the factors B, expected a number above 0")
    trained = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    if not any("lora_B" in name for name, _ in trained):
        raise ValueError(
            f"none of the {len(trained)} trainable parameters of {type(model).__name__} is called lora_B, as the "
            f"factors that learn faster are; prepare the model with peft.get_peft_model first"
        )
    decaying = decayed_names(model, no_weight_decay_list)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, param in trained:
        rate = lr * ratio if "lora_B" in name or param.ndim == 1 else lr
        rate = of_embeddings if "lora_embedding_" in name else rate
        own = decay if name in decaying else 0.0
        groups.setdefault((rate, own), {"params": [], "lr": rate, "weight_decay": own})["params"].append((name, param))
    return list(groups.values())
