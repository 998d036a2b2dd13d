"""The engine: runs any rule over many parameters. Knows no optimizer by name."""

from hfoptim.engine.apply import Decay
from hfoptim.engine.optimizer import ENGINE_DEFAULTS, EngineOptions, RuleOptimizer, unwrap
from hfoptim.engine.rule import (
    ELEMENT,
    MATRIX,
    TENSOR,
    Rule,
    Scope,
    add_scaled,
    bias_correction,
    ema,
    rms,
    rule,
    scalar,
    zeros,
    zeros_without,
)

__all__ = [
    "ELEMENT",
    "ENGINE_DEFAULTS",
    "MATRIX",
    "TENSOR",
    "Decay",
    "EngineOptions",
    "Rule",
    "RuleOptimizer",
    "Scope",
    "add_scaled",
    "bias_correction",
    "ema",
    "rms",
    "rule",
    "scalar",
    "unwrap",
    "zeros",
    "zeros_without",
]
