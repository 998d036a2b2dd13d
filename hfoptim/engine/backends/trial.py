"""A generated kernel's trial: one step of a small sample, as the loop takes it or not at all.

A kernel that was never run on a kind of device, or by a version of its compiler, may be wrong there. So each is tried
once on each device, before it steps anything: what is unproven costs speed, never numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import storage
from hfoptim.engine.backends.backend import Backend
from hfoptim.engine.bucket import Bucket
from hfoptim.engine.codegen import native
from hfoptim.engine.codegen.triton import launch
from hfoptim.engine.codegen.triton.kernel import Kernel
from hfoptim.engine.plan import Plan
from hfoptim.engine.rule import MatrixFunction
from hfoptim.engine.tensor_slots import TensorSlots

# Sizes of the sample's last dimension: whole blocks of entries and of codes; ragged ones; fewer than a block.
_SIZES = (1024, 701, 1024, 3)
# Of the first one where programs take runs of blocks, several each.
_RUNS = 66 * 1024 + 5
# Of a kernel that takes tiles of rows and columns, how many more of them than a tile has.
_BEYOND = ((0, 0), (1, 3), (0, 0), (-1, -1))
# How far a kernel's values may be from the loop's, as a share of the largest: nearly all of them by rounding within the
# arithmetic (1/50 may be further, rounded the other way); none by more than two values of what they are kept in.
_FINE, _OTHERWISE = 1e-4, 0.02
_COARSE = {8: 0.03, 4: 0.3}

_found: dict[tuple[int, torch.device], str | None] = {}


def problem(kernel: Kernel, bucket: Bucket, row: TensorSlots, loop: Backend) -> str | None:
    """Why a kernel must not be used on a device; None where it did what the loop does.

    Args:
        kernel: for rows like `row`; it is run once on each device.
        bucket: the row's.
        row: its tensors, in the shape that the rule sees.
        loop: the backend that is right.
    """
    device = row.param.device
    key = (id(kernel.step), device)
    if key not in _found:
        _found[key] = None if device.type == "meta" else _try(kernel, bucket, row, loop)
    return _found[key]


def _try(kernel: Kernel, bucket: Bucket, row: TensorSlots, loop: Backend) -> str | None:
    what = f"{'probe' if kernel.results else 'step'} of the rule {bucket.plan.rule.name}"
    start = _sample(kernel, bucket, row)
    mine, other = _copied(start), _copied(start)
    call = launch.Call(kernel)
    for place, each in enumerate(mine.rows):
        call.add(kernel, each, place)
    try:
        # Products are torch's own; in few bits they would make much of the smallest difference before them.
        with _without_products():
            sums = call.run(mine.scalars, mine.seeds)
            right = _added(list(loop.probe(other))) if kernel.results else {}
            if not kernel.results:
                loop.step(other)
        if kernel.results:
            wrong = [name for name in kernel.results if _apart(sums[name], right[name], torch.zeros_like(right[name]))]
        else:
            wrong = _wrong(mine, other, start)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler or a driver may say
        return f"Triton's kernel for the {what} does not run on {row.param.device} ({type(error).__name__}: {error})"
    if not wrong:
        return None
    return (
        f"Triton's kernel for the {what} gave other numbers than the loop on {row.param.device}, in "
        f"{', '.join(wrong)}; please report it, with the versions of triton and torch and the device"
    )


@contextmanager
def _without_products() -> Iterator[None]:
    MatrixFunction.left_out = True
    try:
        yield
    finally:
        MatrixFunction.left_out = False


def _sample(kernel: Kernel, bucket: Bucket, row: TensorSlots) -> Bucket:
    """Rows of ragged sizes like this one: one unaligned, one whose gradient has a NaN unless all are added up."""
    sample = Bucket(bucket.plan, scalars=_scalars(bucket))
    generator = torch.Generator(device="cpu").manual_seed(0)
    for number, shape in enumerate(_shapes(kernel, row.param.shape)):
        each = _row(bucket.plan, row, shape, generator)
        if number == 1 and not kernel.results:
            each.grad.view(-1)[-1] = torch.nan
        if number == 2:
            each.grad = torch.cat([each.grad.view(-1)[:1], each.grad.view(-1)])[1:].view(shape)
        sample.rows.append(each)
        sample.seeds.append(storage.row_seed(7, number))
    return sample


def _scalars(bucket: Bucket) -> dict[str, Any]:
    """Numbers by which every part of the arithmetic shows; a run's own may be 0, or too small for that."""
    made: dict[str, Any] = {}
    for number, (name, value) in enumerate(bucket.scalars.items()):
        # No product of one with a bfloat16 number is another, to 6e-6: with 0.3 a gradient and a decay added to it
        # were 0 to a rounding, of which caution takes the sign.
        made[name] = 0.3041 + 0.0507 * (number % 12)
        if isinstance(value, Tensor):
            made[name] = torch.full_like(value, made[name])
    return made


def _shapes(kernel: Kernel, like: torch.Size) -> Iterator[torch.Size]:
    """Shapes with the dimensions of size 1 that another has, and few entries."""
    small = [1 if size == 1 else 2 for size in like]
    long = [place for place, size in enumerate(small) if size > 1]
    runs = any("partials" in launch.arguments for launch in kernel.source.launches)
    for last, beyond in zip((_RUNS if runs else _SIZES[0], *_SIZES[1:]), _BEYOND, strict=True):
        sizes = list(small)
        if kernel.program.flat and long:
            sizes[long[-1]] = last if len(long) > 1 else 2 * last
        elif not kernel.program.flat:
            *_, rows, columns = kernel.program.merged
            for labels, side, more in zip((rows, columns), kernel.source.tile, beyond, strict=True):
                sizes[labels[-1]] = side + more
        yield torch.Size(sizes)


def _row(plan: Plan, like: TensorSlots, shape: torch.Size, generator: torch.Generator) -> TensorSlots:
    def noise(tensor: Tensor, size: torch.Size | tuple[int, ...], positive: bool = False) -> Tensor:
        values = torch.randn(size, generator=generator, dtype=torch.float64, device="cpu")
        return (values.abs() + 0.1 if positive else values).to(tensor.device, tensor.dtype)

    def whole(tensor: Tensor, size: tuple[int, ...], low: int, high: int) -> Tensor:
        return torch.randint(low, high, size, generator=generator, device="cpu").to(tensor.device, tensor.dtype)

    tensors = [noise(like.param, shape), noise(like.grad, shape)]
    # A state may have some of the parameter's dimensions only.
    _, _, *labels = native.labels(plan, like, native.shapeless(plan))
    for kept, state, own in zip(plan.storage, like.states, labels, strict=True):
        if kept.bits:
            codes, scales = kept.shapes(shape)
            tensors += [whole(state[0], codes, 0, 256), noise(state[1], scales, positive=True)]
        elif state[0].shape == like.param.shape:
            tensors.append(noise(state[0], shape, positive=True))
        else:
            sizes = tuple([1 if label is None else shape[label] for label in own])
            tensors.append(noise(state[0], sizes, positive=True))
    if like.residual is not None:
        rest = like.residual
        tensors.append(noise(rest, shape) * 1e-3 if rest.is_floating_point() else whole(rest, shape, -100, 100))
    return plan.slots(tensors)


def _copied(bucket: Bucket) -> Bucket:
    rows = [row.map(torch.clone) for row in bucket.rows]
    for copy, row in zip(rows, bucket.rows, strict=True):
        copy.grad = row.grad  # read only, and where it is on purpose
    return Bucket(bucket.plan, rows, bucket.scalars, bucket.seeds)


def _added(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}


def _wrong(mine: Bucket, other: Bucket, start: Bucket) -> list[str]:
    """Names of the tensors that are not where the loop has brought them."""
    plan = mine.plan
    names = ["the parameter", *plan.rule.state]
    wrong: set[str] = set()
    for rows in zip(mine.rows, other.rows, start.rows, strict=True):
        weights, states = zip(*(storage.decode(plan, row) for row in rows), strict=True)
        bits = [0, *(kept.bits for kept in plan.storage)]
        columns: list[tuple[Tensor, ...]] = [weights, *zip(*states, strict=True)]
        for name, coded, values in zip(names, bits, columns, strict=True):
            ours, theirs, before = values
            if _apart(ours, theirs, before, _COARSE.get(coded, 0.0)):
                wrong.add(name)
    return [name for name in names if name in wrong]


def _apart(mine: Tensor, other: Tensor, start: Tensor, coarse: float = 0.0) -> bool:
    """Whether values are not those of the loop; arguments as for `_wrong`, and how far single ones may be."""
    coarse = max(coarse, 1e-3, 2 * torch.finfo(mine.dtype).eps)
    a, b, before = (values.detach().double().flatten() for values in (mine, other, start))
    if not torch.equal(a.isnan(), b.isnan()) or not torch.equal(a.isinf(), b.isinf()):
        return True
    finite = b.isfinite()
    a, b, before = a[finite], b[finite], before[finite]
    if not len(a):
        return False
    size = torch.maximum(b.abs().max(), (b - before).abs().max())
    off = (a - b).abs() / size.clamp(min=torch.finfo(torch.float32).tiny)
    return bool((off > coarse).any() or (off > _FINE).double().mean() > _OTHERWISE)
