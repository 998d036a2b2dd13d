"""Steps element-wise optimizers by generated Triton kernels, in Triton's interpreter, and by the loop; prints how far
they are apart. Run with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import sys

import torch
from operator_cases import ELEMENTWISE_STATES, elementwise, operands

import hfoptim
from hfoptim.engine import ELEMENT, Rule, storage
from hfoptim.engine.codegen.triton import kernel, launch
from hfoptim.engine.plan import Decay, plan_of

SHAPES = [(7,), (40, 60), (), (3, 5, 2), (2500,)]


def run_kernel(plan, rows, scalars, seeds=()):
    call = launch.Call(kernel.kernel(plan, scalars, rows[0]))
    for row, seed in zip(rows, seeds or [0] * len(rows), strict=True):
        call.add(row, seed)
    call.run(scalars)


def step_by_triton(optimizer: hfoptim.AdamW) -> None:
    for item in optimizer._collect(optimizer._entries()):
        scalars = optimizer._scalars(item, {}, {})
        run_kernel(item.bucket.plan, item.bucket.rows, scalars, item.bucket.seeds)
        for step in item.steps:
            step += 1


def run(name: str, dtype: torch.dtype, options: dict) -> float:
    """The largest difference, as a share of the largest movement."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
    grads = [[torch.randn(s, generator=generator).to(dtype) for s in SHAPES] for _ in range(4)]
    ends = []
    for by_triton in (False, True):
        params = [torch.nn.Parameter(value.clone()) for value in start]
        optimizer = hfoptim.create_optimizer_v2(params, name, foreach=False, **options)
        for step in grads:
            for param, grad in zip(params, step, strict=True):
                param.grad = grad.clone()
            if by_triton:
                with torch.no_grad():
                    step_by_triton(optimizer)
            else:
                optimizer.step()
        ends.append([param.detach().double() for param in params])
    far = max(float((a - b).abs().max()) for a, b in zip(*ends, strict=True))
    moved = max(float((a - b.double()).abs().max()) for a, b in zip(ends[0], start, strict=True))
    return far / moved


def operations(path: str) -> None:
    """Save what each operation of the table gives."""
    found = {}
    for dtype in (torch.float32, torch.float64):
        x, y = operands(dtype)
        chosen = Rule(elementwise, ELEMENT, ELEMENTWISE_STATES)
        row = [y, x, *(chosen.first(name, x, dtype) for name in chosen.state)]
        plan = plan_of(chosen, Decay.NONE, dtype)
        run_kernel(plan, [plan.slots(row)], {"lr": 0.0})
        found[dtype] = row[2:]
    torch.save(found, path)


if __name__ == "__main__":
    operations(sys.argv[1])
    for name in sys.argv[2:]:
        print(name, "float32", run(name, torch.float32, {"lr": 1e-2, "weight_decay": 0.1}))
        print(name, "float64", run(name, torch.float64, {"lr": 1e-2, "weight_decay": 0.1}))
        print(name, "kahan", run(name, torch.bfloat16, {"lr": 1e-2, "weight_decay": 0.1}))
        print(name, "stochastic", run(name, torch.bfloat16, {"lr": 1e-2, "stochastic_rounding": True}))
        low = {"lr": 1e-2, "state_dtype": storage.Format.BF16.value}
        print(name, "bf16_state", run(name, torch.float32, low))
