"""The Triton kernels that are written by hand as NVIDIA's assembler sees them, for devices that are not there."""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest
import torch

from hfoptim.engine.backends import products

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.kind,
]

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def device_code(tmp_path_factory):
    """The tool, with a cache of Triton's of these tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("device_code")


def compiled(device_code, arch, function, *arguments):
    with device_code.recorded() as launches:
        function(*arguments)
    (one,) = launches
    return device_code.compiled(one, arch)


# How a matrix is multiplied by the tensor cores of compute capability 9.0, and of 8.0.
MULTIPLIED = {90: r"wgmma\.mma_async\.\S*\.f32\.bf16\.bf16", 80: r"mma\.sync\.\S*\.f32\.bf16\.bf16\.f32"}


@pytest.mark.slow
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("arch", [90, 80])
def test_symmetric_products_are_tensor_cores_without_spills(device_code, arch, turned):
    x = torch.empty(2, 768, 3072, dtype=torch.bfloat16)
    x = x.mT.contiguous().mT if turned else x
    for added in (None, torch.empty(2, 768, 768, dtype=torch.bfloat16)):
        code = compiled(device_code, arch, products._product, x, added, 1.5, 0.5)
        assert re.search(MULTIPLIED[arch], code.ptx)
        assert code.needs()["spills"] == 0
        # Tiles go to shared memory by accesses of 16 bytes, while others are multiplied.
        assert "cp.async.cg.shared.global" in code.ptx
        assert "st.global.v4.b32" in code.ptx
        assert not re.search(r"(ld|st)\.global(\.L1::\w+)?\.b(8|16)\b", code.ptx)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "registers"), [(torch.float32, 64), (torch.float64, 168)], ids=str)
@pytest.mark.parametrize("arch", [90, 80])
def test_noise_needs_few_registers(device_code, arch, dtype, registers):
    from hfoptim.engine.codegen.triton import drawing

    code = compiled(device_code, arch, drawing.draw, [torch.empty(5000, dtype=dtype)], [3])
    assert code.needs()["spills"] == 0
    assert code.needs()["registers"] <= registers
