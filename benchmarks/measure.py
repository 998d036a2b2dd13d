"""What the benchmarks share: shapes, parameters, timing in turn, memory, results."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.metadata
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

# Peers that nothing but the benchmarks needs (peers.txt).
sys.path.append(os.path.join(sys.prefix, "bench"))

RESULTS = Path(__file__).resolve().parent / "results"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_PEERS = (
    *("triton", "timm", "pytorch_optimizer", "torch-optimi", "heavyball", "transformers", "torchao", "bitsandbytes"),
    *("lion-pytorch", "schedulefree", "prodigyopt", "adam_mini"),
)


# -- shapes and parameters -------------------------------------------------------------------------------------------


def gpt2_shapes(layers: int = 12, width: int = 768, vocab: int = 50257, context: int = 1024) -> Shapes:
    """GPT-2's parameters by name, the tied head counted once: 124 M entries in 148 tensors by default."""
    block: Shapes = {
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "attn.c_attn.weight": (width, 3 * width),
        "attn.c_attn.bias": (3 * width,),
        "attn.c_proj.weight": (width, width),
        "attn.c_proj.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
        "mlp.c_fc.weight": (width, 4 * width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (4 * width, width),
        "mlp.c_proj.bias": (width,),
    }
    shapes: Shapes = {"transformer.wte.weight": (vocab, width), "transformer.wpe.weight": (context, width)}
    for layer in range(layers):
        shapes |= {f"transformer.h.{layer}.{name}": shape for name, shape in block.items()}
    return shapes | {"transformer.ln_f.weight": (width,), "transformer.ln_f.bias": (width,)}


# GPT-2's shapes have this many entries per squared width, if vocabulary and context grow with the width as below.
_VOCAB, _CONTEXT, _LAYERS = 65, 1, 12
_PER_SQUARE = 12 * _LAYERS + _VOCAB + _CONTEXT


def gpt2_of(size: float) -> Shapes:
    """GPT-2's 148 tensors with about so many entries."""
    width = max(2, round(math.sqrt(size / _PER_SQUARE)))
    return gpt2_shapes(layers=_LAYERS, width=width, vocab=_VOCAB * width, context=_CONTEXT * width)


def adapter_shapes(pairs: int, rank: int = 8, width: int = 4096) -> Shapes:
    """Pairs of LoRA matrices by name."""
    sides = {"lora_A": (rank, width), "lora_B": (width, rank)}
    return {f"layer.{i}.{side}.weight": shape for i in range(pairs) for side, shape in sides.items()}


def equal_shapes(count: int, *shape: int) -> Shapes:
    """So many tensors of one shape."""
    return {f"layer.{i}.weight": shape for i in range(count)}


def entries(shapes: Shapes) -> int:
    """How many numbers the shapes hold."""
    return sum(torch.Size(shape).numel() for shape in shapes.values())


class Parameters:
    """Parameters with gradients, random but the same every time.

    Args:
        shapes: by name.
        dtype: of parameters and gradients.
        device: where they are.
    """

    def __init__(self, shapes: Shapes, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        generator = torch.Generator(device).manual_seed(0)

        def normal(shape: tuple[int, ...], scale: float) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device).normal_(0.0, scale, generator=generator)

        self.named = {name: torch.nn.Parameter(normal(shape, 0.02)) for name, shape in shapes.items()}
        self.grads = [normal(shape, 1e-3) for shape in shapes.values()]
        self._spare: list[Tensor] | None = None
        self.attach()

    @property
    def tensors(self) -> list[torch.nn.Parameter]:
        return list(self.named.values())

    @property
    def numel(self) -> int:
        return sum(grad.numel() for grad in self.grads)

    def attach(self) -> None:
        """Hand the gradients to the parameters: some optimizers take them away."""
        for param, grad in zip(self.tensors, self.grads, strict=True):
            param.grad = grad

    def guard(self) -> None:
        """Keep a copy of the gradients, which `restore` goes back to."""
        self._spare = [grad.clone() for grad in self.grads]

    def restore(self) -> None:
        """Undo what an optimizer did to the gradients: some use them as scratch memory."""
        if self._spare is not None:
            torch._foreach_copy_(self.grads, self._spare)
        self.attach()


# -- time ------------------------------------------------------------------------------------------------------------


class TooLong(Exception):
    """Something was not done in time."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TooLong in what takes longer: a peer's compiler, for example."""

    def stop(*_: Any) -> None:
        raise TooLong(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def seconds(function: Callable[[], Any]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_turn(
    steps: Mapping[str, Callable[[], Any]],
    repeats: int,
    budget: float = float("inf"),
    least: int = 3,
    between: Callable[[], Any] | None = None,
) -> dict[str, list[float]]:
    """Time several calls one after the other, again and again, so that a noisy machine is noisy for all of them.

    Args:
        steps: by label.
        repeats: rounds.
        budget: no further round begins after so many seconds...
        least: ... unless fewer rounds than this are done.
        between: called after each of them, off the clock.
    """
    times: dict[str, list[float]] = {label: [] for label in steps}
    start = time.perf_counter()
    gc.collect()
    gc.disable()
    try:
        for done in range(repeats):
            if done >= least and time.perf_counter() - start > budget:
                break
            for label, step in steps.items():
                times[label].append(seconds(step))
                if between is not None:
                    between()
    finally:
        gc.enable()
    return times


def summary(times: Sequence[float]) -> dict[str, float | int]:
    """Median, extremes and number of timed calls; milliseconds."""
    ms = sorted(1e3 * t for t in times)
    return {"median_ms": statistics.median(ms), "min_ms": ms[0], "max_ms": ms[-1], "repeats": len(ms)}


# A machine is busy when a step of torch's takes so much longer at the median than at its fastest.
_BUSY = 1.25


def busy(base: Mapping[str, float | int]) -> bool:
    """Whether the times of torch's fused AdamW, by `summary`, tell that something else was running.

    Then its times say little: it meets at a barrier for each tensor, and each waits for the thread that had to wait.
    """
    return base["median_ms"] > _BUSY * base["min_ms"]


# -- memory ----------------------------------------------------------------------------------------------------------


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The plain tensors in nested containers; those inside of tensors that are made of others."""
    if isinstance(value, Tensor):
        flatten = getattr(value, "__tensor_flatten__", None)
        if flatten is None:
            yield value
        else:
            for name in flatten()[0]:
                yield from tensors_in(getattr(value, name))
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from tensors_in(entry)
    elif isinstance(value, (list, tuple, set)):
        for entry in value:
            yield from tensors_in(entry)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in an optimizer's state; what several parameters share counts once."""
    own = {tensor.untyped_storage().data_ptr() for group in optimizer.param_groups for tensor in group["params"]}
    seen: dict[int, int] = {}
    for tensor in tensors_in(list(optimizer.state.values())):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = max(seen.get(storage.data_ptr(), 0), storage.nbytes())
    return sum(seen.values())


def available_memory() -> int:
    """Bytes that can be had without swapping."""
    return _proc("/proc/meminfo", "MemAvailable")


def resident() -> int:
    """Bytes of memory that the process holds."""
    return _proc("/proc/self/status", "VmRSS")


def peak_above(function: Callable[[], Any]) -> int:
    """By how many bytes a call raises the memory of the process at most."""
    trim()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident()
    function()
    return max(0, _proc("/proc/self/status", "VmHWM") - before)


def trim() -> None:
    """Give back to the system what is free."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


# Every tensor from 64 KB on has pages of its own, given back when it is freed. Otherwise freed memory stays with the
# process, and what a later step allocates does not show.
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}


def _proc(path: str, key: str) -> int:
    for line in Path(path).read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(f"{path} has no {key}")


# -- processes and results -------------------------------------------------------------------------------------------


def child(script: str, job: Mapping[str, Any], environment: Mapping[str, str] = {}, limit: float = 600.0) -> Any:
    """Run `python <script> --child <job>` in a fresh process.

    Returns:
        What `serve` hands over, or {"error": why it did not}.
    """
    command = [sys.executable, script, "--child", json.dumps(job)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {limit:.0f} s"}
    for line in reversed(done.stdout.splitlines()):
        if line.startswith(_MARK):
            return json.loads(line.removeprefix(_MARK))
    last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
    return {"error": last[0] if last else f"ended with {done.returncode}"}


_MARK = "@result "


def serve(run: Callable[[dict[str, Any]], Any], job: str) -> None:
    """Do a job for the process that called `child`: hand over what `run` returns, or why it failed."""
    try:
        result = run(json.loads(job))
    except Exception as error:  # whatever it is, the other process is to know
        result = {"error": reason(error)}
    print(_MARK + json.dumps(result), flush=True)


def reason(error: BaseException) -> str:
    """An error on one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def about(**more: Any) -> dict[str, Any]:
    """The machine and the versions a result belongs to."""
    versions = {"hfoptim": _version("hfoptim"), "torch": torch.__version__}
    versions |= {name: version for name in _PEERS if (version := _version(name))}
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions,
        **more,
    }


def _version(name: str) -> str | None:
    # timm lies in a folder of its own, see tests/peers.py.
    for found in importlib.metadata.distributions(name=name, path=[*sys.path, os.path.join(sys.prefix, "peers")]):
        return found.version
    return None


def _processor() -> str:
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        for line in cpu.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write(output: Path, benchmark: str, result: Mapping[str, Any]) -> None:
    """Write a result as JSON, whole."""
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_suffix(".part")
    part.write_text(json.dumps({"benchmark": benchmark, **result}, indent=1) + "\n")
    os.replace(part, output)


def digits(value: float | None, places: int = 2) -> str | None:
    """A number for a table; None stays None."""
    return None if value is None else f"{value:.{places}f}"
