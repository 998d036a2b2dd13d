"""The command line: what a user types, what comes back, and what survives a kill."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ranks import start
from tiers import names_by_kind
from typer.testing import CliRunner

import hfoptim
import schedules
from hfoptim.cli import app
from hfoptim.compare import runs

CLI = [sys.executable, "-c", "from hfoptim.cli import main; main()"]


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"Paragraph {i} says that {i} and {i * i % 97} are numbers." * 3 for i in range(100)))
    return path


@pytest.fixture
def tiny(text_file: Path) -> list[str]:
    return f"--dataset {text_file} --lr-grid 1e-3 --steps 3 --batch-size 2 --seq-len 16".split()


def call(*args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(args), env={"COLUMNS": "100"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return content


def test_version() -> None:
    assert call("--version") == (0, f"hfoptim {hfoptim.__version__}\n", "")


def test_list() -> None:
    code, out, _ = call("list")
    assert code == 0
    for name in hfoptim.list_optimizers():
        assert re.search(rf"│ {name} +│", out), name
    _, out, _ = call("list", "ADAM*")
    assert "adamw" in out
    assert "adafactor" not in out
    code, out, err = call("list", "nothing*")
    assert (code, out) == (2, "")
    assert "no optimizer matches 'nothing*'" in err


def test_names_that_mean_transformers_own_in_a_trainer_are_marked() -> None:
    from transformers import SchedulerType
    from transformers.training_args import OptimizerNames

    optimizers, of_schedules = ([member.value for member in kind] for kind in (OptimizerNames, SchedulerType))
    _, out, _ = call("list")
    marked = set(re.findall(r"│ (\w+) +│ \* │", out))
    assert marked == set(hfoptim.list_optimizers()) & set(optimizers) >= {"adafactor", "adagrad", "sgd", "ademamix"}
    assert "* In TrainingArguments optim=NAME means transformers' own optimizer; ours is optim=hfoptim_NAME." in out
    assert "* optim=schedule_free_adamw means transformers' own, too; ours is optim=adamw_schedule_free." in out
    _, out, _ = call("list", "lion")
    assert "*" not in out
    _, out, _ = call("schedules")
    assert set(re.findall(r"│ (\w+) +│ \* │", out)) == set(schedules.list_schedules()) & set(of_schedules)
    _, out, _ = call("info", "sgd")
    assert re.search(r"^in a Trainer +optim='hfoptim_sgd'; optim='sgd' means transformers' own", out, re.MULTILINE)
    _, out, _ = call("info", "adamw-schedule-free")
    assert re.search(r"^in a Trainer +optim='adamw_schedule_free'; optim='schedule_free_adamw' means", out, re.M)
    _, out, _ = call("info", "lion")
    assert re.search(r"^in a Trainer +optim='lion' *$", out, re.MULTILINE)


@pytest.mark.parametrize("name", names_by_kind(hfoptim.list_optimizers()))
def test_info(name: str) -> None:
    code, out, _ = call("info", name.upper())
    info = hfoptim.get_optimizer_info(name)
    assert code == 0
    assert re.search(rf"^name +{name}\b", out, re.MULTILINE)
    package = "hfoptim" if info.opt_class.__module__.startswith("hfoptim.") else "torch.optim"
    assert f"{package}.{info.opt_class.__name__}" in out
    assert info.source in out
    assert str(info.opt_class.__doc__).splitlines()[0] in out


@pytest.mark.parametrize("name", ["lion", "muon", "sam_sgd"])
def test_info_has_a_table_of_what_the_class_declares(name: str) -> None:
    found = hfoptim.get_optimizer_info(name)
    declared = getattr(found.opt_class, "inner", found.opt_class).hypers
    _, out, _ = call("info", name)
    rows: dict[str, list[str]] = {}
    option = ""
    for line in out.splitlines():
        if line.startswith("│"):
            first, *cells = ("".join(cell.split()) for cell in line.split("│")[1:-1])
            option = first or option  # a cell goes on in the lines below
            rows[option] = [a + b for a, b in zip(rows.get(option, [""] * 4), cells, strict=True)]
    assert [*rows] == [*declared]
    for option, each in declared.items():
        annotation = each.annotation if isinstance(each.annotation, str) else inspect.formatannotation(each.annotation)
        expected = (annotation, repr(found.defaults.get(option, each.default)), each.domain, each.doc)
        assert rows[option] == ["".join(str(cell).split()) for cell in expected]
    if name == "lion":
        assert rows["lr"] == ["float", "0.0001", ">=0", "learningrate"]
        assert "lr (default" not in out  # what is in the table is not said again
    assert "every optimizer's: maximize, foreach" in " ".join(out.split())
    assert ("rho=0.05" in out) is (name == "sam_sgd")


def test_info_gives_bound_defaults_and_state() -> None:
    _, out, _ = call("info", "sgd")
    assert "momentum=0.9, nesterov=True" in out
    assert "nesterov" in out.partition("aliases")[2].splitlines()[0]
    assert re.search(r"matrix 256x128: 4\.00 bytes per entry \(.*momentum_buffer 256x128\)", out)
    _, out, _ = call("info", "adafactor")
    assert "exp_avg_sq_row 256, exp_avg_sq_col 128" in " ".join(out.split())
    assert call("info", "adamv")[0] == 2
    assert "did you mean" in call("info", "adamv")[2]


def test_quick_commands_do_not_import_transformers() -> None:
    code = (
        "import sys, hfoptim.cli\n"
        "for args in (['list'], ['info', 'lion'], ['schedules'], ['--version'], ['compare', '--help']):\n"
        "    try: hfoptim.cli.app(args)\n"
        "    except SystemExit as end: assert end.code == 0, args\n"
        "assert not {'transformers', 'datasets', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=120)


def test_help_tells_the_true_defaults() -> None:
    from hfoptim.compare import CompareConfig

    _, out, _ = call("compare", "--help")
    text = " ".join(out.replace("│", " ").split())
    config = CompareConfig.from_options()
    for option, value in (
        ("--optim", ",".join(config.optimizers)),
        ("--steps", config.steps),
        ("--batch-size", config.batch_size),
        ("--seq-len", config.seq_len),
        ("--schedule", config.schedule),
        ("--seed", config.seeds[0]),
    ):
        assert f"(default: {value})" in text.partition(f"{option} ")[2].partition(" --")[0], option


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--optim", "lyon"], "unknown optimizer 'lyon'"),
        (["--optim", "lion", "--lr-grid", "adamw=1e-3"], "names adamw, which is not compared"),
        (["--lr-grid", "0"], "'0' is no learning rate"),
        (["--schedule", "cosin"], "cosin"),
        (["--steps", "0"], "--steps must be a whole number of at least 1"),
        (["--dataset", "does/not-exist"], "--dataset does/not-exist cannot be loaded"),
        (["--resume"], "nothing to resume"),
    ],
)
def test_bad_input_is_one_line_and_code_2(args: list[str], message: str, tmp_path: Path) -> None:
    code, out, err = call("compare", *args, "--output-dir", str(tmp_path / "out"))
    assert code == 2
    assert err.startswith("Error: ")
    assert message in err
    assert "Traceback" not in out + err
    assert not (tmp_path / "out").exists()


def test_used_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    code, _, err = call("compare", "--output-dir", str(tmp_path))
    assert code == 2
    assert "is not empty" in err
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.slow  # the others compare in this process
def test_compare_in_a_process_of_its_own(tiny: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    command = [*CLI, "compare", "--optim", "SGD,Lion", "--optim", "adam-w", *tiny, "--output-dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    for number, name in enumerate(("sgd", "lion", "adamw"), 1):
        assert re.search(rf"^\[{number}/3\] {name}, lr 0\.001: eval loss \d\.\d+, ", done.stdout, re.MULTILINE)
        assert re.search(rf"^ ?{name} +0\.001 \* +0\.001 +\d\.\d{{3}} +\d\.\d{{3}} ", done.stdout, re.MULTILINE)
    assert "[1/3]" in done.stdout.splitlines()[3], "something else was printed before the first run"
    assert read(folder)["complete"] is True
    assert (folder / "loss_curves.png").stat().st_size > 10_000


def test_resume_with_the_options_repeated_or_left_out(tiny: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    first = call("compare", "--optim", "lion", *tiny, "--output-dir", str(folder))
    before = read(folder)
    assert call("compare", "--optim", "lion", *tiny, "--output-dir", str(folder))[0] == 2
    for options in ([], ["--optim", "LION", *tiny]):
        code, out, _ = call("compare", *options, "--resume", "--output-dir", str(folder))
        assert code == 0
        assert "[1/1]" not in out
        assert out.splitlines()[-6:] == first[1].splitlines()[-6:]
    code, _, err = call("compare", "--resume", "--seed", "5", "--output-dir", str(folder))
    assert code == 2
    assert "seeds: (0,) against (5,)" in err
    assert read(folder) == before


def begin(folder: Path, *args: str) -> Any:
    """A comparison in a process of its own, which says what it says in `said.txt`."""
    script = folder / "compare.py"
    # A shell lets what runs in the background ignore Ctrl-C, the tests among it.
    interrupts = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script.write_text(f"{interrupts}from hfoptim.cli import main\nmain()\n")
    return start(script, "compare", *args, output=folder / "said.txt")


def wait_for(process: Any, folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + 240
    while not list(folder.glob(pattern)):
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def comparable(run: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in run.items() if key not in ("step_ms", "wall_seconds")}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_comparison_goes_on_where_it_stopped(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = f"--dataset {text_file} --batch-size 2 --seq-len 16 --steps 30 --checkpoint-steps 7".split()
    options += ["--optim", "adamw,lion,sgd", "--lr-grid", "1e-3", "--lr-grid", "sgd=0.01"]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    process = begin(tmp_path, *options, "--output-dir", str(killed))
    wait_for(process, killed, f"checkpoints/lion-0.001-0/checkpoint-*/{runs.MARKER}")
    process.kill()
    process.join()
    stopped = read(killed)
    assert [run["optimizer"] for run in stopped["runs"]] == ["adamw"]
    assert stopped["complete"] is False

    used: list[Path | None] = []
    search = runs.last_checkpoint

    def spy(folder: Path) -> Path | None:
        used.append(search(folder))
        return used[-1]

    monkeypatch.setattr(runs, "last_checkpoint", spy)
    code, out, _ = call("compare", "--resume", "--output-dir", str(killed))
    assert code == 0, out
    assert "[1/3]" not in out
    assert "[2/3] lion" in out
    assert used[0] is not None
    assert int(used[0].name.removeprefix("checkpoint-")) % 7 == 0
    assert used[1:] == [None]
    resumed = read(killed)
    assert resumed["runs"][0] == stopped["runs"][0]
    assert not (killed / "checkpoints").exists()

    assert call("compare", *options, "--output-dir", str(straight))[0] == 0
    assert [comparable(run) for run in resumed["runs"]] == [comparable(run) for run in read(straight)["runs"]]


@pytest.mark.skipif(os.name != "posix", reason="Windows sends Ctrl-C to all processes of a console")
def test_ctrl_c_says_how_to_go_on(text_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    options = f"--dataset {text_file} --batch-size 2 --seq-len 16 --steps 2000 --checkpoint-steps 5".split()
    process = begin(tmp_path, *options, "--optim", "lion", "--output-dir", str(folder))
    wait_for(process, folder, f"checkpoints/*/checkpoint-*/{runs.MARKER}")
    os.kill(process.pid, signal.SIGINT)
    process.join(120)
    code = process.exitcode
    process.kill()
    assert code == 130
    said = (tmp_path / "said.txt").read_text()
    assert said.splitlines()[-1] == f"stopped; go on with: hfoptim compare --resume --output-dir {folder}"
    assert read(folder)["runs"] == []


def test_list_by_provider_family_year_scope_and_state() -> None:
    code, out, _ = call("list", "--counts")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"hfoptim: {len(hfoptim.list_optimizers())}"
    assert any(line.startswith("bitsandbytes: 40") for line in lines)
    names = {entry["name"] for entry in json.loads(call("list", "--provider", "torch", "--json")[1])}
    assert names == set(hfoptim.list_optimizers(provider="torch"))
    found = json.loads(
        call("list", "*lion*", "--provider", "all", "--family", "lion", "--year", "2020-2023", "--json")[1]
    )
    by_name = {entry["name"]: entry for entry in found}
    assert {"lion", "clion", "bnb_lion8bit", "ds_cpu_lion"} <= by_name.keys()
    lion = by_name["lion"]
    assert (lion["provider"], lion["scope"], lion["year"], lion["state_bytes"]) == ("hfoptim", "element", 2023, 4.0)
    assert by_name["bnb_lion8bit"]["state_bytes"] is None
    few = json.loads(call("list", "s[io]*", "--max-state", "4", "--scope", "element", "--json")[1])
    small = {entry["name"] for entry in few}
    assert "signsgd" in small
    assert not small & {"soap", "simplified_ademamix"}
    assert call("list", "lion", "--year", "soon")[0] == 2
    assert call("list", "lion", "--provider", "nobody")[0] == 2


def test_shells_complete_names() -> None:
    from hfoptim.cli.arguments import complete_names

    assert complete_names("lio") == ["lion", "lionc"]
    assert "bnb_adamw8bit" in complete_names("BNB_")
    assert "--show-completion" in call("--help")[1]


def test_info_of_another_packages() -> None:
    code, out, _ = call("info", "torch_adamw")
    assert code == 0
    assert "torch.optim.AdamW" in out
    assert "ours with the same equations is adamw" in " ".join(out.split())
    code, _, err = call("info", "fusedadam")
    assert (code, "apex is not installed: build it" in err) == (2, True)
