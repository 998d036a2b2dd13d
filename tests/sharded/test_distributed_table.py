"""The table of names and ways of training on several processes: a column for real, and how cells are read."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

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
    verdicts = {name: program.verdict("fsdp2_2", cell) for name, cell in cells.items()}
    assert verdicts == {"adamw": "equal", "lamb": "equal", "muon": "equal", "adahessian": "refused"}
    made = program.table(found["columns"], found["about"])
    assert "| `adahessian` | no (1) |" in made
    assert "1. ... differentiates gradients, and does not take sharded parameters" in made
    assert "Not measured yet: DDP 2, FSDP1" in made


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
        ("ddp2", {"error": "ranks disagree", "said": "[]", "where": ""}, "error"),
    ],
)
def test_verdicts(program: ModuleType, column: str, cell: dict[str, object], verdict: str) -> None:
    assert program.verdict(column, cell) == verdict


@pytest.mark.slow
@pytest.mark.parametrize("column", BY_TORCH)
def test_every_name_of_a_column(program: ModuleType, tmp_path: Path, column: str) -> None:
    cells = program.measured(column, hfoptim.list_optimizers(), program.sys.executable, 3000.0)
    # torch's own optimizer; sparse gradients, which torch does not shard; a graph of gradients, which DDP breaks.
    theirs = {"lbfgs", "sparse_adam", *(["adahessian", "sophiah"] if column == "ddp2" else [])}
    wrong = {name: cell for name, cell in cells.items() if program.verdict(column, cell) not in ("equal", "refused")}
    assert cells.keys() == set(hfoptim.list_optimizers())
    assert wrong.keys() <= theirs, wrong
