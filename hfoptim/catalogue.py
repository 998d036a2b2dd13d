"""The catalogue as a table: one entry for every name an optimizer can be chosen by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hfoptim.engine import RuleOptimizer
from hfoptim.optimizers import SGD, Adafactor, Adam, AdamW, AdamWeightDecay, Lion


@dataclass(frozen=True)
class OptimInfo:
    """What the registry knows of an optimizer.

    Args:
        name: canonical name.
        opt_class: its class.
        description: one line.
        source: where the algorithm is published.
        defaults: arguments bound to this name that differ from the class's own defaults.
        aliases: other names it answers to.
    """

    name: str
    opt_class: type[RuleOptimizer]
    description: str
    source: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()


ENTRIES = (
    OptimInfo(
        "adafactor",
        Adafactor,
        "Adam with a second moment factored into rows and columns, step sizes relative to the parameter",
        "https://arxiv.org/abs/1804.04235",
    ),
    OptimInfo(
        "adam",
        Adam,
        "Adaptive moments, with L2, decoupled or fully decoupled weight decay",
        "https://arxiv.org/abs/1412.6980",
    ),
    OptimInfo(
        "adam_weight_decay",
        AdamWeightDecay,
        "Keras' Adam with decoupled decay chosen by parameter name and gradient clipping",
        "https://arxiv.org/abs/1711.05101",
    ),
    OptimInfo(
        "adamw",
        AdamW,
        "Adam with decoupled weight decay, transformers' numbers",
        "https://arxiv.org/abs/1711.05101",
    ),
    OptimInfo(
        "lion",
        Lion,
        "Sign of an interpolated momentum; one state tensor",
        "https://arxiv.org/abs/2302.06675",
    ),
    OptimInfo(
        "momentum",
        SGD,
        "Stochastic gradient descent with heavy-ball momentum",
        "https://doi.org/10.1016/0041-5553(64)90137-5",
        {"momentum": 0.9, "nesterov": False},
    ),
    OptimInfo(
        "sgd",
        SGD,
        "Stochastic gradient descent with Nesterov momentum",
        "https://proceedings.mlr.press/v28/sutskever13.html",
        {"momentum": 0.9, "nesterov": True},
        aliases=("nesterov",),
    ),
)
