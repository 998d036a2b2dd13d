"""Runs whose number of processes changes on the way are the run that was never stopped, but for rounding."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import ROOT, run_ranks
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

WORKER = Path(__file__).parent / "elastic_worker.py"
LAST = "24"


def losses(said: str) -> dict[int, tuple[int, float]]:
    """The number of processes and the loss of each step, the last time that it was taken."""
    found = re.findall(r"step +(\d+) of (\d) process\(es\)  loss ([\d.]+)", said)
    return {int(step): (int(ranks), float(loss)) for step, ranks, loss in found}


def whole(folder: Path) -> dict[str, Any]:
    """The last checkpoint of a run."""
    dcp_to_torch_save(folder / LAST, folder / "whole.pt")
    found: dict[str, Any] = torch.load(folder / "whole.pt", weights_only=False)
    return found


def assert_same_run(folder: Path, said: str, alone: Path, of_alone: str) -> None:
    mine, other = losses(said), losses(of_alone)
    assert mine.keys() == other.keys() == set(range(24))
    for step, (_, loss) in mine.items():
        assert loss == pytest.approx(other[step][1], abs=2e-4), step
    got, want = whole(folder), whole(alone)
    assert got["step"] == want["step"] == 24
    assert got["schedule"] == want["schedule"]
    for name, weight in want["model"].items():
        torch.testing.assert_close(got["model"][name], weight, rtol=1e-3, atol=2e-5, msg=name)
    steps = {name: state["step"] for name, state in want["optimizer"]["state"].items()}
    assert {name: state["step"] for name, state in got["optimizer"]["state"].items()} == steps


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_killed_on_two_processes_resumed_on_one_and_again_on_two(tmp_path: Path, name: str) -> None:
    (alone := tmp_path / "alone").mkdir()
    (folder := tmp_path / "changing").mkdir()
    of_alone = run_ranks(WORKER, str(alone), name, ranks=1, output=tmp_path, timeout=240)[0]
    said = ""
    for ranks, until in ((2, ["9"]), (1, ["17"]), (2, [])):
        said += run_ranks(WORKER, str(folder), name, *until, ranks=ranks, output=tmp_path, timeout=240)[0]
    found = losses(said)
    # What was about to be saved is lost or not, and done again then.
    assert [found[step][0] for step in (0, 3, 8, 11, 16, 23)] == [2, 2, 1, 1, 2, 2]
    assert_same_run(folder, said, alone, of_alone)


class Machines:
    """torchrun on several machines, which are processes here."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder, self.running = folder, list[subprocess.Popen[bytes]]()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            endpoint = f"localhost:{free.getsockname()[1]}"
        self._command = [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1"),
            *("--max-restarts=9", "--monitor-interval=0.5", "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}"),
            *("--rdzv-id=elastic", "--rdzv-conf=last_call_timeout=5,join_timeout=120", str(WORKER), *arguments),
        ]

    def join(self) -> subprocess.Popen[bytes]:
        own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        own["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # see examples/elastic/README.md
        with (self.folder / f"machine-{len(self.running)}.txt").open("wb") as output:
            machine = subprocess.Popen(
                self._command,
                env={**os.environ, **own},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running.append(machine)
        return machine

    def said(self) -> str:
        return "".join((self.folder / f"machine-{i}.txt").read_text() for i in range(len(self.running)))

    def wait(self, until: Callable[[dict[int, tuple[int, float]]], bool], seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not until(losses(self.said())):
            assert time.monotonic() < deadline, self.said()[-8000:]
            time.sleep(0.2)


def lost(machine: subprocess.Popen[bytes]) -> None:
    """All processes of a machine, at once: those that torchrun starts have sessions of their own."""
    children = Path(f"/proc/{machine.pid}/task/{machine.pid}/children").read_text().split()
    for process in [machine.pid, *map(int, children)]:
        os.kill(process, signal.SIGKILL)
    machine.wait()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the processes of a machine are found in /proc")
def test_machines_that_torchrun_loses_and_gets(tmp_path: Path) -> None:
    (alone := tmp_path / "alone").mkdir()
    (folder := tmp_path / "changing").mkdir()
    of_alone = run_ranks(WORKER, str(alone), "adamw", ranks=1, output=tmp_path, timeout=240)[0]
    machines = Machines(tmp_path, str(folder), "adamw")
    try:
        first, second = machines.join(), machines.join()
        machines.wait(lambda found: 6 in found)
        lost(second)
        machines.wait(lambda found: any(ranks == 1 for ranks, _ in found.values()))
        machines.join()
        assert first.wait(240) == 0, machines.said()[-8000:]
    finally:
        for machine in machines.running:
            if machine.poll() is None:
                lost(machine)
    said = machines.said()
    numbers = [int(ranks) for ranks in re.findall(r"of (\d) process", said)]
    changes = [number for number, before in zip(numbers, [0, *numbers], strict=False) if number != before]
    assert changes in ([2, 1, 2], [1, 2, 1, 2])
    assert_same_run(folder, said, alone, of_alone)
