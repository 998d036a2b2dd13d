"""The comparison job: the same model, text and steps, several optimizers, several learning rates each."""

from hfoptim.compare.config import CompareConfig, CompareError
from hfoptim.compare.job import compare, resumed_config
from hfoptim.compare.results import Results, RunRecord

__all__ = ["CompareConfig", "CompareError", "Results", "RunRecord", "compare", "resumed_config"]
