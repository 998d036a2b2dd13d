"""Products of matrices on a CPU: those that are symmetric in strips, those of 16-bit numbers in float32."""

import pytest
import torch

from hfoptim.engine.backends import products

SIXTEEN = [torch.bfloat16, torch.float16]


def stack(*shape, dtype=torch.float64):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (x / shape[-1] ** 0.5).to(dtype)


@pytest.mark.parametrize("rows", [1, 2, 5, 8, 17, 30])
@pytest.mark.parametrize("batch", [1, 3])
def test_symmetric_products_in_strips_are_those_of_torch(monkeypatch, batch, rows):
    x = stack(batch, rows, 11)
    whole = products.gram(x)
    squared = products.square(whole, -1.5, 0.25)
    torch.testing.assert_close(whole, x @ x.mT)
    monkeypatch.setattr(products, "IN_STRIPS", 1)
    torch.testing.assert_close(products.gram(x), whole)
    torch.testing.assert_close(products.square(whole, -1.5, 0.25), squared)
    torch.testing.assert_close(squared, -1.5 * whole + 0.25 * whole @ whole)
    # Columns one after the other, as the rows of a matrix that is taller than wide are.
    torch.testing.assert_close(products.gram(x.mT.contiguous().mT), whole)
    torch.testing.assert_close(products.commuting(squared, whole), squared @ whole)


def test_strips_leave_six_of_sixteen_parts_out(monkeypatch):
    taken = []
    real = torch.bmm

    def counted(left, right, out):
        taken.append(left.shape[-2] * left.shape[-1] * right.shape[-1])
        return real(left, right, out=out)

    monkeypatch.setattr(torch, "bmm", counted)
    products.gram(stack(1, products.IN_STRIPS, 64, dtype=torch.float32))
    assert sum(taken) == 10 / 16 * products.IN_STRIPS**2 * 64
    taken.clear()
    products.gram(stack(1, products.IN_STRIPS - 1, 64, dtype=torch.float32))
    assert taken == []


@pytest.mark.parametrize("has", [False, True])
@pytest.mark.parametrize("dtype", SIXTEEN)
def test_products_of_16_bits_are_rounded_once(monkeypatch, dtype, has):
    monkeypatch.setattr(products, "has_instructions", lambda _: has)
    x = stack(2, 24, 40, dtype=dtype)
    gram = products.gram(x)
    double, wide = gram.double(), x.double()
    for made, exact in (
        (gram, wide @ wide.mT),
        (products.square(gram, -1.5, 0.25), -1.5 * double + 0.25 * double @ double),
        (products.product(gram, x, 3.5), 3.5 * wide + double @ wide),
    ):
        assert made.dtype is dtype
        # Half a place of the result, and what float32 has lost in adding up.
        off = (made.double() - exact).abs() - 1e-6 * exact.abs().max()
        assert (off <= torch.finfo(dtype).eps / 2 * exact.abs()).all()


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_a_cpu_without_instructions_for_16_bits_multiplies_in_float32(monkeypatch, dtype):
    seen = []
    real = torch.baddbmm

    def watched(added, left, right, **options):
        seen.append({added.dtype, left.dtype, right.dtype})
        return real(added, left, right, **options)

    monkeypatch.setattr(torch, "baddbmm", watched)
    x = stack(1, 4, 8, dtype=dtype)
    for has, multiplied in ((False, torch.float32), (True, dtype)):
        monkeypatch.setattr(products, "has_instructions", lambda _, has=has: has)
        products.product(products.square(products.gram(x), 1.0, 1.0), x, 1.0)
        assert seen == [{multiplied}] * 2
        seen.clear()


@pytest.mark.parametrize(
    ("machine", "bf16", "native", "want"),
    [("x86_64", True, False, False), ("AMD64", True, True, True), ("arm64", True, False, True)],
)
def test_instructions_of_bfloat16_are_asked_of_torch(monkeypatch, machine, bf16, native, want):
    monkeypatch.setattr(products.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: native)
    asked = products.has_instructions.__wrapped__
    assert asked(torch.bfloat16) is want
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert asked(torch.bfloat16) is False
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert asked(torch.bfloat16) is False
    assert asked(torch.float16) is False
