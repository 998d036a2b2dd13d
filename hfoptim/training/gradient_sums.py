"""Weighted sums of lists of gradients, and their reduction on one or over several processes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch import distributed as dist

from hfoptim.engine.parameter_names import aligned, difference, listed
from hfoptim.engine.precision import precise

SUM_DTYPE = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.complex32: torch.complex64,
    torch.complex64: torch.complex64,
    torch.complex128: torch.complex128,
}


class GradientSums:
    """`sum_i w_i g_i` and `sum_i w_i` over the calls of a window, for a fixed list of names.

    A buffer is allocated when its gradient first comes, in the dtype of `SUM_DTYPE`, and kept by `clear`; until its
    gradient comes again (`seen`) it holds stale values, so that clearing touches no memory.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.buffers: list[Tensor | None] = [None] * len(self.names)
        self.clear()

    def clear(self) -> None:
        self.seen = [False] * len(self.names)
        self.weight = 0.0
        self.weight_tensor: Tensor | None = None  # the weights that are on an accelerator

    @property
    def total(self) -> float | Tensor:
        return self.weight if self.weight_tensor is None else self.weight_tensor + self.weight

    def current(self) -> list[Tensor | None]:
        """The buffers that were written in this window."""
        return [buffer if seen else None for buffer, seen in zip(self.buffers, self.seen, strict=True)]

    def add(self, grads: Sequence[Tensor | None], weight: float | Tensor) -> None:
        """Adds checked gradients with a checked weight."""
        first: list[tuple[Tensor, Tensor]] = []
        later: list[tuple[Tensor, Tensor]] = []
        for i, grad in enumerate(grads):
            if grad is None:
                continue
            buffer = self.buffers[i]
            if buffer is None:
                buffer = self.buffers[i] = torch.empty_like(grad, dtype=SUM_DTYPE[grad.dtype])
            (later if self.seen[i] else first).append((buffer, grad))
            self.seen[i] = True
        _accumulate(first, weight, fresh=True)
        _accumulate(later, weight, fresh=False)
        if isinstance(weight, Tensor):
            before = self.weight_tensor
            self.weight_tensor = weight if before is None else before + _moved(weight, before)
        else:
            self.weight += weight

    def load(self, values: Sequence[Tensor | None], weight: float | Tensor, params: Sequence[Tensor] | None) -> None:
        """Takes over checked sums of another window, on the device of their buffer, else parameter, else their own."""
        self.clear()
        for i, value in enumerate(values):
            if value is None:
                continue
            buffer = self.buffers[i]
            if buffer is None:
                like = value if params is None else params[i]
                buffer = self.buffers[i] = torch.empty_like(like, dtype=value.dtype, requires_grad=False)
            buffer.copy_(value)
            self.seen[i] = True
        weight = checked_weight(weight)
        if isinstance(weight, Tensor):
            self.weight_tensor = weight.clone()
        else:
            self.weight = weight

    def local(self, *, mean: bool) -> list[Tensor | None]:
        """The result of this process, in new tensors."""
        if not mean:
            return [None if value is None else value.clone() for value in self.current()]
        total = self.total
        if not isinstance(total, Tensor):
            return [None if value is None else value / (total or 1.0) for value in self.current()]
        total = torch.where(total == 0, 1, total)
        return [None if value is None else value / _moved(total, value) for value in self.current()]

    def over_processes(
        self, params: Sequence[Tensor], *, mean: bool, group: dist.ProcessGroup | None
    ) -> list[Tensor | None]:
        """The result over all processes: views of one new flat tensor per device and dtype, each reduced once.

        Behind the sums, the flat tensor carries the total weight and, for each parameter, how many processes have a
        gradient for it: None comes out where none has one.
        """
        groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for i, param in enumerate(params):
            # All processes must agree on the layout, so it hangs on the parameters, not on the gradients that came.
            if param.requires_grad:
                groups.setdefault((param.device, SUM_DTYPE[param.dtype].to_real()), []).append(i)
            elif self.seen[i]:
                raise ValueError(f"Parameter {self.names[i]!r} has a gradient but requires_grad=False.")
        sums = self.current()
        results: list[Tensor | None] = [None] * len(params)
        for (device, dtype), members in groups.items():
            members.sort(key=lambda i: not params[i].is_complex())  # complex views must start at an even offset
            sizes = [params[i].numel() * (2 if params[i].is_complex() else 1) for i in members]
            flat = torch.empty(sum(sizes) + len(members) + 1, dtype=dtype, device=device)
            *parts, owners, total = flat.split([*sizes, len(members), 1])
            owners.copy_(
                torch.tensor([float(self.seen[i]) for i in members], dtype=torch.float32, device="cpu"),
                non_blocking=True,
            )
            total.fill_(self.weight)
            if self.weight_tensor is not None:
                total.add_(_moved(self.weight_tensor, total))
            for i, part in zip(members, parts, strict=True):
                view = _shaped_like(params[i], part)
                value = sums[i]
                results[i] = view.zero_() if value is None else view.copy_(value)
            dist.all_reduce(flat, group=group)
            if mean:
                flat[: sum(sizes)].div_(torch.where(total == 0, 1, total))
            if not all(self.seen[i] for i in members):  # only then the host has to wait for the answer
                for i, count in zip(members, owners.tolist(), strict=True):
                    results[i] = results[i] if count else None
        return results

    def check(self, grads: Sequence[Tensor | None], params: Sequence[Tensor] | None, *, moved: bool = False) -> None:
        """Raises unless each gradient fits its buffer or its parameter. `moved`: it may be on another device."""
        for i, (name, grad) in enumerate(zip(self.names, grads, strict=True)):
            if grad is None:
                continue
            what = f"Gradient {name}" if name.isdigit() else f"The gradient of {name!r}"
            if not isinstance(grad, Tensor):
                raise TypeError(f"{what} must be a tensor or None, not {type(grad).__name__}.")
            if grad.layout != torch.strided:
                raise ValueError(f"{what} is sparse ({grad.layout}): only dense gradients can be accumulated.")
            if grad.dtype not in SUM_DTYPE:
                raise ValueError(f"{what} must be floating or complex, not {grad.dtype}.")
            known = self.buffers[i]
            if known is None and params is not None:
                known = params[i]
            if known is not None:
                check_same_kind(what, grad, known, moved=moved)


def is_sharded(tensor: Tensor | None) -> bool:
    """Whether it is a DTensor, asked without importing torch.distributed.tensor."""
    return hasattr(tensor, "device_mesh")


def check_same_kind(what: str, tensor: Tensor, known: Tensor, *, moved: bool = False) -> None:
    """Raises unless both have one shape, one dtype of sums, and one device (`moved`: or not)."""
    if tensor.shape != known.shape:
        raise ValueError(f"{what} has shape {tuple(tensor.shape)}, expected {tuple(known.shape)}.")
    if SUM_DTYPE.get(tensor.dtype) != SUM_DTYPE.get(known.dtype):
        raise ValueError(f"{what} has dtype {tensor.dtype}, which does not go with {known.dtype}.")
    if tensor.device != known.device and not moved:
        raise ValueError(f"{what} is on {tensor.device}, expected {known.device}.")


def same_names(what: str, names: Iterable[str], expected: Iterable[str]) -> dict[str, str]:
    """Which of `names` each of the expected ones is, in any order and without the parts of wrappers.

    Raises:
        ValueError: one is missing or unknown.
    """
    got, want = list(names), list(expected)
    found = aligned(want, got)
    if found is None:
        parts = zip(("missing", "unknown"), difference(want, got), strict=True)
        said = ", ".join(f"{word} [{listed(map(repr, which))}]" for word, which in parts if which)
        raise ValueError(f"{what} differ from those before: {said or 'names come twice'}.")
    return found


def checked_weight(weight: float | Tensor | None) -> float | Tensor:
    """A float if the host has the number (1 for None), else a 0-d tensor of the widest float of its device."""
    if weight is None:
        return 1.0
    if isinstance(weight, Tensor):
        if weight.ndim or weight.is_complex() or weight.dtype == torch.bool:
            raise ValueError(f"weight must be a real 0-d tensor, not {weight.dtype} of shape {tuple(weight.shape)}.")
        if weight.device.type != "cpu":
            return precise(weight.detach())
    elif isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise TypeError(f"weight must be a number or a 0-d tensor, not {type(weight).__name__}.")
    number = float(weight)
    if not (number >= 0 and math.isfinite(number)):
        raise ValueError(f"weight must be finite and >= 0, not {number}.")
    return number


def _accumulate(pairs: list[tuple[Tensor, Tensor]], weight: float | Tensor, *, fresh: bool) -> None:
    """buffer += weight * gradient; `fresh` buffers are overwritten. Under weight 0 a gradient may be NaN."""
    if not pairs:
        return
    buffers, grads = [list(side) for side in zip(*pairs, strict=True)]
    if isinstance(weight, Tensor):
        for buffer, grad in pairs:
            scalar = _moved(weight, buffer)
            if fresh:
                buffer.copy_(grad).masked_fill_(scalar == 0, 0).mul_(scalar)
            else:
                buffer.addcmul_(grad.masked_fill(scalar == 0, 0), scalar)
    elif fresh and weight == 0:
        torch._foreach_zero_(buffers)
    elif fresh:
        if any(is_sharded(grad) for grad in grads):  # DTensor has no _foreach_copy_
            for buffer, grad in pairs:
                buffer.copy_(grad)
        else:
            torch._foreach_copy_(buffers, grads)
        if weight != 1:
            torch._foreach_mul_(buffers, weight)
    elif weight != 0:
        torch._foreach_add_(buffers, grads, alpha=weight)


def _moved(scalar: Tensor, like: Tensor) -> Tensor:
    return scalar.to(device=like.device, dtype=like.dtype.to_real(), non_blocking=True)


def _shaped_like(param: Tensor, part: Tensor) -> Tensor:
    """A view of a flat piece with the parameter's shape and memory layout (channels_last, say)."""
    view = torch.view_as_complex(part.view(-1, 2)) if param.is_complex() else part
    return view.as_strided(param.shape, torch.empty_like(param, device="meta").stride(), view.storage_offset())
