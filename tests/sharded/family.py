"""Starts the processes of one family of sharded tests: one process group for its tasks, with a time-out of its own.

Each family is a module, so that the workers of pytest-xdist share them out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from ranks import run_ranks
from tiers import DENSE, entries_of_each_kind

import hfoptim

TESTS = Path(__file__).resolve().parents[1]
# Seconds on a machine with more to do: for imports, and for each optimizer of each task.
START, EACH = 120, 15


class Found(NamedTuple):
    """What a task found on each rank, and the CPU-seconds of all ranks by optimizer."""

    ranks: list[Any]
    cpu_seconds: dict[str, float]


def launch(folder: Path, ranks: int, which: str, *tasks: str) -> dict[str, Found]:
    """Run tasks of the worker on so many processes: what they found, by task.

    Args:
        folder: theirs, for checkpoints and what they say.
        ranks: how many.
        which: "few" or "all" options and optimizers.
        *tasks: names of functions of worker.py.
    """
    optimizers = len(DENSE) if which == "all" or "every_optimizer" in tasks else len(entries_of_each_kind())
    run_ranks(
        *(TESTS / "sharded" / "worker.py", str(folder), "{rank}", str(ranks), which, *tasks),
        ranks=ranks,
        output=folder,
        timeout=START + EACH * optimizers * len(tasks),
        paths=[TESTS, TESTS / "optimizers"],
    )
    return {task: _found(folder, ranks, task) for task in tasks}


def _found(folder: Path, ranks: int, task: str) -> Found:
    said = [json.loads((folder / f"{task}.{rank}.json").read_text()) for rank in range(ranks)]
    spent = [each["cpu_seconds"] for each in said]
    return Found([each["found"] for each in said], {name: sum(s[name] for s in spent) for name in spent[0]})


def outcomes(worker: str, folder: Path, which: str) -> list[Any]:
    """Run another worker, WORKER_worker.py, on two processes: what each has written into WORKER.RANK.json.

    Args:
        worker: which.
        folder: where it writes.
        which: "few" or "all" options and optimizers.
    """
    run_ranks(
        *(TESTS / "sharded" / f"{worker}_worker.py", str(folder), "{rank}", "2", which),
        ranks=2,
        output=folder,
        timeout=300,
        paths=[TESTS, TESTS / "optimizers"],
    )
    return [json.loads((folder / f"{worker}.{rank}.json").read_text()) for rank in range(2)]


def taken(which: str) -> set[str]:
    """The optimizers that take sharded parameters: those whose gradients need no graph."""
    chosen = DENSE if which == "all" else entries_of_each_kind()
    return {entry.name for entry in chosen if not hfoptim.get_optimizer_info(entry.name).second_order}
