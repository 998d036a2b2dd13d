"""The generated Triton kernels, in Triton's interpreter: the arithmetic, not the speed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from operator_cases import ELEMENTWISE, differing, operands

WORKER = Path(__file__).with_name("triton_worker.py")
# The bf16 parameters of a run may end a unit in the last place apart, which is a good part of what they moved.
LIMITS = {"float32": 1e-4, "float64": 1e-11, "kahan": 0.5, "stochastic": 0.5, "bf16_state": 1e-3}

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(the lines that the worker prints, what each operation gives by dtype)."""
    path = tmp_path_factory.mktemp("triton") / "operations.pt"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(WORKER), str(path), "adamw", "lion", "adopt", "ademamix"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [line.split() for line in done.stdout.splitlines()], torch.load(path)


def test_kernels_follow_the_loop(found):
    lines, _ = found
    assert len(lines) == 4 * len(LIMITS)
    for name, form, far in lines:
        assert float(far) < LIMITS[form], (name, form, far)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_operation_gives_what_torch_gives(found, dtype):
    x, y = operands(dtype)
    wrong = {}
    for (name, fn), mine in zip(ELEMENTWISE.items(), found[1][dtype], strict=True):
        if bad := differing(name, mine, x, y, units=64):
            wrong[name] = [(float(x[i]), float(y[i]), float(mine[i]), float(fn(x, y)[i])) for i in bad[:4]]
    assert not wrong
