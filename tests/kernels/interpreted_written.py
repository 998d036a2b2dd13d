"""What the Triton functions that are written by hand do, in Triton's interpreter.

test_triton.py runs this file in a process of its own, where TRITON_INTERPRET=1 is set before anything imports Triton.
"""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import triton as language  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from interpreted import numbers_of_single_entries  # noqa: F401

import hfoptim
from hfoptim.engine import backends, storage
from hfoptim.engine.backends import products, triton
from hfoptim.engine.codegen.triton import drawing, launch, written
from hfoptim.optimizers.shared import newton_schulz

# They are of the engine: no part of an optimizer's budget.
pytestmark = pytest.mark.kind


@pytest.fixture
def on_cpus(monkeypatch):
    monkeypatch.setattr(triton, "DEVICES", ("cpu", "meta"))
    monkeypatch.setattr(triton, "missing", lambda: None)
    monkeypatch.setattr(backends, "choose", lambda *_: (backends.MATRIX_TRITON_ASKED, backends.TRITON_ASKED))
    for each in (drawing.problem, products.problem):
        each.cache_clear()
    yield
    for each in (drawing.problem, products.problem):
        each.cache_clear()


@pytest.fixture
def started(monkeypatch):
    """The names of the functions that were launched."""
    names = []
    real = launch.start

    def start(function, *arguments):
        names.append(getattr(function, "__name__", None) or function.fn.__name__)
        real(function, *arguments)

    monkeypatch.setattr(launch, "start", start)
    return names


# -- noise -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "fine"), [(torch.float32, 2e-6), (torch.float64, 1e-13)], ids=str)
def test_noise_is_that_of_the_loop(dtype, fine):
    # Blocks, ragged ones, none; in float32 more tensors than are looked through at a time.
    sizes = [3000, 1024, 0, 1, 70, *([5] * 260 if dtype is torch.float32 else [])]
    tensors = [torch.full((size,), torch.nan, dtype=dtype) for size in sizes]
    seeds = [storage.drawing_seed(5, place, 7 * place) for place in range(len(sizes))]
    drawing.draw(tensors, seeds)
    for tensor, seed in zip(tensors, seeds, strict=True):
        torch.testing.assert_close(
            tensor, storage.normal(tensor.shape, seed, dtype, tensor.device), rtol=fine, atol=fine
        )


@language.jit
def of_bits(bits, out, COUNT: tl.constexpr, DOUBLE: tl.constexpr):
    at = tl.arange(0, COUNT)
    size, angle = tl.load(bits + 2 * at).to(tl.uint32), tl.load(bits + 2 * at + 1).to(tl.uint32)
    tl.store(out + at, written.normal(size, angle, DOUBLE))


@pytest.mark.parametrize(("dtype", "fine"), [(torch.float32, 1e-6), (torch.float64, 1e-14)], ids=str)
def test_noise_is_right_where_its_distribution_ends(dtype, fine):
    some = [0, 1, 0x3FFFFFFF, 0x40000000, 0x7FFFFFFF, 0x80000000, 0xC0000000, 0xFFFFFFFE]
    pairs = [(size, angle) for size in some for angle in some]
    out = torch.empty(len(pairs), dtype=dtype)
    of_bits[(1,)](torch.tensor(pairs), out, len(pairs), dtype is torch.float64)
    size, angle = ((torch.tensor(pairs).double() + 0.5) / 2**32).unbind(-1)
    # Close to 1 a logarithm in double precision is short of digits, too.
    radius = torch.where(size < 0.5, -2 * size.log(), -2 * torch.log1p(size - 1)).sqrt()
    turn = torch.where(angle < 0.5, angle, 1 - angle)
    right = radius * (2 * math.pi * (0.25 - turn)).sin()
    torch.testing.assert_close(out.double(), right, rtol=2 * fine, atol=fine)
    assert float(out.abs().max()) > 6.5


def trained(name, by, **options):
    g = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=g)) for shape in ((40, 60), (7,), (), (0, 3), (2, 3, 4))]
    optimizer = hfoptim.create_optimizer_v2(params, name, lr=0.1, **by, **options)
    for _ in range(3):
        for param in params:
            param.grad = torch.randn(param.shape, generator=g)
        optimizer.step()
    return params


@pytest.mark.parametrize(
    ("name", "options"), [("noisy_sgd", {}), ("spam", {"update_proj_gap": 2, "density": 0.5})], ids=str
)
def test_steps_with_noise_follow_the_loop_with_one_launch_more(name, options, on_cpus, started, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = trained(name, {"fused": True}, **options)
    # Three steps of one launch; what was drawn at each of them, or at the second. And the trial.
    drawn, steps = (3, 3) if name == "noisy_sgd" else (1, 3)
    assert started.count("drawn") == drawn + 1
    assert len(started) - started.count("drawn") >= steps
    monkeypatch.setattr(backends, "choose", lambda *_: (backends.LOOP,))
    for mine, other in zip(ours, trained(name, {"foreach": False}, **options), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_noise_that_a_kernel_gets_wrong_is_torchs(on_cpus, monkeypatch):
    monkeypatch.setattr(backends, "choose", lambda *_: (backends.LOOP,))
    others = trained("noisy_sgd", {"foreach": False})
    monkeypatch.setattr(backends, "choose", lambda *_: (backends.MATRIX_TRITON_ASKED, backends.TRITON_ASKED))
    monkeypatch.setattr(drawing, "draw", lambda tensors, seeds: [tensor.fill_(0.1) for tensor in tensors])
    with pytest.warns(UserWarning, match=r"draws noise by torch's operations.*numbers that are .* away on cpu") as told:
        ours = trained("noisy_sgd", {"fused": True})
    assert len(told) == 1
    for mine, other in zip(ours, others, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


# -- symmetric products ----------------------------------------------------------------------------------------------


def stack(rows, columns, dtype, seed=0, turned=False):
    values = torch.randn(3, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = (values / columns**0.5).to(dtype)
    return x.mT.contiguous().mT if turned else x


@pytest.mark.parametrize(
    ("dtype", "shape", "turned"),
    [
        (torch.float32, (200, 136), False),
        (torch.float32, (257, 1), True),
        (torch.float16, (200, 136), True),
        (torch.float16, (5, 300), False),
        (torch.bfloat16, (256, 128), False),
        (torch.bfloat16, (130, 65), True),
    ],
    ids=str,
)
def test_symmetric_products_are_those_of_double_precision(dtype, shape, turned):
    x = stack(*shape, dtype, turned=turned)
    made = products.symmetric(x, None, 1.0, 0.0)
    assert made.dtype is dtype
    exact = x.double() @ x.double().mT
    # Half a rounding, and what sums in float32 add to it.
    fine = 0.51 * torch.finfo(dtype).eps + 1e-5
    assert float((made.double() - exact).abs().max() / exact.abs().max()) <= fine
    # What is off the diagonal's tiles is there twice.
    tiles = torch.arange(shape[0]) // products.SIDE
    mirrored = tiles[:, None] != tiles
    assert torch.equal(made[:, mirrored], made.mT[:, mirrored])
    made = (made + made.mT) / 2
    two = products.symmetric(made, made, 0.25, -1.5)
    exact = 0.25 * made.double() @ made.double() - 1.5 * made.double()
    assert float((two.double() - exact).abs().max() / exact.abs().max()) <= fine


def test_every_tile_of_many_is_computed():
    # The tile is found by a square root: of all pairs of 18 tiles a side.
    x = stack(18, 3, torch.float32)[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "SIDE", 1)
        patch.setattr(products, "DEPTH", 4)
        made = products.symmetric(x, None, 1.0, 0.0)
    torch.testing.assert_close(made, x @ x.mT)


@pytest.mark.parametrize(("shape", "almost"), [((144, 160), False), ((160, 144), True)], ids=str)
def test_newton_schulz_takes_them_on_a_gpu(shape, almost, on_cpus, started, monkeypatch):
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    coefficients = newton_schulz.iterations("quintic", 2)

    def made():
        return newton_schulz.orthogonalized(x, coefficients, 1e-7, torch.bfloat16, 1.0, almost)

    plain = made()  # too few rows
    assert started == []
    monkeypatch.setattr(products, "LEAST", 128)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = made()
    assert started == ["symmetric"] * (8 + 4)  # the trial's, and two in each iteration
    started.clear()
    torch.testing.assert_close(made(), ours, rtol=0.0, atol=0.0)
    assert started == ["symmetric"] * 4
    torch.testing.assert_close(ours, plain, rtol=0.0, atol=0.02)
    # Other sides and numbers are torch's.
    newton_schulz.orthogonalized(x[:, 1:, 1:], coefficients, 1e-7, torch.bfloat16)
    newton_schulz.orthogonalized(x, coefficients, 1e-7, torch.float32)
    assert len(started) == 4


def test_products_that_a_kernel_gets_wrong_are_torchs(on_cpus, monkeypatch):
    monkeypatch.setattr(products, "LEAST", 1)
    real = products.symmetric

    def wrong(x, added, alpha, beta):
        return real(x, added, alpha, beta) * 1.05

    monkeypatch.setattr(products, "symmetric", wrong)
    x = stack(16, 32, torch.bfloat16)
    with pytest.warns(UserWarning, match=r"both halves of symmetric products.*roundings away on cpu"):
        gram = products.gram(x)
    assert torch.equal(gram, x @ x.mT)
    with warnings.catch_warnings():  # told once
        warnings.simplefilter("error")
        assert torch.equal(products.square(gram, 2.0, 0.5), torch.baddbmm(gram, gram, gram, beta=2.0, alpha=0.5))


def test_a_kernel_that_does_not_run_multiplies_nothing(on_cpus, monkeypatch):
    monkeypatch.setattr(products, "LEAST", 1)

    def broken(*_):
        raise RuntimeError("out of resources")

    monkeypatch.setattr(launch, "start", broken)
    x = stack(16, 32, torch.bfloat16)
    with pytest.warns(UserWarning, match=r"does not run \(RuntimeError: out of resources\)"):
        gram = products.gram(x)
    assert torch.equal(gram, x @ x.mT)
