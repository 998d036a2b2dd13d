"""What transformers leaves in the environment, taken back.

`TrainingArguments(bf16=True)` of 4.57 sets ACCELERATE_MIXED_PRECISION, and all later ones of the process, and of those
that it starts, read it as their default; `torch_compile=True` sets ACCELERATE_DYNAMO_BACKEND, which Accelerate reads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

PREFIX = "ACCELERATE_"


@contextmanager
def accelerates_variables_restored() -> Iterator[None]:
    """What is done here leaves Accelerate's variables as they were."""
    before = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith(PREFIX) and name not in before]:
            del os.environ[name]
        os.environ.update(before)
