"""How many registers a generated function is expected to need, and how many threads take a block for it.

That no more are needed than that is seen by NVIDIA's assembler: test_device_code.py.
"""

from __future__ import annotations

import math

import pytest
import torch

import hfoptim
from hfoptim.engine import ELEMENT, Rule, storage
from hfoptim.engine.codegen import native
from hfoptim.engine.codegen.triton import kernel
from hfoptim.engine.codegen.triton.registers import needed
from hfoptim.engine.codegen.triton.rows import tile_of
from hfoptim.engine.plan import Decay, plan_of
from hfoptim.engine.rule import zeros

FORMS = {
    "float32": (torch.float32, {}),
    "float64": (torch.float64, {}),
    "kahan": (torch.bfloat16, {}),
    "remainder16": (torch.bfloat16, {"master_weights": 16}),
    "bfloat16 state": (torch.float32, {"state_dtype": "bfloat16"}),
    "bfloat16, bfloat16 state": (torch.bfloat16, {"state_dtype": "bfloat16"}),
    "8bit": (torch.float32, {"state_dtype": "8bit"}),
}


def of_rule(fn, dtype=torch.float32, **state):
    plan = plan_of(Rule(fn, ELEMENT, state), Decay.NONE, dtype)
    param = torch.zeros(64, 64, dtype=dtype)
    row = [param, param.clone()]
    for name, how in zip(state, plan.storage, strict=True):
        row += [init(param, dtype) for init in storage.inits(how, plan.rule, name).values()]
    program, layout, _ = native.program_of(plan, ("lr",), plan.slots(row))
    return needed(program, layout, (0, 0), loop=False)


def warps(name, form, shape=(256, 512)):
    """Of the passes of an optimizer's step."""
    dtype, options = FORMS[form]
    param = torch.nn.Parameter(torch.zeros(shape, dtype=dtype))
    param.grad = torch.zeros_like(param)
    optimizer = hfoptim.get_optimizer_info(name).opt_class([("w", param)], foreach=False, **options)
    (work,) = optimizer._collect(optimizer._entries())
    scalars = optimizer._scalars(work, {}, {})
    with work.bucket.shaped() as bucket:
        program, layout, _ = native.program_of(bucket.plan, tuple(scalars), bucket.rows[0])
    tile = (0, 0) if program.flat else tile_of(*program.loops(shape)[1:])
    source = kernel.generate(program, layout, tuple(scalars), tile=tile)
    return math.prod(source.tile), [launch.warps for launch in source.launches if launch.grid == "block"]


def test_what_is_there_at_a_time():
    def descent(grad, param, h):
        return (grad * h.lr,)

    def momentum(grad, param, m, h):
        m = m + grad * h.lr
        return m, m

    # What is read, and one result while its operands are there; in double precision twice as much.
    assert of_rule(descent) == 3
    assert of_rule(descent, torch.float64) == 6
    assert of_rule(momentum, m=zeros) == 4


def test_branches_and_long_functions_take_more():
    def divided(grad, param, h):
        return (grad / param,)

    def power(grad, param, h):
        return ((grad * grad) ** 0.3,)

    def multiplied(grad, param, h):
        return (grad * param,)

    assert of_rule(multiplied) < of_rule(divided) < of_rule(power)


@pytest.mark.parametrize(
    ("name", "form", "threads"),
    [
        ("adamw", "float32", [4]),
        ("adamw", "float64", [4]),
        ("adamw", "kahan", [4]),
        ("adamw", "remainder16", [4]),
        ("adamw", "bfloat16 state", [4]),
        ("lion", "8bit", [4]),
        # 8 entries of these take more registers than there are.
        ("adamw", "bfloat16, bfloat16 state", [8]),
        ("adamw", "8bit", [8]),
        ("adan", "bfloat16 state", [8]),
        ("adam_atan2", "float32", [8]),
        # Half as many are one access of 16 bytes for each of six tensors.
        ("adan", "float32", [8]),
    ],
)
def test_threads_of_a_block(name, form, threads):
    assert warps(name, form) == (0, threads)


@pytest.mark.parametrize(
    ("name", "form", "entries", "threads"),
    [
        ("adafactor", "float32", 2048, [8, 8, 8]),
        ("adamp", "float32", 2048, [16, 8, 16]),
        ("sm3", "float32", 2048, [16]),
        # 4 entries of its last pass take more than the 128 registers that 16 warps leave.
        ("cadamp", "bfloat16, bfloat16 state", 1024, [8, 4, 8]),
    ],
)
def test_threads_of_a_tile(name, form, entries, threads):
    assert warps(name, form) == (entries, threads)
