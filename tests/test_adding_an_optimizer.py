"""What docs/adding_an_optimizer.md shows of Lion is in the repository, line for line and as many lines as it says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "adding_an_optimizer.md").read_text(encoding="utf-8")
# Each block with the file that was named last before it.
QUOTES = re.findall(r"`((?:hfoptim|tests)/[\w/]+\.py)`(?:(?!\.py`).)*?```python\n(.*?)```", PAGE, re.DOTALL)


def test_every_block_is_looked_for():
    assert len(QUOTES) == PAGE.count("```python") == 5


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
    entry = next(block for path, block in QUOTES if path.endswith("catalogue.py")).count("\n")
    tests = (ROOT / "tests/optimizers/cases/lion.py").read_text(encoding="utf-8").count("\n")
    names = sum(
        bool(re.fullmatch(r'\s*"?lion"?,|from [\w.]+ import lion', line.lower()))
        for path in ("hfoptim/__init__.py", "hfoptim/registry/catalogue.py", "hfoptim/optimizers/__init__.py")
        for line in (ROOT / path).read_text(encoding="utf-8").splitlines()
    )
    names -= 2  # in the catalogue's entry
    counts = [rule, whole, source.count("\n") - rule - whole, entry, tests, names]
    assert list(said.values()) == [*counts, sum(counts)]
    assert f"the class, {docstring} of its lines a docstring" in said
