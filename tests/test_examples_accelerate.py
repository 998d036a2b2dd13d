"""The lines of examples/accelerate/README.md run, offline, on CPUs, and all of them reach the losses that it names."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import run_ranks

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "examples" / "accelerate"
README = (FOLDER / "README.md").read_text()
COMMANDS = re.findall(r"\| `(accelerate [^`]*)` \|$", README, re.MULTILINE)
PROCESSES = {"hsdp": 4}
(LAST,) = re.findall(r"^    (hfoptim\..*)$", README, re.MULTILINE)


def kind(command: str) -> str:
    """The configuration's name."""
    return Path(shlex.split(command)[3]).stem


def launched(command: str) -> str:
    """What a command says, as it stands."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["-m", "accelerate.commands.launch", "--main_process_port", str(port), *shlex.split(command)[2:]]
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
    result = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


def test_the_readme_has_a_line_for_every_configuration() -> None:
    assert {kind(command) for command in COMMANDS} == {path.stem for path in FOLDER.glob("*.yaml")}


def test_ddp(tmp_path: Path) -> None:
    said = run_ranks(FOLDER / "train.py", "adamw", ranks=2, output=tmp_path, timeout=240)[0]
    assert f"2 process(es)\n{LAST}\n" in said


@pytest.mark.slow
@pytest.mark.parametrize("command", [each for each in COMMANDS if "zero" not in each], ids=kind)
def test_launched(command: str) -> None:  # those of DeepSpeed are tried in tests/providers
    assert f"{PROCESSES.get(kind(command), 2)} process(es)\n{LAST}\n" in launched(command)
