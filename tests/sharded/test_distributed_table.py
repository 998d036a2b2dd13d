"""The table of names and ways of training on several processes: a column for real, and how cells are read."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import hfoptim

ROOT = Path(__file__).resolve().parents[2]
BY_TORCH = ["ddp2", "fsdp1", "fsdp2_2", "fsdp2_4", "hsdp", "tp_fsdp2", "reshard_2_1", "reshard_1_2", "reshard_4_2"]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("distributed_table")


def test_a_column_of_a_few_names(program: ModuleType, tmp_path: Path) -> None:
    output = tmp_path / "table.json"
    names = ["adamw", "lamb", "muon", "adahessian"]
    program.main(column=["fsdp2_2"], name=names, output=output, limit=200.0)
    found = json.loads(output.read_text())
    cells = found["columns"]["fsdp2_2"]
    verdicts = {name: program.verdict(name, "fsdp2_2", cell) for name, cell in cells.items()}
    assert verdicts == {"adamw": "equal", "lamb": "equal", "muon": "equal", "adahessian": "refused"}
    made = program.table(found["columns"], found["about"])
    assert "| `adahessian` | no (1) |" in made
    assert "1. ... differentiates gradients, and that of a sharded parameter has no graph" in made
    assert "Not measured yet: DDP 2, FSDP1" in made


def test_what_was_wrong_is_measured_again_and_the_rest_is_kept(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "table.json"
    good, bad = {"distance": 0.0}, {"error": "RuntimeError", "said": "no", "where": "x.py"}
    asked: list[list[str]] = []

    def measured(column: str, names: list[str], python: str, limit: float) -> dict[str, Any]:
        asked.append(names)
        return {name: good if len(asked) > 1 or name != "lion" else bad for name in names}

    monkeypatch.setattr(program, "measured", measured)
    for names, wrong in ((["adamw", "lion"], False), (["adamw", "lion"], True), (["adan"], False)):
        program.main(column=["ddp2"], name=names, wrong=wrong, output=output)
    assert asked == [["adamw", "lion"], ["lion"], ["adan"]]
    assert json.loads(output.read_text())["columns"]["ddp2"] == {"adamw": good, "adan": good, "lion": good}


def test_the_page_has_the_table_of_the_results(program: ModuleType) -> None:
    found = json.loads(program.RESULTS.read_text())
    page = program.DOCS.read_text()
    assert program.into_docs(page, program.table(found["columns"], found["about"])) == page


@pytest.mark.parametrize(
    ("column", "cell", "verdict"),
    [
        ("ddp2", {"distance": 0.0}, "equal"),
        ("ddp2", {"distance": 1e-8}, "differs"),
        ("zero2", {"distance": 1e-8}, "equal"),
        ("zero2", {"distance": 1e-5}, "differs"),
        ("ddp2", {"distance": float("nan")}, "differs"),
        ("ddp2", {"error": "ValueError", "said": "no", "where": "hfoptim"}, "refused"),
        ("ddp2", {"error": "RuntimeError", "said": "no", "where": "lbfgs.py"}, "error"),
        ("fsdp2_2", {"error": "RuntimeError", "said": "an unevenly sharded tensor", "where": "_ops.py"}, "theirs"),
        ("zero2", {"distance": 1e-5, "roundings": 2.0}, "equal"),
        ("zero2", {"distance": 1e-5, "roundings": 2.1}, "differs"),
        ("ddp2", {"distance": 1e-5, "roundings": 1.0}, "differs"),
        ("ddp2", {"error": "ranks disagree", "said": "[]", "where": ""}, "error"),
    ],
)
def test_verdicts(program: ModuleType, column: str, cell: dict[str, object], verdict: str) -> None:
    assert program.verdict("lbfgs" if verdict == "theirs" else "adamw", column, cell) == verdict


@pytest.mark.slow
@pytest.mark.parametrize("column", BY_TORCH)
def test_every_name_of_a_column(program: ModuleType, tmp_path: Path, column: str) -> None:
    cells = program.measured(column, hfoptim.list_optimizers(), program.sys.executable, 3000.0)
    verdicts = {name: program.verdict(name, column, cell) for name, cell in cells.items()}
    assert cells.keys() == set(hfoptim.list_optimizers())
    assert not {name: cells[name] for name, found in verdicts.items() if found in ("differs", "error")}
