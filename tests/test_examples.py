"""Every command of examples/README.md runs, offline, with the optimizer that it names, and its loss falls."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "examples" / "README.md").read_text()
COMMANDS = re.findall(r"\| `((?:python|accelerate) [^`]*)` \|$", README, re.MULTILINE)
OPTIMIZERS = {  # by a word of the command
    "trainer_callback.py": "lion.Lion",
    "nesterov": "sgd.SGD",
    "training_arguments.py": "lion.Lion",
    "plain_loop.py": "adam.Adam",
    "adamw": "adam.AdamW",
    "accelerate_loop.py": "lion.Lion",
}


def run(command: str) -> str:
    program, *arguments = shlex.split(command)
    if program == "accelerate":
        assert arguments.pop(0) == "launch"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        arguments = ["-m", "accelerate.commands.launch", "--main_process_port", str(port), *arguments]
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


def test_the_readme_names_every_example() -> None:
    examples = {path.name for path in (ROOT / "examples").glob("*.py")} - {"data.py"}
    assert {word.split("/")[-1] for command in COMMANDS for word in command.split() if word.endswith(".py")} == examples


@pytest.mark.parametrize("command", COMMANDS)
def test_example(command: str) -> None:
    output = run(command)
    match = re.search(r"^hfoptim\.optimizers\.([\w.]+): loss ([\d.]+) -> ([\d.]+)$", output, re.MULTILINE)
    assert match, output
    optimizer, first, last = match[1], float(match[2]), float(match[3])
    assert optimizer == next(name for word, name in OPTIMIZERS.items() if word in command)
    assert 5.3 < first < 5.7  # ln 256 = 5.55: untrained
    assert last < 3.6
    if "accelerate" in command:
        assert f"{2 if '--num_processes 2' in command else 1} process(es)" in output


def test_a_wrong_name_on_the_command_line_is_answered_with_the_right_one() -> None:
    with pytest.raises(AssertionError, match=r"'lyon' is not the name of an optimizer.*'lion'"):
        run("python examples/training_arguments.py --optim lyon")
