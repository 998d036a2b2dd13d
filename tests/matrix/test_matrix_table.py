"""The table of what does not apply is about tests and names that there are."""

from __future__ import annotations

import ast
from pathlib import Path

from matrix_exemptions import EXEMPTIONS
from matrix_rows import CONTROLS, ROWS, WRAPPED

import hfoptim

HERE = Path(__file__).parent


def matrix_tests():
    found = set()
    for path in HERE.glob("test_*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and any(
                ast.unparse(d) in ("every_row", "every_kind_of_row") for d in node.decorator_list
            ):
                found.add(node.name)
    return found


def test_every_name_is_a_row_beside_wrappers_and_torchs_own():
    names = [row.name for row in ROWS]
    assert names == [*hfoptim.list_optimizers(), *WRAPPED, *(f"torch.{name}" for name in CONTROLS)]


def test_every_exemption_is_of_a_test_and_a_row_that_there_are():
    tests = matrix_tests()
    assert len(tests) > 30
    assert {test for test, _ in EXEMPTIONS} <= tests
    assert {name for _, name in EXEMPTIONS} <= {row.name for row in ROWS}


def test_no_name_is_left_out_of_more_than_a_quarter_of_the_tests():
    # Else it is no optimizer as torch's users know them. LBFGS, torch's own, is the one that comes near.
    tests = matrix_tests()
    for row in ROWS:
        left_out = sorted(test for test, name in EXEMPTIONS if name == row.name)
        assert len(left_out) <= len(tests) / 4 or row.name.lower().endswith("lbfgs"), (row.name, left_out)
