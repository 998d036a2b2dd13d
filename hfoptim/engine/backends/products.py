"""Products of matrices, of which those that are symmetric are computed by half and mirrored.

On a GPU cuBLAS has this for single matrices in float32 and float64, not for bfloat16. So it is a kernel in Triton, of
which each program computes a tile on or below the diagonal, and stores it twice: (1 + 1 / tiles) / 2 of the operations.
On a CPU it is four strips, each from the diagonal on: 10 of 16 parts.

A CPU without instructions for 16-bit numbers multiplies them in float32, and rounds the result: that is what such
instructions do, and up to 80 times as fast as torch's own loop for them.
"""

from __future__ import annotations

import platform
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine.backends import triton
from hfoptim.engine.codegen.triton import launch
from hfoptim.engine.codegen.triton.first_use import told_once

# Where it is taken: coarser numbers, which the tensor cores multiply; sides that are multiples of 16; and so many rows
# that a matrix has several tiles a side. Narrower ones have nothing to gain, and torch's kernels are those of the
# vendor. No GPU has been measured.
DTYPES = (torch.bfloat16, torch.float16)
LEAST = 512
# Rows and columns of a tile, entries of a row that are multiplied at a time, and warps.
SIDE, DEPTH, WARPS = 128, 64, 8

# Rows from which a symmetric product is computed in strips: on a CPU, where 256 rows were measured to gain nothing, in
# float32 and bfloat16; on other devices.
IN_STRIPS, IN_STRIPS_ELSEWHERE = 512, 1536


def gram(x: Tensor) -> Tensor:
    """X X^T.

    Args:
        x: a stack of matrices, of three dimensions.
    """
    if _takes(x):
        return symmetric(x, None, 1.0, 0.0)
    wide = _multiplied(x)
    return commuting(wide, wide.mT).to(x.dtype)


def square(x: Tensor, own: float, squared: float) -> Tensor:
    """`own` X + `squared` X^2.

    Args:
        x: a stack of symmetric matrices, of three dimensions.
        own, squared: the factors.
    """
    if _takes(x) and x.is_contiguous():
        return symmetric(x, x, squared, own)
    wide = _multiplied(x)
    return commuting(wide, wide, wide, own, squared).to(x.dtype)


def product(matrix: Tensor, x: Tensor, own: float) -> Tensor:
    """`own` X + M X.

    Args:
        matrix: M, a stack of square matrices, of three dimensions.
        x: a stack of matrices, of three dimensions.
        own: the factor of X.
    """
    wide = _multiplied(x)
    return torch.baddbmm(wide, _multiplied(matrix), wide, beta=own).to(x.dtype)


def commuting(
    left: Tensor, right: Tensor, added: Tensor | None = None, own: float = 1.0, factor: float = 1.0
) -> Tensor:
    """`own` D + `factor` L R, for a product that is symmetric: X X^T, or of symmetric matrices that commute.

    Args:
        left, right: L and R, stacks of matrices, of three dimensions.
        added: D, symmetric; without it there is the product alone.
        own, factor: the factors, with D.
    """
    rows = left.shape[-2]
    if rows < (IN_STRIPS if left.device.type == "cpu" else IN_STRIPS_ELSEWHERE):
        return left @ right if added is None else torch.baddbmm(added, left, right, beta=own, alpha=factor)
    out, strip = left.new_empty(len(left), rows, rows), -(-rows // 4)
    for i in range(0, rows, strip):
        j = i + strip
        across, into = (left[:, i:j], right[..., i:]), out[:, i:j, i:]
        if added is None:
            torch.bmm(*across, out=into)
        else:
            torch.baddbmm(added[:, i:j, i:], *across, beta=own, alpha=factor, out=into)
        out[:, j:, i:j] = out[:, i:j, j:].mT
    return out


def _multiplied(x: Tensor) -> Tensor:
    """The same numbers as they are multiplied: in float32 where a CPU has nothing for theirs."""
    wide = x.device.type == "cpu" and x.dtype in DTYPES and not has_instructions(x.dtype)
    return x.float() if wide else x


@cache
def has_instructions(dtype: torch.dtype) -> bool:
    """Whether this machine's CPU multiplies numbers of 16 bits, which torch then does by oneDNN."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype is torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    # oneDNN also takes x86 processors with AVX-512 alone, where it multiplies in float32 itself.
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return platform.machine().lower() not in ("x86_64", "amd64") or any(getattr(torch.cpu, name)() for name in asked)


def _takes(x: Tensor) -> bool:
    """Whether the kernel is taken: by dtype, size and device, and by whether it is right there."""
    if x.dtype not in DTYPES or x.shape[-2] < LEAST or x.device.type not in triton.DEVICES:
        return False
    if type(x) is not Tensor or x.requires_grad or not x.numel() or triton.missing() is not None:
        return False
    # Else every number is read by itself, for which there are not registers enough.
    if any(number % 16 for number in (*x.shape[-2:], *(stride for stride in x.stride() if stride > 1))):
        return False
    return problem(x.device, x.dtype) is None


def symmetric(x: Tensor, added: Tensor | None, alpha: float, beta: float) -> Tensor:
    """alpha X X^T + beta D, for a contiguous D of the result's shape; without D alpha X X^T."""
    from hfoptim.engine.codegen.triton import written  # needs Triton

    batch, rows, columns = x.shape
    out = x.new_empty(batch, rows, rows)
    tiles = -(-rows // SIDE)
    given: list[Any] = [x, out if added is None else added, out, rows, columns, *x.stride(), float(alpha), float(beta)]
    with launch.on(x.device):
        launch.start(
            written.symmetric, batch * tiles * (tiles + 1) // 2, [*given, added is not None, SIDE, DEPTH], WARPS
        )
    return out


@told_once("computes both halves of symmetric products, by torch: Triton's kernel for one half")
def problem(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why not, after a sample: broken and whole tiles, rows one after the other and columns one after the other."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    apart = 0.0
    for rows, columns in ((SIDE + 80, 3 * DEPTH + 16), (2 * SIDE, 2 * DEPTH)):
        values = torch.randn(2, rows, columns, generator=generator, dtype=torch.float64, device="cpu")
        x = (values / columns**0.5).to(device, dtype)
        for each in (x, x.mT.contiguous().mT):
            made = symmetric(each, None, 1.0, 0.0)
            exact = each.double() @ each.double().mT
            apart = max(apart, _off(made, exact))
            two = symmetric(made, made, 0.5, -1.5)
            apart = max(apart, _off(two, 0.5 * made.double() @ made.double() - 1.5 * made.double()))
    return None if apart <= 1.0 else f"gave numbers {apart:.1f} roundings away"


def _off(made: Tensor, exact: Tensor) -> float:
    """How far numbers are from exact ones, in roundings of the largest."""
    off = (made.double() - exact).abs().nan_to_num(nan=torch.inf).max()
    return float(off / (torch.finfo(made.dtype).eps * exact.abs().max()))
