"""Optimizers of ours in the place of transformers' own, which need a package each: `enable(replace=True)`.

The TrainingArguments are changed while they are made: `optim` becomes the name of ours, and `optim_args` gets what
transformers would have handed its own. All that follows is as if that had been written.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hfoptim.trainer import defaults
from hfoptim.trainer.build import FIELDS
from hfoptim.trainer.options import parse_options

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Replacement:
    """What stands for one of transformers' names.

    Args:
        name: the name of ours.
        options: options that transformers' own has, whatever the arguments say, unless `optim_args` does.
        fields: options that are handed over from the arguments, changed or not; the learning rate always is.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    fields: tuple[str, ...] = ("weight_decay",)


# GaLore's, APOLLO's and LOMO's parameters are in groups of their own there, without the arguments' weight decay.
_WITHOUT_DECAY = {"weight_decay": 0.0}
_BY_LAYER = {"gradient_release": True}
REPLACEMENTS = {
    "galore_adamw": Replacement("galore_adamw", _WITHOUT_DECAY, ()),
    "galore_adamw_8bit": Replacement("galore_adamw_8bit", {"weight_decay": 1e-2}, ()),  # bitsandbytes' default
    "galore_adafactor": Replacement("galore_adafactor", _WITHOUT_DECAY, ()),
    "galore_adamw_layerwise": Replacement("galore_adamw", {**_WITHOUT_DECAY, **_BY_LAYER}, ()),
    "galore_adamw_8bit_layerwise": Replacement("galore_adamw_8bit", {"weight_decay": 1e-2, **_BY_LAYER}, ()),
    "galore_adafactor_layerwise": Replacement("galore_adafactor", {**_WITHOUT_DECAY, **_BY_LAYER}, ()),
    "apollo_adamw": Replacement("apollo_adamw", _WITHOUT_DECAY, ("betas", "eps")),
    "apollo_adamw_layerwise": Replacement("apollo_adamw", {**_WITHOUT_DECAY, **_BY_LAYER}, ("betas", "eps")),
    "lomo": Replacement("lomo", {**_WITHOUT_DECAY, **_BY_LAYER}, ()),
    "adalomo": Replacement("adalomo", {**_WITHOUT_DECAY, **_BY_LAYER}, ()),
    "grokadamw": Replacement("grokadamw"),
    "schedule_free_adamw": Replacement("adamw_schedule_free", fields=("betas", "eps", "weight_decay", "warmup_steps")),
    "schedule_free_radam": Replacement("radam_schedule_free", fields=("betas", "eps", "weight_decay")),
    "schedule_free_sgd": Replacement("sgd_schedule_free", fields=("weight_decay", "warmup_steps")),
    "stable_adamw": Replacement("stable_adamw", fields=("betas", "eps", "weight_decay")),
}


def replace(args: Any, prefix: str) -> None:
    """Put ours into TrainingArguments that ask for one of `REPLACEMENTS`; called before their own checks.

    Args:
        args: the arguments, whose fields are set; changed in place.
        prefix: what turns a name of ours into one that is nobody else's.

    Raises:
        ValueError: `optim_args` follows no grammar.
    """
    theirs = str(getattr(args.optim, "value", args.optim)).strip().lower().replace("-", "_")
    found = REPLACEMENTS.get(theirs)
    if found is None:
        return
    given = parse_options(args.optim_args)
    options = {**found.options, **_from_fields(args, found.fields), **given}
    if found.options.get("gradient_release") and options.get("clip_grad_norm") is not None:
        del options["gradient_release"]  # a norm of all gradients needs all of them first
    args.optim, args.optim_args = prefix + found.name, json.dumps(options)
    logger.info("optim=%s is hfoptim's: optim=%s with optim_args=%s", theirs, args.optim, args.optim_args)


def _from_fields(args: Any, fields: tuple[str, ...]) -> dict[str, Any]:
    """What transformers hands over even where it is a default, which ours would not take for said."""
    options: dict[str, Any] = {}
    for option in ("lr", *fields):
        if option == "betas":
            options["betas"] = (args.adam_beta1, args.adam_beta2)
        elif option == "warmup_steps":
            options["warmup_steps"] = int(args.warmup_steps or 0)
        elif not defaults.changed(args, FIELDS[option]):  # else they go the usual way, and may be searched over
            options[option] = getattr(args, FIELDS[option])
    return options
