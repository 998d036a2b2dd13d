"""Time and launches on a device, or on a CPU that stands in for one in a dry run."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import measure
import torch

from hfoptim.engine import backends
from hfoptim.engine.bucket import Bucket
from hfoptim.engine.codegen.triton import launch

# Clock cycles a second, more than devices have: for how long they are kept busy while the host runs ahead.
_CYCLES = 2.2e9


@dataclass(frozen=True)
class Device:
    """Where steps are timed.

    Args:
        type: "cuda"; "cpu" in a dry run, whose times mean nothing.
    """

    type: str

    @property
    def dry(self) -> bool:
        return self.type == "cpu"

    def wait(self) -> None:
        """Until all that was asked for is done."""
        if not self.dry:
            torch.cuda.synchronize()

    def free(self) -> float:
        """Bytes of memory that can be had."""
        return float(measure.available_memory() if self.dry else torch.cuda.mem_get_info()[0])

    def stamp(self) -> Any:
        """A point in time, on the device's own clock: an event, or seconds."""
        if self.dry:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        """Milliseconds from one stamp to another, both of the past."""
        return 1e3 * (end - start) if self.dry else float(start.elapsed_time(end))

    def busy(self, seconds: float) -> None:
        """Keep the device busy, so that the host can ask for a whole step before any of it begins."""
        if not self.dry:
            torch.cuda._sleep(int(seconds * _CYCLES))


def in_turn(
    device: Device, steps: Mapping[str, Callable[[], Any]], repeats: int, until: float
) -> dict[str, dict[str, float]]:
    """Time several steps one after the other, again and again, after two rounds off the clock.

    Args:
        device: where.
        steps: by label.
        repeats: rounds, at most.
        until: no further round begins after this moment of `time.perf_counter`, unless fewer than three are done.

    Returns:
        For each label the time on the device (`measure.summary`) without waiting for the host, and the median of the
        host's own time in `host_ms`.
    """
    host: dict[str, list[float]] = {label: [] for label in steps}
    stamps: dict[str, list[tuple[Any, Any]]] = {label: [] for label in steps}
    for label, step in steps.items():
        step()
        device.wait()
        host[label].append(measure.seconds(step))
        device.wait()
    for done in range(repeats):
        if done >= 3 and time.perf_counter() > until:
            break
        for label, step in steps.items():
            device.busy(2.0 * statistics.median(host[label]))
            start = device.stamp()
            host[label].append(measure.seconds(step))
            stamps[label].append((start, device.stamp()))
            device.wait()
    found = {}
    for label in steps:
        seconds = [1e-3 * device.between(*pair) for pair in stamps[label]]
        found[label] = {**measure.summary(seconds), "host_ms": 1e3 * statistics.median(host[label])}
    return found


# -- launches --------------------------------------------------------------------------------------------------------


@dataclass
class Launched:
    """What took steps.

    Args:
        generated: how often each generated Triton function was launched.
        by_torch: how many parameters torch's operations stepped.
    """

    generated: Counter[str] = field(default_factory=Counter)
    by_torch: int = 0

    @property
    def by(self) -> str:
        """By what steps were taken, in words."""
        ways = (("generated Triton kernels", self.generated), ("torch's operations", self.by_torch))
        return " and ".join(way for way, taken in ways if taken)


@contextmanager
def counted() -> Iterator[Launched]:
    """What takes steps meanwhile."""
    found = Launched()
    start = launch.start

    def counting(function: Any, *arguments: Any) -> None:
        found.generated[function.__name__] += 1
        start(function, *arguments)

    def seeing(step: Callable[[Bucket], None]) -> Callable[[Bucket], None]:
        def stepped(bucket: Bucket) -> None:
            found.by_torch += len(bucket.rows)
            step(bucket)

        return stepped

    with (
        mock.patch.object(launch, "start", counting),
        mock.patch.object(backends.FOREACH, "step", seeing(backends.FOREACH.step)),
        mock.patch.object(backends.MATRIX, "step", seeing(backends.MATRIX.step)),
    ):
        yield found


def launches(device: Device, step: Callable[[], Any]) -> dict[str, Any]:
    """Of one step: launches of generated kernels by name, and of all; copies to the device, waits for it; by what.

    In a dry run only the first is any.
    """
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([] if device.dry else [ProfilerActivity.CUDA])]
    device.wait()
    with counted() as ours, profile(activities=activities) as profiled:
        step()
        device.wait()
    events = profiled.events()
    names = [event.name for event in events if event.device_type.name == "CUDA"]
    copies = [name for name in names if name.startswith(("Memcpy", "Memset"))]
    waits = [event.name for event in events if event.name.endswith("Synchronize")]
    # The last wait is the measurement's own.
    own = 0 if device.dry else 1
    return {
        "generated": dict(ours.generated),
        "by": ours.by,
        "all": len(names) - len(copies),
        "copies": len(copies),
        "waits": len(waits) - own,
    }
