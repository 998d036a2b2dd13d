"""Machines without a C++ compiler, or with one that fails: the same numbers, and one warning where speed is lost."""

from __future__ import annotations

import warnings

import pytest
import torch
from cases.lamb import LAMB
from cases.lion import LION
from harness import assert_same, feed, parameters, train, values
from ranks import run_code
from tiers import every_kind_of_variant

from hfoptim.engine import backends
from hfoptim.engine.backends import compiled, eager_tiled
from hfoptim.engine.codegen import build, native


@pytest.fixture
def no_compiler(monkeypatch):
    """As in a new process on a machine without one."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    for name in ("compiler", "_machine", "has_float16", "missing", "load"):
        monkeypatch.setattr(build, name, getattr(build, name).__wrapped__)
    monkeypatch.setattr(native, "_programs", {})
    monkeypatch.setattr(native, "_kernels", {})
    compiled.warn_uncompiled.cache_clear()
    yield
    compiled.warn_uncompiled.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@every_kind_of_variant
def test_large_tensors_of_every_dtype(entry, variant, dtype, no_compiler, monkeypatch):
    # Every runner goes through the trace of a rule for tensors that count as large.
    monkeypatch.setattr(eager_tiled, "LARGE", 1)
    assert build.compiler() is None
    for options in ({"foreach": False}, {"foreach": True}, {}):
        params = parameters(("vector", "matrix", "wide"), dtype)
        start = values(params)
        train(entry.cls(list(params.items()), **{**variant.options, **options}), params, range(1, 4))
        assert all(torch.isfinite(p).all() for p in params.values())
        # Where steps are small, numbers with few bits may stay where they are.
        assert dtype is not torch.float32 or any(not torch.equal(p, start[name]) for name, p in params.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_float16_goes_piece_by_piece_whatever_the_compiler_knows(dtype, no_compiler, monkeypatch):
    monkeypatch.setattr(eager_tiled, "LARGE", 1)
    taken = []
    step = eager_tiled._Step.run
    monkeypatch.setattr(eager_tiled._Step, "run", lambda self: taken.append(self) or step(self))
    params = parameters(("matrix", "wide"), dtype)
    train(LAMB.cls(list(params.items())), params, range(1, 3))
    assert len(taken) >= 4


def test_float16_is_not_compiled_for_by_a_compiler_that_does_not_know_it(monkeypatch):
    if compiled.missing() is not None:
        pytest.skip(f"needs {compiled.missing()}")
    monkeypatch.setattr(native, "_kernels", {})
    monkeypatch.setattr(build, "has_float16", lambda: False)
    monkeypatch.setitem(backends.COMPILE_FROM, "cpu", 1)
    compiled.warn_uncompiled.cache_clear()
    runs = []
    for options in ({}, {"foreach": True}):
        params = parameters(("matrix", "wide"), torch.float16)
        optimizer = LION.cls(list(params.items()), weight_decay=0.1, **options)
        if not options:
            with pytest.warns(UserWarning, match="float16"):
                train(optimizer, params, range(1, 4))
        else:
            train(optimizer, params, range(1, 4))
        runs.append(values(params))
    assert native.compiled() == 0
    assert_same(*runs)
    optimizer = LION.cls(list(params.items()), fused=True)
    with pytest.raises(RuntimeError, match="float16"):
        optimizer.step()


def test_the_speed_that_is_lost_is_told_once(no_compiler, monkeypatch):
    monkeypatch.setitem(backends.COMPILE_FROM, "cpu", 1)
    monkeypatch.setattr(backends, "TELL_FROM", 1)
    params = parameters(("matrix", "wide"))
    with pytest.warns(UserWarning, match=r"without compiled kernels.*need a C\+\+ compiler"):
        train(LION.cls(list(params.items())), params, range(1, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(LION.cls(list(params.items())), params, range(4, 6))
    compiled.warn_uncompiled.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(LION.cls(list(params.items()), fused=False), params, range(6, 8))
        monkeypatch.setitem(backends.COMPILE_FROM, "cpu", 1 << 40)  # small models are stepped so anyway
        train(LION.cls(list(params.items())), params, range(8, 10))


@pytest.mark.parametrize(("shape", "told"), [((300, 400), False), ((1000, 1000), True)], ids=str)
def test_only_speed_that_matters_is_told_of(shape, told, no_compiler):
    """Both would be compiled; the smaller one's step is a millisecond longer."""
    param = torch.nn.Parameter(torch.ones(shape))
    assert backends.size_of(param) >= backends.COMPILE_FROM["cpu"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(LION.cls([param]), {"only": param}, range(1, 3))
    assert len([each for each in caught if "compiled kernels" in str(each.message)]) == told


def test_asked_for_kernels_are_an_error(no_compiler):
    params = parameters(("matrix",))
    optimizer = LION.cls(list(params.items()), fused=True)
    for t in range(1, 3):
        feed(params, t)
        with pytest.raises(RuntimeError, match=r"fused=True needs a C\+\+ compiler"):
            optimizer.step()


@pytest.mark.parametrize("name", ["lion", "lamb"])
def test_a_compiler_that_fails_for_a_kernel(name, monkeypatch):
    """The disk is full by then, for example; LAMB has a probe, too, which a kernel is made for."""
    if compiled.missing() is not None:
        pytest.skip(f"needs {compiled.missing()}")

    def fails(source):
        raise RuntimeError("g++ could not compile a kernel of hfoptim:\nNo space left on device")

    cls = {"lion": LION, "lamb": LAMB}[name].cls
    monkeypatch.setattr(native, "_kernels", {})
    monkeypatch.setattr(build, "load", fails)
    monkeypatch.setitem(backends.COMPILE_FROM, "cpu", 1)
    compiled.warn_uncompiled.cache_clear()
    mine, other = parameters(("matrix", "wide")), parameters(("matrix", "wide"))
    with pytest.warns(UserWarning, match=r"without compiled kernels(?s:.*)No space left on device") as caught:
        train(cls(list(mine.items()), weight_decay=0.1), mine, range(1, 4))
    assert len(caught) == 1
    train(cls(list(other.items()), weight_decay=0.1, foreach=False), other, range(1, 4))
    assert_same(values(mine), values(other))
    params = parameters(("matrix", "wide"))
    start = values(params)
    optimizer = cls(list(params.items()), fused=True)
    for t in range(1, 3):  # at every step, not at the first alone
        feed(params, t)
        with pytest.raises(RuntimeError, match="No space left on device"):
            optimizer.step()
    assert_same(values(params), start)
    compiled.warn_uncompiled.cache_clear()


def test_a_process_without_a_compiler(tmp_path):
    program = """
import torch, hfoptim
param = torch.nn.Parameter(torch.ones(2049, 2048, dtype=torch.float16))
optimizer = hfoptim.Lamb([param], lr=1e-2)
param.grad = torch.ones_like(param)
optimizer.step()
print(float(param.detach().double().mean()) < 1.0)
"""
    assert run_code(program, folder=tmp_path, PATH="", CXX="").split()[-1] == "True"  # after a warning
