"""Launches of one steady step, for GPT-2's 148 tensors, of every optimizer: counted on meta tensors, without a GPU.

    python benchmarks/launches.py
    python benchmarks/launches.py --name adamw --name lamb

The engine does all that it does on a GPU but for the launches (generated.py). torch's own operations count one launch
each; its multi-tensor functions as many as they need for so many tensors and so many entries. What is copied to the
device and what is waited for is counted, too.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import candidates
import device_clock
import measure
import torch
import traffic
from generated import AROUND, GENERATED, put_in
from kernel_cases import FORMS, options_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import hfoptim
from hfoptim.engine import Scope
from hfoptim.engine.codegen import native
from hfoptim.engine.codegen.trace import Untraceable

# torch's multi-tensor functions take so many tensors in one launch, by how many lists they are given...
_TENSORS = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
# ... and so many chunks of so many entries.
_CHUNKS, _CHUNK = 320, 65536
# No work of the device: memory, and other views of it.
_NO_LAUNCH = ("empty", "empty_like", "empty_strided", "new_empty", "detach", "alias", "_unsafe_view", "set_")
# Products of matrices, torch's and our own.
_PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "symmetric")
_WAITS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero")


class Counting(TorchDispatchMode):
    """What torch's operations on meta tensors would launch, copy to the device and wait for.

    Attributes:
        launches: by the operation's name.
        copies: from the host to the device.
        waits: for the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.copies = 0
        self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)]
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        name = func.overloadpacket.__name__
        if any(tensor.is_meta for tensor in (*given, *made)):
            self._count(func, name, args, given)
        return out

    def _count(self, func: Any, name: str, args: Any, given: list[torch.Tensor]) -> None:
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if name in _WAITS:
            self.waits += 1
        elif name in ("_to_copy", "copy_") and any(tensor.device.type == "cpu" for tensor in given):
            self.copies += 1
        elif name.startswith("_foreach"):
            lists = [arg for arg in args if isinstance(arg, (list, tuple)) and arg and isinstance(arg[0], torch.Tensor)]
            depth = len(lists) + (0 if name.endswith("_") else 1)
            chunks = sum(math.ceil(tensor.numel() / _CHUNK) for tensor in lists[0])
            self.launches[name] += max(math.ceil(len(lists[0]) / _TENSORS.get(depth, 30)), math.ceil(chunks / _CHUNKS))
        elif not view and name not in _NO_LAUNCH:
            self.launches[name] += 1


def counted(name: str, form: str = "fp32", shapes: measure.Shapes | None = None) -> dict[str, Any]:
    """The launches of a steady step.

    Args:
        name: of the registry.
        form: of `kernel_cases.FORMS`.
        shapes: of the parameters; GPT-2's if None.

    Returns:
        `generated`: launches of our kernels, by function; `torch`: of torch's operations; `launches`: both; `products`:
        those of them that multiply matrices; `copies` to the device; `waits` for it; `wanted`: how many launches were,
        at most.
    """
    dtype, options = FORMS[form][0], options_of(name, form)
    assert options is not None, f"{name} has no form {form}"
    named = {
        key: torch.nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"))
        for key, shape in (shapes or measure.gpt2_shapes()).items()
    }
    optimizer = hfoptim.get_optimizer_info(name).opt_class(list(named.items()), **options)
    for param in named.values():
        param.grad = torch.empty_like(param)
    step = candidates.stepper(optimizer)
    with put_in():
        step()
        with traffic.watched(GENERATED, AROUND) as seen:
            step()
        with device_clock.counted() as ours, Counting() as counting:
            step()
    theirs = sum(counting.launches.values())
    return {
        "wanted": _wanted(optimizer, seen),
        "generated": dict(ours.generated),
        "torch": theirs,
        "launches": sum(ours.generated.values()) + theirs,
        "products": sum(count[name] for count in (ours.generated, counting.launches) for name in _PRODUCTS),
        "most": counting.launches.most_common(5),
        "copies": counting.copies,
        "waits": counting.waits,
    }


def _wanted(optimizer: Any, seen: Sequence[traffic.Seen]) -> int | None:
    """How many launches were wanted at most: by whether rules look at rows and columns, at sums, at entries alone.

    None where matrices are multiplied, or no kernel is generated for some parameters.
    """
    if candidates.scope(optimizer) is Scope.MATRIX:
        return None
    try:
        programs = [
            native.program_of(plan, names, row, plan.rule.probe.fn if probe else None)[0]
            for plan, names, row, probe in seen
        ]
    except Untraceable:
        return None
    if not all(program.flat for program in programs):
        return 8
    return 4 if any(program.phases > 1 for program in programs) else 2


def main(output: Path, names: list[str]) -> None:
    """Count and write."""
    rows = []
    for name in names or candidates.names()[0]:
        rows.append({"optimizer": name, **counted(name)})
        print(name, rows[-1], flush=True)
    measure.write(output, "launches", {"about": measure.about(), "rows": rows})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", action="append", default=[], help="an optimizer of the registry; default all")
    parser.add_argument("--output", type=Path, default=measure.RESULTS / "launches.json")
    given = parser.parse_args()
    main(given.output, given.name)
