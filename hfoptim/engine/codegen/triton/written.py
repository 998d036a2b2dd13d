# mypy: ignore-errors
"""Triton functions that are written by hand: normal noise, and products of matrices that are symmetric.

Imported where one is launched, so that nothing else needs Triton; Triton's interpreter runs them, too.
"""

import triton
import triton.language as tl

from hfoptim.engine.codegen.triton.runtime import INTERPRETED, hashed, log1p, nearest, rooted

# -- normal noise ----------------------------------------------------------------------------------------------------


@triton.jit
def sine(x, DOUBLE: tl.constexpr):
    """The sine up to a quarter of a turn, by its series."""
    s = x * x
    p = 1 - s * (1 / 156)
    if DOUBLE:
        p = 1 - s * (1 / 156) * (1 - s * (1 / 210) * (1 - s * (1 / 272) * (1 - s * (1 / 342) * (1 - s * (1 / 420)))))
    p = 1 - s * (1 / 6) * (1 - s * (1 / 20) * (1 - s * (1 / 42) * (1 - s * (1 / 72) * (1 - s * (1 / 110) * p))))
    return x * p


@triton.jit
def normal(size, angle, DOUBLE: tl.constexpr):
    """Numbers of a standard normal distribution from 2 x 32 random bits each, as `storage.normal` has them.

    Both numbers in (0, 1) are taken from the end that they are nearer to: in float32 what is close to 1 has few values.
    """
    KEPT: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    low = (size >> 31) == 0
    share = (tl.where(low, size, size ^ 0xFFFFFFFF).to(KEPT) + 0.5) * 2.3283064365386963e-10
    radius = rooted(-2.0 * tl.where(low, tl.log(share), log1p(share * -1.0)))
    # The cosine of an angle is that of the rest of a whole turn, and the sine of what is left to a quarter.
    near = tl.where((angle >> 31) == 0, angle, angle ^ 0xFFFFFFFF).to(tl.int32)
    quarter = ((0x40000000 - near).to(KEPT) - 0.5) * 1.4629180792671596e-09
    return radius * sine(quarter, DOUBLE)


@triton.jit(do_not_specialize=["rows"])
def drawn(table, rows, DOUBLE: tl.constexpr, BLOCK: tl.constexpr):
    """Fill one block of one tensor.

    Args:
        table: for each tensor its address, entries, number of its first block, seed.
        rows: how many tensors.
    """
    block = tl.program_id(0)
    some = tl.arange(0, 256)
    tensor = tl.full((), -1, tl.int32)
    for start in range(0, rows, 256):
        first = tl.load(table + (start + some) * 4 + 2, mask=start + some < rows, other=0x7FFFFFFFFFFFFFFF)
        tensor += tl.sum((first <= block).to(tl.int32))
    row = table + tensor * 4
    seed = tl.load(row + 3)
    index = (block - tl.load(row + 2)) * BLOCK + tl.arange(0, BLOCK)
    number = index.to(tl.uint32)
    size = hashed(number, (seed + 0xC2B2AE3D).to(tl.uint32))
    angle = hashed(number, (seed + 0x85655C7A).to(tl.uint32))
    to = tl.load(row).to(tl.pointer_type(tl.float64 if DOUBLE else tl.float32))
    tl.store(to + index, normal(size, angle, DOUBLE), mask=index < tl.load(row + 1))


# -- symmetric products ----------------------------------------------------------------------------------------------


@triton.jit
def multiplied(a, b, sums):
    """`a` times `b` transposed, added to `sums`."""
    if INTERPRETED:  # which multiplies the bits of bfloat16
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, tl.trans(b), sums, input_precision="ieee")


@triton.jit
def rounded(x, KEPT: tl.constexpr):
    if KEPT == tl.bfloat16:  # noqa: SIM300, as Triton's types compare
        return nearest(x)
    else:
        return x.to(KEPT)


@triton.jit
def symmetric(
    x,
    added,
    out,
    rows,
    columns,
    x_batch,
    x_row,
    x_column,
    alpha,
    beta,
    ADDED: tl.constexpr,
    SIDE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """One tile of `alpha X X^T + beta D`, on or below the diagonal, and its mirror image.

    Args:
        x: a stack of matrices, `rows` x `columns` each, with strides `x_batch`, `x_row` and `x_column`.
        added: D, symmetric, `rows` x `rows` each, contiguous; not looked at unless ADDED.
        out: the result, like D.
    """
    tiles = tl.cdiv(rows, SIDE)
    pairs = tiles * (tiles + 1) // 2
    batch = tl.program_id(0) // pairs
    pair = tl.program_id(0) - batch * pairs
    # Tiles are counted along the rows of the lower triangle; the root may be off by one where it is a whole number.
    down = ((tl.sqrt(8.0 * pair.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    down = tl.where(down * (down + 1) // 2 > pair, down - 1, down)
    down = tl.where((down + 1) * (down + 2) // 2 <= pair, down + 1, down)
    across = pair - down * (down + 1) // 2
    line, other = down * SIDE + tl.arange(0, SIDE), across * SIDE + tl.arange(0, SIDE)
    deep = tl.arange(0, DEPTH)
    x += batch.to(tl.int64) * x_batch
    a = x + line[:, None].to(tl.int64) * x_row + deep[None, :].to(tl.int64) * x_column
    b = x + other[:, None].to(tl.int64) * x_row + deep[None, :].to(tl.int64) * x_column
    a_there, b_there = (line < rows)[:, None], (other < rows)[:, None]
    sums = tl.zeros((SIDE, SIDE), tl.float32)
    for start in range(0, columns, DEPTH):
        there = (deep < columns - start)[None, :]
        sums = multiplied(
            tl.load(a, mask=a_there & there, other=0.0), tl.load(b, mask=b_there & there, other=0.0), sums
        )
        a += x_column * DEPTH
        b += x_column * DEPTH
    first = batch.to(tl.int64) * rows * rows
    at = first + line[:, None].to(tl.int64) * rows + other[None, :]
    inside = a_there & (other < rows)[None, :]
    sums = sums * alpha
    if ADDED:
        sums += beta * tl.load(added + at, mask=inside, other=0.0).to(tl.float32)
    result = rounded(sums, out.dtype.element_ty)
    tl.store(out + at, result, mask=inside)
    if down != across:
        mirrored = first + other[:, None].to(tl.int64) * rows + line[None, :]
        tl.store(out + mirrored, tl.trans(result), mask=b_there & (line < rows)[None, :])
