"""The parts of gpu.py: each a list of jobs, each of which gives a row of the result."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import candidates
import device_clock
import kernel_cases
import measure
import torch
import traffic
from candidates import Candidate
from device_clock import Device
from generated import AROUND, GENERATED
from kernel_cases import FORMS, options_of
from measure import Parameters, Shapes
from torch import Tensor

import hfoptim
from hfoptim.engine import Scope, backends
from hfoptim.engine.backends import products

Row = dict[str, Any]
# What a row is about, and what gives the rest of it.
Job = tuple[Row, Callable[[], Row]]

# Kinds and sizes of parameters for the comparison with the CPU: ragged, of one entry, without any.
RAGGED: Shapes = {
    "h.0.attn.weight": (64, 96),
    "h.0.mlp.weight": (3, 1025),
    "h.0.conv.weight": (5, 3, 3, 3),
    "h.0.ln.weight": (1000,),
    "h.0.gate": (1,),
    "h.0.none": (0,),
}
SMALL: Shapes = {"h.0.attn.weight": (64, 65), "h.0.ln.weight": (7,), "h.0.none": (0,)}
STEPS = 3
# Relative difference to the CPU, in the Euclidean norm: sums are added up in another order. Where less is kept than is
# computed, a rounding that falls the other way is a whole step of the coarser numbers.
TOLERANCE = {"fp32": 1e-3, "fp64": 1e-9}
COARSE = 0.1


@dataclass
class Bench:
    """What the parts share.

    Args:
        device: where steps are timed.
        names: of the registry, whose optimizers are measured.
        forms: in which.
        sizes: of the timed models, in entries.
        adapters: how many matrices a LoRA has.
        copied: bytes of the array by which the copy rate is measured.
        repeats: timed steps of each.
        processes: that compile at the same time.
        until: of `time.perf_counter`, when the part has to be over.
        rate: bytes a second of a copy, read and written; of part `machine`.
    """

    device: Device
    names: list[str]
    forms: Sequence[str] = tuple(FORMS)
    sizes: tuple[float, ...] = (124e6, 1e9)
    adapters: int = 448
    copied: int = 1 << 30
    repeats: int = 30
    processes: int = 16
    until: float = field(default=float("inf"))
    rate: float | None = None

    def model(self, size: float) -> Shapes:
        """GPT-2 with about so many entries, in a dry run the smallest."""
        if self.device.dry:
            return measure.gpt2_shapes(layers=1, width=2, vocab=4, context=4)
        return measure.gpt2_of(size)

    def of_scope(self, *scopes: Scope, probes: bool = False) -> list[str]:
        """The names whose rules are of a scope, with sums over all tensors or without."""
        found = []
        for name in self.names:
            params = [("h.0.attn.weight", torch.nn.Parameter(torch.zeros(2, 2)))]
            made: Any = hfoptim.get_optimizer_info(name).opt_class(params, **candidates.options(name))
            group = made.param_groups[0]
            probe = made.rule_for(group["params"][0], group).probe is not None
            if candidates.scope(made) in scopes and probe == probes:
                found.append(name)
        return found


# -- 1: the machine --------------------------------------------------------------------------------------------------


def machine(bench: Bench) -> Iterator[Job]:
    """The rate of copies, and what a launch costs."""
    yield {"what": "copy"}, partial(_copy, bench)
    yield {"what": "launch of a kernel of torch's"}, partial(_launch, bench)


def _copy(bench: Bench) -> Row:
    source = torch.ones(bench.copied // 4, device=bench.device.type)
    target = torch.empty_like(source)
    times = device_clock.in_turn(bench.device, {"copy": lambda: target.copy_(source)}, bench.repeats, bench.until)
    bench.rate = 2 * source.nbytes / (1e-3 * times["copy"]["median_ms"])
    return {**times["copy"], "bytes": 2 * source.nbytes, "bytes_per_s": bench.rate}


def _launch(bench: Bench) -> Row:
    small = torch.ones(64, device=bench.device.type)
    many = 1000

    def step() -> None:
        for _ in range(many):
            small.add_(1.0)

    times = device_clock.in_turn(bench.device, {"launch": step}, 5, bench.until)["launch"]
    return {"device_us": 1e3 * times["median_ms"] / many, "host_us": 1e3 * times["host_ms"] / many}


# -- 2: compiling ----------------------------------------------------------------------------------------------------


def compiling(bench: Bench) -> Iterator[Job]:
    """All kernels, compiled for this device in many processes; later parts find them in Triton's cache."""
    yield {"what": f"all kernels, {bench.processes} processes"}, partial(_compile, bench)


def _compile(bench: Bench) -> Row:
    arch = (
        90 if bench.device.dry else 10 * torch.cuda.get_device_capability()[0] + torch.cuda.get_device_capability()[1]
    )
    wanted = [(case, arch) for case in kernel_cases.cases(bench.names, bench.forms) if case.aligned]
    start = time.perf_counter()
    rows = list(kernel_cases.in_processes(wanted, bench.processes, judge=False, until=bench.until))
    failed = {f"{row['name']}, {row['form']}": row["error"] for row in rows if "error" in row}
    kernels = sum(len(row.get("launches", ())) for row in rows)
    found = {"cases": len(wanted), "done": len(rows), "kernels": kernels, "failed": failed}
    return found | {"seconds": time.perf_counter() - start, "cores": os.cpu_count()}


# -- 3: right --------------------------------------------------------------------------------------------------------


def right(bench: Bench) -> Iterator[Job]:
    """Every optimizer in every form against the loop on the CPU, from the same values."""
    for name in bench.names:
        for form in bench.forms:
            if options_of(name, form) is not None:
                yield {"optimizer": name, "form": form}, partial(_check, bench, name, form)


def _check(bench: Bench, name: str, form: str) -> Row:
    plain = _against_cpu(bench, name, form, hard=False)
    hard = _against_cpu(bench, name, form, hard=True)
    off = max(plain["off"], hard["off"])
    limit = TOLERANCE.get(form, COARSE)
    kept = off <= limit and hard["nan_equal"]
    return {"off": off, "limit": limit, "nan_equal": hard["nan_equal"], "kept": kept, "by": plain["by"]}


def _against_cpu(bench: Bench, name: str, form: str, hard: bool) -> Row:
    """Some steps on the device and on the CPU. The hard way: gradients in the middle of arrays, on another stream, and
    at last one with a NaN."""
    dtype, options = FORMS[form][0], options_of(name, form) or {}
    # Rounded by chance or in another precision than on a CPU, there would be nothing to compare.
    if "ns_dtype" in hfoptim.registry.lookup.option_names(name):
        options |= {"ns_dtype": "float32"}
    made = hfoptim.get_optimizer_info(name).opt_class
    start = Parameters(SMALL if bench.device.dry else RAGGED, dtype)
    sides = [_copied(start, where, offset) for where, offset in (("cpu", 0), (bench.device.type, int(hard)))]
    host, device = (made(list(side.items()), **options, **runner) for side, runner in zip(sides, _RUNNERS, strict=True))
    host_params, params = (list(side.values()) for side in sides)
    stream: Any = nullcontext()
    if hard and not bench.device.dry:
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        stream = torch.cuda.stream(side_stream)
    # So small, the engine would compile nothing.
    with stream, device_clock.counted() as launched, mock.patch.dict(backends.COMPILE_FROM, default=0):
        for _ in range(STEPS):
            host.step()
            device.step()
        bench.device.wait()
        row: Row = {"off": _off(start.tensors, host_params, params), "by": launched.by}
        if hard:
            for param in (host_params[0], params[0]):
                param.grad.view(-1)[5] = float("nan")
            host.step()
            device.step()
            bench.device.wait()
            pairs = zip(host_params, params, strict=True)
            row["nan_equal"] = all(torch.equal(a.isnan(), b.detach().cpu().isnan()) for a, b in pairs)
    return row


# On the CPU and on the device, where the engine chooses.
_RUNNERS: tuple[dict[str, Any], ...] = ({"foreach": False}, {})


def _copied(params: Parameters, where: str, offset: int) -> dict[str, torch.nn.Parameter]:
    """The same parameters and gradients on a device, the gradients so many entries into their memory."""
    found = {}
    for (name, param), grad in zip(params.named.items(), params.grads, strict=True):
        found[name] = torch.nn.Parameter(param.detach().to(where, copy=True))
        flat = torch.zeros(grad.numel() + offset, dtype=grad.dtype, device=where)[offset:]
        found[name].grad = flat.view(grad.shape).copy_(grad)
    return found


def _off(start: Sequence[Tensor], want: Sequence[Tensor], have: Sequence[Tensor]) -> float:
    """The distance between two ends, as a share of the way from the start."""
    apart = moved = 0.0
    for first, a, b in zip(start, want, have, strict=True):
        apart += float((a.detach().double() - b.detach().cpu().double()).square().sum())
        moved += float((a.detach().double() - first.detach().double()).square().sum())
    return (apart / moved) ** 0.5


# -- 4 to 8: fast ----------------------------------------------------------------------------------------------------


def elementwise(bench: Bench) -> Iterator[Job]:
    """Rules that see one entry, against torch's fused and multi-tensor AdamW and the rate of copies."""
    for size in bench.sizes:
        for dtype in (torch.float32, torch.bfloat16):
            for name in bench.of_scope(Scope.ELEMENT):
                form = "fp32" if dtype is torch.float32 else "bf16, nearest"
                yield _race(bench, name, form, bench.model(size), [candidates.base(dtype), _foreach()])


def reductions(bench: Bench) -> Iterator[Job]:
    """Rules with sums over a tensor, a row or a column, and those with sums over all tensors."""
    names = [*bench.of_scope(Scope.TENSOR), *bench.of_scope(Scope.ELEMENT, Scope.TENSOR, probes=True)]
    for size in bench.sizes:
        for name, form in [*((name, "fp32") for name in names), ("adamw", "fp32, caution")]:
            yield _race(bench, name, form, bench.model(size), [candidates.base(torch.float32)])


def formats(bench: Bench) -> Iterator[Job]:
    """AdamW's ways to keep state and low-precision parameters, beside bitsandbytes' and torchao's where they are."""
    for size in bench.sizes:
        for form in bench.forms:
            dtype, options = FORMS[form]
            if form not in ("fp32", "fp64", "fp32, caution"):
                coded = options.get("state_dtype") if options.get("state_dtype") in candidates.CODED else "full"
                peers = [
                    peer
                    for peer in candidates.peers("adamw", dtype)
                    if peer.package in ("bitsandbytes", "torchao") and peer.form == coded
                ]
                yield _race(bench, "adamw", form, bench.model(size), [candidates.base(dtype), *peers])


def matrices(bench: Bench) -> Iterator[Job]:
    """Rules that multiply matrices, beside torch.optim.Muon; and the symmetric products of one iteration."""
    for batch, rows, columns in [(2, 32, 64)] if bench.device.dry else _PRODUCTS:
        row = {"optimizer": f"X X^T = A, A + A^2: {batch} of {rows} x {columns}", "form": "bf16", "tensors": batch}
        yield row | {"numel": batch * rows * columns}, partial(_products, bench, batch, rows, columns)
    for name in bench.of_scope(Scope.MATRIX):
        theirs = [Candidate(label, "torch", "full", make) for label, module, make in _EXTRA_MUON if module == "torch"]
        yield _race(bench, name, "fp32", bench.model(bench.sizes[0]), theirs)


_EXTRA_MUON = candidates.EXTRA["muon"]
# Of GPT-2, of a model of 1 B and of one of 7 B: from how many rows on half of a product is worth a kernel of our own.
_PRODUCTS = ((12, 768, 768), (9, 768, 3072), (36, 256, 1024), (16, 512, 512), (4, 1600, 1600), (1, 4096, 4096))


def _products(bench: Bench, batch: int, rows: int, columns: int) -> Row:
    """Both products that are symmetric, of which our kernel computes a half, beside torch's."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, rows, columns, generator=generator).to(bench.device.type, torch.bfloat16) / columns**0.5

    def ours() -> Tensor:
        own = products.symmetric(x, None, 1.0, 0.0)
        return products.symmetric(own, own, 1.0, 1.0)

    def theirs() -> Tensor:
        own = torch.bmm(x, x.mT)
        return torch.baddbmm(own, own, own)

    launches = device_clock.launches(bench.device, ours)
    row: Row = {"launches": launches, "by": launches["by"]}
    gram = (x @ x.mT).double()
    found, exact = ours().double(), gram @ gram + gram
    row["off"] = float((found - exact).abs().max() / exact.abs().max())
    row["others"] = {"torch": device_clock.launches(bench.device, theirs)}
    row["times"] = device_clock.in_turn(bench.device, {"hfoptim": ours, "torch": theirs}, bench.repeats, bench.until)
    return row


def host(bench: Bench) -> Iterator[Job]:
    """A whole step as a user takes it, of a model and of a LoRA: time of the host and launches."""
    rank, width = 8, 4096
    lora = {f"h.{i}.lora_{'AB'[i % 2]}": ((rank, width), (width, rank))[i % 2] for i in range(bench.adapters)}
    if bench.device.dry:
        lora = dict.fromkeys(lora, (2, 3))
    for shapes in (bench.model(bench.sizes[0]), lora):
        yield _race(bench, "adamw", "fp32", shapes, [candidates.base(torch.float32), _foreach()])


def _foreach() -> Candidate:
    decay = candidates.WEIGHT_DECAY
    return Candidate(
        "torch AdamW foreach", "torch", "full", lambda p: torch.optim.AdamW(p.tensors, weight_decay=decay, foreach=True)
    )


def _race(bench: Bench, name: str, form: str, shapes: Shapes, others: Sequence[Candidate]) -> Job:
    row = {"optimizer": name, "form": form, "numel": measure.entries(shapes), "tensors": len(shapes)}
    return row, partial(_raced, bench, name, form, shapes, others)


def _raced(bench: Bench, name: str, form: str, shapes: Shapes, others: Sequence[Candidate]) -> Row:
    """Time one of ours in turn with others."""
    dtype, options = FORMS[form][0], options_of(name, form) or {}
    numel = measure.entries(shapes)
    # Parameters and gradients, and two states of each.
    needed = numel * dtype.itemsize * 2 + numel * 8 * (1 + len(others)) + 1e9
    if needed > bench.device.free() and not bench.device.dry:
        return {"error": f"needs {needed / 1e9:.0f} GB of the device's memory"}
    params = Parameters(shapes, dtype, bench.device.type)
    made = hfoptim.get_optimizer_info(name).opt_class(list(params.named.items()), **options)
    with traffic.watched(*([GENERATED, AROUND] if bench.device.dry else [])) as seen:
        first = measure.seconds(partial(_waited, bench.device, made))
    row: Row = {"first_step_s": first, "launches": device_clock.launches(bench.device, made.step)}
    row["by"] = row["launches"]["by"]
    steps = {"hfoptim": made.step}
    for other in others:
        row.setdefault("others", {})[other.label] = _joined(bench, other, params, steps)
    row["times"] = device_clock.in_turn(bench.device, steps, bench.repeats, bench.until)
    moved = traffic.moved_by(made, seen)
    if moved is not None and bench.rate is not None:
        row |= {
            "bytes_moved": moved,
            "of_copy_rate": moved * numel / bench.rate / (1e-3 * row["times"]["hfoptim"]["median_ms"]),
        }
    return row


def _waited(device: Device, optimizer: Any) -> None:
    optimizer.step()
    device.wait()


def _joined(bench: Bench, other: Candidate, params: Parameters, steps: dict[str, Callable[[], Any]]) -> Row:
    """Let another take part, and count its launches; or say why it does not run here."""
    try:
        optimizer = other.make(params)
        optimizer.step()
        found = device_clock.launches(bench.device, optimizer.step)
    except Exception as error:  # whatever a peer needs
        return {"error": measure.reason(error)}
    steps[other.label] = optimizer.step
    return found


PARTS: dict[str, tuple[Callable[[Bench], Iterator[Job]], float]] = {
    # By name: the jobs, and the share of the time.
    "machine": (machine, 0.02),
    "compiling": (compiling, 0.25),
    "right": (right, 0.22),
    "elementwise": (elementwise, 0.18),
    "reductions": (reductions, 0.13),
    "formats": (formats, 0.1),
    "matrices": (matrices, 0.05),
    "host": (host, 0.05),
}
