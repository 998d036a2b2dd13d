"""The engine: runs any rule over many parameters. Knows no optimizer by name."""

from hfoptim.engine.declaration import Name, RuleOptimizer
from hfoptim.engine.distributed.dtensor import is_dtensor, local
from hfoptim.engine.hyperparameters import Hyper, hyper
from hfoptim.engine.inputs import Curvature, Due
from hfoptim.engine.options import ENGINE_DEFAULTS
from hfoptim.engine.plan import Decay
from hfoptim.engine.rule import (
    ELEMENT,
    MATRIX,
    TENSOR,
    Group,
    MatrixFunction,
    Probe,
    Rule,
    Scalars,
    Scope,
    State,
    add_scaled,
    bias_correction,
    cautious,
    clone,
    ema,
    in_bfloat16,
    noise,
    nonnegative,
    place,
    rms,
    rule,
    scalar,
    zeros,
    zeros_over,
    zeros_without,
)
from hfoptim.engine.run_state import RunState
from hfoptim.engine.unwrapping import unmasked, unwrap, unwrap_all

__all__ = [
    "ELEMENT",
    "ENGINE_DEFAULTS",
    "MATRIX",
    "TENSOR",
    "Curvature",
    "Decay",
    "Due",
    "Group",
    "Hyper",
    "MatrixFunction",
    "Name",
    "Probe",
    "Rule",
    "RuleOptimizer",
    "RunState",
    "Scalars",
    "Scope",
    "State",
    "add_scaled",
    "bias_correction",
    "cautious",
    "clone",
    "ema",
    "hyper",
    "in_bfloat16",
    "is_dtensor",
    "local",
    "noise",
    "nonnegative",
    "place",
    "rms",
    "rule",
    "scalar",
    "unmasked",
    "unwrap",
    "unwrap_all",
    "zeros",
    "zeros_over",
    "zeros_without",
]
