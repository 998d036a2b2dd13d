"""Processes of one distributed run, started together."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


def run_ranks(
    commands: Sequence[Sequence[str]],
    environments: Sequence[Mapping[str, str]],
    outputs: Sequence[Path],
    timeout: float,
) -> None:
    """Run a command for each rank, all at once; fail with what they said unless all of them end well.

    Args:
        commands: by rank.
        environments: by rank.
        outputs: the files that take what each rank says.
        timeout: seconds for each.
    """
    running = []
    for command, environment, output in zip(commands, environments, outputs, strict=True):
        with output.open("w") as file:
            running.append(subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=timeout) for process in running]
    finally:
        for process in running:
            process.kill()
    said = "\n".join(f"rank {rank}:\n{output.read_text()[-3000:]}" for rank, output in enumerate(outputs))
    assert codes == [0] * len(commands), said
