"""Our compiled steps on a CUDA device: right, fast, and in how few kernel launches.

    python benchmarks/gpu.py                     # everything
    python benchmarks/gpu.py --size 124e6 --family adamw --family lion

Four parts; on a machine without CUDA it says so and ends.

- right: every optimizer's compiled step on the device against the loop on the CPU, from the same values.
- times: ours against torch's fused AdamW, in turn, and against the floor that the bytes moved set (see step_time.py).
- launches: kernels that one step starts, from torch's profiler.
- sharing: AdamW's step by several ways of having tensors share launches: torch.compile over torch's multi-tensor
  functions, torch's fused kernel, and the engine's own choice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import candidates
import console
import measure
import torch
import traffic
import typer
from measure import Parameters

import hfoptim
from hfoptim.engine import Scope
from hfoptim.registry.lookup import option_names

SIZES = (124e6, 1e9)
STEPS = 3
# Relative difference to the CPU, in the Euclidean norm: sums are added up in another order.
TOLERANCE = 1e-3
# For the comparison with the CPU: all kinds of parameters, large ones and small ones.
SMALL = measure.gpt2_shapes(layers=2, width=256, vocab=2000, context=128)


def sides(name: str) -> Iterator[str]:
    """The forms in which an optimizer is checked."""
    yield from ("full", *(("bfloat16", *candidates.CODED) if name in candidates.COMPRESSED else ()))


# -- right -----------------------------------------------------------------------------------------------------------


def check(name: str, form: str, dtype: torch.dtype) -> dict[str, Any]:
    """Compare some steps on the device with the loop on the CPU."""
    row: dict[str, Any] = {"optimizer": name, "form": form, "dtype": str(dtype).removeprefix("torch.")}
    # Where numbers are rounded by chance, or in another precision than on a CPU, there would be nothing to compare.
    more = {"ns_dtype": "float32"} if "ns_dtype" in option_names(name) else {}
    more |= {"state_rounding": "nearest"} if form != "full" else {}
    start, host, device = (Parameters(SMALL, dtype) for _ in range(3))
    device = moved(device)
    reference = candidates.ours(name, form, "loop", **more).make(host)
    optimizer = candidates.ours(name, form, "compiled", **more).make(device)
    for _ in range(STEPS):
        reference.step()
        optimizer.step()
    difference = movement = 0.0
    for first, want, have in zip(start.tensors, host.tensors, device.tensors, strict=True):
        difference += float((have.detach().cpu().double() - want.detach().double()).square().sum())
        movement += float((want.detach().double() - first.detach().double()).square().sum())
    row["off"] = (difference / movement) ** 0.5
    # A rounding that falls the other way is a whole step of the coarser numbers.
    row["kept"] = row["off"] <= (TOLERANCE if form == "full" and dtype is torch.float32 else 100 * TOLERANCE)
    return row


def moved(params: Parameters) -> Parameters:
    """The same parameters and gradients on the device."""
    params.named = {name: torch.nn.Parameter(param.detach().cuda()) for name, param in params.named.items()}
    params.grads = [grad.cuda() for grad in params.grads]
    params.attach()
    return params


# -- times -----------------------------------------------------------------------------------------------------------


def waited(optimizer: Any) -> Callable[[], None]:
    """A step with the wait for the device."""

    def step() -> None:
        optimizer.step()
        torch.cuda.synchronize()

    return step


def time_step(name: str, size: float, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """Time one of ours in turn with torch's fused AdamW."""
    shapes = measure.gpt2_of(size)
    row: dict[str, Any] = {"optimizer": name, "numel": measure.entries(shapes), "dtype": str(dtype)[6:]}
    needed = row["numel"] * (2 * dtype.itemsize + 16 + 2 * dtype.itemsize)
    if needed > torch.cuda.mem_get_info()[0]:
        return row | {"error": f"needs {needed / 1e9:.0f} GB of the device's memory"}
    params = Parameters(shapes, dtype, "cuda")
    mine, base = candidates.ours(name).make(params), candidates.base(dtype).make(params)
    first = measure.seconds(waited(mine))
    for optimizer in (mine, base):
        for _ in range(3):
            optimizer.step()
    steps = {"ours": waited(mine), "base": waited(base)}
    timed = {label: measure.summary(each) for label, each in measure.in_turn(steps, repeats).items()}
    ratio = timed["ours"]["median_ms"] / timed["base"]["median_ms"]
    scope = candidates.scope(mine)
    row |= {"median_ms": timed["ours"]["median_ms"], "base_median_ms": timed["base"]["median_ms"], "ratio": ratio}
    row |= {"first_step_s": first, "scope": scope.name, "launches": launches(mine), "base_launches": launches(base)}
    # The bytes are those of the CPU's kernels, which the same rule is scheduled for.
    if scope is not Scope.MATRIX:
        bytes_moved = traffic.bytes_moved(candidates.ours(name).make(Parameters(SMALL, dtype)))
        if bytes_moved is not None:
            row |= {"bytes_moved": bytes_moved, "of_floor": ratio * traffic.adamw_bytes(dtype) / bytes_moved}
    return row


def launches(optimizer: Any) -> int:
    """How many kernels one step starts."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        waited(optimizer)()
    kernels = [event for event in profiled.events() if event.device_type.name == "CUDA"]
    return sum(not event.name.startswith(("Memcpy", "Memset")) for event in kernels)


# -- sharing launches ------------------------------------------------------------------------------------------------


def _multi_tensor(params: Parameters) -> Any:
    """torch.compile over torch's multi-tensor functions, as torch.optim.AdamW calls them."""
    lr = torch.tensor(1e-3, device="cuda")
    optimizer = torch.optim.AdamW(params.tensors, lr=lr, foreach=True, capturable=True)
    optimizer.step = torch.compile(optimizer.step, fullgraph=False)  # type: ignore[method-assign]
    return optimizer


def _adamw(params: Parameters) -> Any:
    return candidates.ours("adamw").make(params)


Way = tuple[Callable[[Parameters], Any], contextlib.AbstractContextManager[None]]


def ways() -> dict[str, Way]:
    """Ways of sharing launches: by label how the optimizer is made, and within what it steps."""
    found: dict[str, Way] = {}
    found["torch.compile of torch's foreach AdamW"] = (_multi_tensor, contextlib.nullcontext())
    found["torch AdamW fused"] = (candidates.base(torch.float32).make, contextlib.nullcontext())
    found["hfoptim's own choice"] = (_adamw, contextlib.nullcontext())
    return found


def share_launches(size: float, repeats: int) -> list[dict[str, Any]]:
    """Time AdamW's step by every way; one after the other, for each has its own settings."""
    params = Parameters(measure.gpt2_of(size), torch.float32, "cuda")
    rows = []
    for label, (make, within) in ways().items():
        row: dict[str, Any] = {"way": label, "numel": params.numel}
        try:
            with within:
                optimizer = make(params)
                row["first_step_s"] = measure.seconds(waited(optimizer))
                for _ in range(3):
                    optimizer.step()
                row |= measure.summary(measure.in_turn({label: waited(optimizer)}, repeats)[label])
                row["launches"] = launches(optimizer)
        except Exception as error:  # another version of torch may not know a setting
            row["error"] = measure.reason(error)
        rows.append(row)
        torch.cuda.empty_cache()
    return rows


# -- the command -----------------------------------------------------------------------------------------------------


def attempt(function: Callable[..., dict[str, Any]], row: dict[str, Any], *arguments: Any) -> dict[str, Any]:
    """What a measurement gives, or the row with the reason why it failed."""
    try:
        return function(*arguments)
    except Exception as error:  # the others are worth having
        return row | {"error": measure.reason(error)}


def show(result: dict[str, Any]) -> None:
    """Print the parts."""
    number, verdict = measure.digits, {True: "yes", False: "NO", None: None}
    console.table(
        f"{STEPS} compiled steps on the device against the loop on the CPU",
        ("optimizer", "form", "dtype", "error / movement", "kept"),
        [
            [
                *(row["optimizer"], row["form"], row["dtype"]),
                row["error"] if "error" in row else f"{row['off']:.1e}",
                verdict[row.get("kept")],
            ]
            for row in result["right"]
        ],
    )
    console.table(
        "Time of a step",
        ("optimizer", "dtype", "M", "ms", "torch AdamW fused, ms", "ratio", "of its floor", "launches", "first s"),
        [
            [
                *(row["optimizer"], row["dtype"], number(row["numel"] / 1e6, 0), number(row.get("median_ms"))),
                *(number(row.get("base_median_ms")), number(row.get("ratio")), number(row.get("of_floor"))),
                *(row.get("launches", row.get("error")), number(row.get("first_step_s"), 1)),
            ]
            for row in result["times"]
        ],
    )
    console.table(
        "AdamW by ways of sharing launches",
        ("way", "M", "ms", "launches", "first step s"),
        [
            [
                *(row["way"], number(row["numel"] / 1e6, 0), number(row.get("median_ms"))),
                *(row.get("launches", row.get("error")), number(row.get("first_step_s"), 1)),
            ]
            for row in result["sharing"]
        ],
    )


def main(
    size: Annotated[list[float] | None, typer.Option(help="parameters; default 124e6 and 1e9")] = None,
    family: Annotated[list[str] | None, typer.Option(help="an optimizer of the registry; default all")] = None,
    repeats: Annotated[int, typer.Option(help="timed steps of each")] = 30,
    output: Annotated[Path, typer.Option(help="the JSON file to write")] = measure.RESULTS / "gpu.json",
) -> None:
    """Check and time compiled steps on a CUDA device."""
    if not torch.cuda.is_available():
        console.OUT.print("no CUDA device")
        return
    chosen = [hfoptim.get_optimizer_info(name).name for name in family] if family else candidates.names()[0]
    about = measure.about(device=torch.cuda.get_device_name())
    result: dict[str, Any] = {"about": about, "right": [], "times": [], "sharing": []}
    for name in chosen:
        for form in sides(name):
            for dtype in (torch.float32, torch.bfloat16):
                row: dict[str, Any] = {"optimizer": name, "form": form, "dtype": str(dtype)[6:]}
                result["right"].append(attempt(check, row, name, form, dtype))
        measure.write(output, "gpu", result)
    for each in size or SIZES:
        for name in chosen:
            for dtype in (torch.float32, torch.bfloat16):
                row = {"optimizer": name, "numel": each, "dtype": str(dtype)[6:]}
                result["times"].append(attempt(time_step, row, name, each, dtype, repeats))
                torch.cuda.empty_cache()
        result["sharing"] += share_launches(each, repeats)
        measure.write(output, "gpu", result)
    show(result)


if __name__ == "__main__":
    typer.run(main)
