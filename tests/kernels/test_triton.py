"""The generated Triton kernels, in Triton's interpreter: the arithmetic, not the speed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("triton_worker.py")
# The bf16 parameters of a run may end a unit in the last place apart, which is a good part of what they moved.
LIMITS = {"float32": 1e-4, "float64": 1e-11, "kahan": 0.5, "stochastic": 0.5, "bf16_state": 1e-3}


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_kernels_follow_the_loop():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(WORKER), "adamw", "lion", "adopt", "ademamix"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 4 * len(LIMITS)
    for name, form, far in lines:
        assert float(far) < LIMITS[form], (name, form, far)
