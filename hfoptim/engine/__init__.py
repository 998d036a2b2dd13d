"""The engine: runs any rule over many parameters. Knows no optimizer by name."""

from hfoptim.engine.apply import Decay
from hfoptim.engine.declaration import Name, RuleOptimizer
from hfoptim.engine.hyperparameters import Hyper, hyper
from hfoptim.engine.optimizer import unmasked, unwrap, unwrap_all
from hfoptim.engine.options import ENGINE_DEFAULTS, EngineOptions
from hfoptim.engine.rule import (
    ELEMENT,
    MATRIX,
    TENSOR,
    Probe,
    Rule,
    Scope,
    State,
    add_scaled,
    bias_correction,
    clone,
    ema,
    nonnegative,
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
    "Hyper",
    "Name",
    "Probe",
    "Rule",
    "RuleOptimizer",
    "Scope",
    "State",
    "add_scaled",
    "bias_correction",
    "clone",
    "ema",
    "hyper",
    "nonnegative",
    "rms",
    "rule",
    "scalar",
    "unmasked",
    "unwrap",
    "unwrap_all",
    "zeros",
    "zeros_without",
]
