"""Triton kernels in Triton's interpreter: `interpreted.py` and `interpreted_written.py`, in a process of their own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hfoptim.engine import backends
from hfoptim.engine.backends import compiled, triton
from hfoptim.engine.options import ENGINE_DEFAULTS

CASES = [Path(__file__).with_name(name) for name in ("interpreted.py", "interpreted_written.py")]

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def passed(chosen):
    """How many of the cases were passed."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    # numpy warns of what overflows, as some of it should.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-W",
        "ignore",
        "-p",
        "no:cacheprovider",
        "-m",
        chosen,
        *map(str, CASES),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return int(done.stdout.rsplit(" passed", 1)[0].split()[-1])


@needs_triton
def test_in_the_interpreter():
    assert passed("not slow") > 40


@needs_triton
@pytest.mark.slow
def test_every_name_in_every_form_in_the_interpreter():
    assert passed("slow") > 300


LARGE, SMALL = 10**9, 10**3


@pytest.mark.parametrize("device", ["cuda", "xpu"])
def test_gpus_that_triton_knows_take_it(device, monkeypatch):
    monkeypatch.setattr(triton, "missing", lambda: None)
    assert backends.choose(ENGINE_DEFAULTS, device, LARGE) == (backends.MATRIX_TRITON, backends.TRITON)
    assert backends.choose(ENGINE_DEFAULTS, device, SMALL) == (backends.MATRIX, backends.FOREACH)
    assert backends.choose({**ENGINE_DEFAULTS, "fused": True}, device, SMALL)[-1] is backends.TRITON_ASKED
    assert backends.choose({**ENGINE_DEFAULTS, "fused": False}, device, LARGE)[-1] is backends.FOREACH
    # Whatever the form of state.
    coded = {**ENGINE_DEFAULTS, "state_dtype": "4bit", "master_weights": 8, "fused": True}
    assert backends.choose(coded, device, LARGE)[-1] is backends.TRITON_ASKED


def test_gpus_without_triton_are_told_of(monkeypatch):
    monkeypatch.setattr(triton, "missing", lambda: "Triton")
    compiled.warn_uncompiled.cache_clear()
    with pytest.warns(UserWarning, match="they need Triton"):
        assert backends.choose(ENGINE_DEFAULTS, "cuda", LARGE)[-1] is backends.FOREACH
    with pytest.raises(RuntimeError, match="fused=True needs Triton"):
        backends.choose({**ENGINE_DEFAULTS, "fused": True}, "cuda", LARGE)


def test_other_devices_have_the_multi_tensor_backend(recwarn):
    assert backends.choose(ENGINE_DEFAULTS, "mps", LARGE)[-1] is backends.FOREACH
    assert not recwarn
    with pytest.raises(RuntimeError, match="not for mps"):
        backends.choose({**ENGINE_DEFAULTS, "fused": True}, "mps", LARGE)
