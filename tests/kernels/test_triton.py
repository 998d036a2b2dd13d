"""The generated Triton kernels, in Triton's interpreter: `interpreted.py`, in a process of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("interpreted.py")

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def passed(chosen):
    """How many of the cases were passed."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    # numpy warns of what overflows, as some of it should.
    command = [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider", "-m", chosen, str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return int(done.stdout.rsplit(" passed", 1)[0].split()[-1])


def test_in_the_interpreter():
    assert passed("not slow") > 50


@pytest.mark.slow
def test_every_name_in_every_form_in_the_interpreter():
    assert passed("slow") > 300
