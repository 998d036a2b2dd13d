"""Every command of examples/README.md runs, offline, with the optimizer that it names, and its loss falls."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import run as run_script
from ranks import run_ranks
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "examples" / "README.md").read_text()
COMMANDS = re.findall(r"\| `((?:python|accelerate) [^`]*)` \|$", README, re.MULTILINE)
RUN_CLM = [command for command in COMMANDS if "run_clm.py" in command]
ADAPTERS = [command for command in COMMANDS if "peft_adapters.py" in command]
ELSEWHERE = [command for command in COMMANDS if re.search("lightning|trl|sentence_transformers", command)]
OPTIMIZERS = {  # by a word of the command
    "trainer_callback.py": "lion.Lion",
    "nesterov": "sgd.SGD",
    "training_arguments.py": "lion.Lion",
    "plain_loop.py": "adam.Adam",
    "adamw": "adam.Adam",
    "accelerate_loop.py": "lion.Lion",
}


def run(command: str, folder: Path) -> str:
    """What a command says; without a launcher, and as its ranks."""
    program, *arguments = shlex.split(command)
    while program == "accelerate" and arguments[0] != "-m" and not arguments[0].endswith(".py"):
        arguments.pop(0)
    module = arguments[0] == "-m"
    script = arguments.pop(1) if module else ROOT / arguments[0]
    arguments.pop(0)
    if "--num_processes 2" in command:
        return run_ranks(script, *arguments, ranks=2, output=folder, timeout=240)[0]
    code, said = run_script(script, *arguments, output=folder / "said.txt", timeout=240)
    assert code == 0, said[-20000:]
    return said


def launched(command: str) -> str:
    """What a command says, as it stands."""
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


# The launchers themselves are tried in trainer/test_launcher.py; a script for two processes, on two.
@pytest.mark.parametrize("as_it_stands", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=pytest.mark.slow if command.startswith("accelerate launch --cpu") else [])
        for command in COMMANDS
        if command not in (*RUN_CLM, *ADAPTERS, *ELSEWHERE)  # the last are tried in tests/integrations
    ],
)
def test_example(command: str, as_it_stands: bool, tmp_path: Path) -> None:
    output = launched(command) if as_it_stands else run(command, tmp_path)
    match = re.search(r"^hfoptim\.optimizers\.([\w.]+): loss ([\d.]+) -> ([\d.]+)$", output, re.MULTILINE)
    assert match, output
    optimizer, first, last = match[1], float(match[2]), float(match[3])
    assert optimizer == next(name for word, name in OPTIMIZERS.items() if word in command)
    assert 5.3 < first < 5.7  # ln 256 = 5.55: untrained
    assert last < 3.6
    if "accelerate" in command:
        assert f"{2 if '--num_processes 2' in command else 1} process(es)" in output


@pytest.mark.slow
@pytest.mark.parametrize(("command", "optimizer"), zip(ADAPTERS, ("adam.Adam", "lora_fa.LoraFAOptimizer"), strict=True))
def test_adapters(command: str, optimizer: str, tmp_path: Path) -> None:
    match = re.search(
        r"^hfoptim\.optimizers\.([\w.]+): loss ([\d.]+) -> ([\d.]+)$", run(command, tmp_path), re.MULTILINE
    )
    assert match
    assert match[1] == optimizer
    assert 5.7 < float(match[2]) < 6.3  # of small letters' model on capitals
    assert float(match[3]) < 5.1


def test_a_wrong_name_on_the_command_line_is_answered_with_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"'lyon' is not the name of an optimizer.*'lion'"):
        run("python examples/training_arguments.py --optim lyon", tmp_path)


def test_run_clm_knows_nothing_of_hfoptim() -> None:
    code = (ROOT / "examples" / "run_clm.py").read_text().split('"""', 2)[2]
    assert "Trainer(" in code
    assert "hfoptim" not in code
    assert "schedules" not in code


def clm(command: str, folder: Path, as_it_stands: bool = False) -> list[dict[str, float]]:
    """Run a command of run_clm.py with another output folder; what it logged."""
    start, _, end = command.partition("--output_dir out")
    command = f"{start} --output_dir {shlex.quote(str(folder))} {end} --save_steps 15"
    if as_it_stands:
        launched(command)
    else:
        run(command, folder.parent)
    history: list[dict[str, float]] = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return history


ONE_PROCESS = [RUN_CLM[0], RUN_CLM[0].replace("python", "accelerate launch --cpu", 1)]


# The first command, on one process, is what the test of resuming runs, too.
@pytest.mark.parametrize(
    ("command", "as_it_stands"),
    [
        *((command, False) for command in RUN_CLM[1:]),
        *(pytest.param(command, True, marks=pytest.mark.slow) for command in (*ONE_PROCESS, *RUN_CLM[1:])),
    ],
)
def test_run_clm(command: str, as_it_stands: bool, tmp_path: Path) -> None:
    history = clm(command, tmp_path / "out", as_it_stands)
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 6
    assert 6.5 < losses[0] < 7.0  # ln 1000 = 6.9: untrained
    assert losses[-1] < losses[0] - 0.5
    optimizer = torch.load(tmp_path / "out" / "checkpoint-30" / "optimizer.pt", weights_only=True)
    assert all(set(state) == {"step", "exp_avg"} for state in optimizer["state"].values())  # Lion's
    assert "caution" in optimizer["param_groups"][0]  # ours
    processes = list((tmp_path / "out" / "checkpoint-30").glob("rng_state*.pth"))
    assert len(processes) == (2 if "--num_processes 2" in command else 1)


def test_run_clm_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    clm(RUN_CLM[0], tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "checkpoint-30")
    (tmp_path / "broken" / "model.safetensors").unlink()
    optimizer = torch.load(tmp_path / "whole" / "checkpoint-30" / "optimizer.pt", weights_only=True)
    assert all(set(state) == {"step", "exp_avg"} for state in optimizer["state"].values())  # Lion's
    history = clm(RUN_CLM[0], tmp_path / "broken")
    assert [entry["step"] for entry in history if "loss" in entry] == [5, 10, 15, 20, 25, 30]
    whole, broken = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


@pytest.mark.slow
def test_a_mistake_on_the_command_line_of_run_clm_is_answered_with_the_right_name(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"'lyon' is not the name of an optimizer.*'lion'"):
        clm(RUN_CLM[0].replace("--optim lion", "--optim lyon"), tmp_path / "out")
