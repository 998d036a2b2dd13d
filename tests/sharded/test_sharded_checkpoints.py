"""Checkpoints of two processes: of parts and of whole tensors, loaded by one process and by two."""

from __future__ import annotations

from pathlib import Path

from family import launch, taken


def test_checkpoints_go_from_two_processes_to_one_and_back(folder: Path, which: str) -> None:
    for ranks, task in ((2, "save"), (1, "resume_on_one"), (2, "resume_on_two")):
        assert set(launch(folder, ranks, which, task)[task].ranks[0]) == taken(which), task
