"""What docs/adding_an_optimizer.md shows of Lion is in the repository, line for line and as many lines as it says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import hfoptim
from hfoptim import engine, optimizers, registry

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "adding_an_optimizer.md").read_text(encoding="utf-8")
# Each block that quotes a file, with the file.
QUOTES = re.findall(r"`((?:hfoptim|tests)/[\w/]+\.py)`:\n\n```python\n(.*?)```", PAGE, re.DOTALL)
DOG = re.search(r"```python\n(def _sums.*?)```", PAGE, re.DOTALL)[1]


def test_every_block_is_looked_for():
    assert len(QUOTES) + 1 == PAGE.count("```python") == 5


@pytest.mark.parametrize(("path", "block"), QUOTES, ids=[path for path, _ in QUOTES])
def test_what_is_quoted_is_there(path, block):
    assert block in (ROOT / path).read_text(encoding="utf-8")


def test_lions_lines_are_counted():
    said = {piece.strip(): int(count) for piece, count in re.findall(r"^\| ([^|]*) \| (\d+) \|$", PAGE, re.MULTILINE)}
    source = (ROOT / "hfoptim/optimizers/lion.py").read_text(encoding="utf-8")
    function, cls = ast.parse(source).body[-2:]
    rule = function.end_lineno - function.decorator_list[0].lineno + 1
    whole = cls.end_lineno - cls.lineno + 1
    docstring = cls.body[0].end_lineno - cls.body[0].lineno + 1
    tests = (ROOT / "tests/optimizers/cases/lion.py").read_text(encoding="utf-8").count("\n")
    counts = [rule, whole, source.count("\n") - rule - whole, tests]
    assert list(said.values()) == [*counts, sum(counts)]
    assert f"the class, {docstring} of its lines a docstring" in said


def test_nothing_else_names_lion():
    found = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "hfoptim").rglob("*.py")
        if re.search(r"^\s*(from|import) .*\b[Ll]ion\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert not found


def test_a_copy_is_an_optimizer(tmp_path, monkeypatch):
    source = (ROOT / "hfoptim/optimizers/lion.py").read_text(encoding="utf-8")
    (tmp_path / "puma.py").write_text(source.replace("lion", "puma").replace("Lion", "Puma"), encoding="utf-8")
    caches = optimizers.found, optimizers.sources, registry.known_optimizers
    monkeypatch.setattr(optimizers, "__path__", [*optimizers.__path__, str(tmp_path)])
    try:
        for made in caches:
            made.cache_clear()
        assert "puma" in hfoptim.list_optimizers()
        params, twins = ([nn.Parameter(torch.ones(3))] for _ in range(2))
        for of, name in ((params, "puma"), (twins, "lion")):
            of[0].grad = torch.tensor([1.0, -2.0, 0.5])
            hfoptim.create_optimizer_v2(of, name, lr=0.1).step()
        assert torch.equal(params[0], twins[0])
    finally:
        for made in caches:
            made.cache_clear()


def test_the_distance_over_gradients_steps_as_its_paper_says():
    names = vars(engine) | {"torch": torch}
    exec(DOG, names)
    params = [nn.Parameter(torch.tensor([3.0, 4.0]))]
    optimizer = names["DoG"](params)
    params[0].grad = torch.tensor([1.0, 0.0])
    optimizer.step()
    distance = 1e-6 * (1.0 + 5.0)
    assert params[0].tolist() == pytest.approx([3.0 - distance, 4.0], abs=1e-7)
    assert float(optimizer.param_groups[0]["distance"]) == pytest.approx(distance)
