"""The budget of an optimizer's tests (budget.py): fails over what one costs beside the others, not over seconds."""

from __future__ import annotations

import cases  # noqa: F401  The session inside must not be the first to import torch: it forgets what it imported.
import pytest
import tiers  # noqa: F401
from budget import SHARE, Budget

import hfoptim

pytest_plugins = ["pytester"]

NAMES = hfoptim.list_optimizers()[:12]

# The last of the names says of itself that it costs so many times as much as each of the others.
SUITE = """
import pytest

@pytest.mark.parametrize("name", {names})
def test_of_an_optimizer(name, record_property):
    record_property("cpu_seconds", 100.0 * ({times} if name == "{last}" else 1.0))
"""


def session(pytester, times, *args):
    """A session of a suite in which one optimizer costs `times` as much as the median."""
    pytester.makeini("[pytest]\ntestpaths = .")
    pytester.makeconftest("def pytest_addoption(parser):\n    parser.addoption('--costs', action='store_true')")
    pytester.makepyfile(SUITE.format(names=NAMES, times=times, last=NAMES[-1]))
    return pytester.inline_run("-p", "no:cacheprovider", *args, plugins=[Budget()])


def test_an_optimizer_that_costs_many_times_the_others_fails_a_session(pytester, capsys):
    assert session(pytester, SHARE + 1).ret == pytest.ExitCode.TESTS_FAILED
    out = capsys.readouterr().out
    last = out.strip().splitlines()[-1]
    assert f"ERROR: the tests of {NAMES[-1]} (900.0 CPU-seconds) cost more than {SHARE:g} times" in last
    assert f"  {NAMES[-1]} 900." in out


def test_costs_of_all_do_not(pytester, capsys):
    """A hundred CPU-seconds each, as a busy machine may count them: a session says so, no more."""
    assert session(pytester, SHARE - 1).ret == pytest.ExitCode.OK
    out = capsys.readouterr().out
    assert f"{len(NAMES)} of them more than their budget" in out
    assert "ERROR" not in out


def test_a_session_of_some_tests_is_not_judged(pytester):
    assert session(pytester, SHARE + 1, "-k", "optimizer").ret == pytest.ExitCode.OK
    assert session(pytester, SHARE + 1, str(pytester.path)).ret == pytest.ExitCode.OK


def test_rules_have_a_budget_each():
    budget = Budget()
    budget.spent = {name: {"test": 1.0} for name in NAMES} | {"many": {"test": SHARE * 3}}
    budget.rules = {"many": 1}
    assert budget.too_dear() == ["many"]
    budget.rules = {"many": 4}
    assert budget.too_dear() == []
