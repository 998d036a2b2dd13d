"""What each optimizer costs `make test`, in CPU-seconds, against a budget: a catalogue of 200 has to fit 15 minutes.

A test belongs to an optimizer if it is parametrized by it, by an `Entry`, a `Row` of the matrix or a name of the
registry, and runs over a good part of the catalogue. Counted is the time of this process and of the children that have
ended, kernel compilations among them; what those of several tests took is said by
`record_property("cpu_seconds", ...)`. Not counted are imports, which happen once in a process whoever is first, tests
marked `slow`, and those marked `kind`, which are about the engine.

A session says which optimizers cost more than their budget. It fails over those that cost several times what the others
of the same session do: a slow or busy machine counts more seconds for the same work, but for all of them.
"""

from __future__ import annotations

import importlib
import os
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import pytest

# Whose `_find_and_load` Python calls for a module that is not there yet.
bootstrap: Any = importlib._bootstrap  # type: ignore[attr-defined]

BUDGET = 1.5  # CPU-seconds for each name of the registry; as many times as it has rules
# For each rule, in median costs of a rule in the same session: more fails it. What a name costs in one session and the
# next differs by a factor of two: some pay for a kernel or an import that others then find made.
SHARE = 8.0
# Of so many names a test runs over the catalogue, and is not about a few that somebody chose.
MANY = 10


def cpu() -> float:
    """CPU-seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


def own_cpu() -> float:
    """CPU-seconds of this process."""
    return sum(os.times()[:2])


@cache
def catalogue() -> frozenset[str]:
    """The names of the registry."""
    from hfoptim import list_optimizers

    return frozenset(list_optimizers())


def names_of(item: pytest.Item) -> set[str]:
    """The optimizers that a test is parametrized by, by their names in the registry."""
    callspec = getattr(item, "callspec", None)
    given = (
        {getattr(value, "name", value) for value in callspec.params.values() if _hashable(value)} if callspec else set()
    )
    return {name for name in given if isinstance(name, str) and name in catalogue()}


def _hashable(value: Any) -> bool:
    try:
        hash(getattr(value, "name", value))
    except TypeError:
        return False
    return True


class Imports:
    """Counts the CPU-seconds of imports, in place of what Python calls for a module that is not there yet."""

    def __init__(self) -> None:
        self.seconds, self.inside = 0.0, False
        self.load = bootstrap._find_and_load

    def __call__(self, *args: Any) -> Any:
        if self.inside:
            return self.load(*args)
        self.inside, before = True, cpu()
        try:
            return self.load(*args)
        finally:
            self.inside, self.seconds = False, self.seconds + cpu() - before


class Budget:
    """The plugin: counts in every process, adds up in the one that reports."""

    def __init__(self) -> None:
        # name -> test function -> CPU-seconds
        self.spent: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
        self.rules: dict[str, int] = {}
        self.over_the_catalogue: set[str] = set()
        self.imports = Imports()

    def pytest_sessionstart(self) -> None:
        bootstrap._find_and_load = self.imports

    def pytest_unconfigure(self) -> None:
        bootstrap._find_and_load = self.imports.load

    @pytest.hookimpl(tryfirst=True)  # before any are left out
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        names = defaultdict(set)
        for item in items:
            names[function_of(item)] |= names_of(item)
        self.over_the_catalogue = {function for function, found in names.items() if len(found) >= MANY}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        before, own, imports = cpu(), own_cpu(), self.imports.seconds
        result = yield
        said = [value for key, value in item.user_properties if key == "cpu_seconds" and isinstance(value, float)]
        # What a test says of its children takes the place of those that have ended: a family's, in its first test.
        spent = cpu() - before if not said else own_cpu() - own + sum(said)
        seconds = spent - (self.imports.seconds - imports)
        counts = not item.get_closest_marker("slow") and not item.get_closest_marker("kind")
        if counts and function_of(item) in self.over_the_catalogue:
            for name in names_of(item):
                self.count_rules(item)
                self.spent[name][function_of(item).split("::")[-1]] += seconds
        return result

    def count_rules(self, item: Any) -> None:
        from cases import Entry
        from tiers import rules_of

        for value in item.callspec.params.values():
            if isinstance(value, Entry) and value.name not in self.rules:
                self.rules[value.name] = rules_of(value)

    def limit(self, name: str) -> float:
        """The budget of one optimizer."""
        return BUDGET * self.rules.get(name, 1)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        for name, tests in getattr(node, "workeroutput", {}).get("cpu_seconds", {}).items():
            for test, seconds in tests.items():
                self.spent[name][test] += seconds
        self.rules |= getattr(node, "workeroutput", {}).get("rules", {})

    @pytest.hookimpl(wrapper=True, tryfirst=True)  # around the terminal's: what fails a session is said last
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["cpu_seconds"] = {name: dict(tests) for name, tests in self.spent.items()}
            session.config.workeroutput["rules"] = self.rules
            return (yield)
        failed = self.too_dear() if is_whole(session.config) else []
        if failed and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        result = yield
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if failed and reporter is not None:
            costs = self.totals()
            reporter.write_line(
                f"ERROR: the tests of {', '.join(f'{name} ({costs[name]:.1f} CPU-seconds)' for name in failed)} cost "
                f"more than {SHARE:g} times the median for each rule: "
                f"mark as slow what does not have to run in `make test` (tests/optimizers/tiers.py)",
                red=True,
            )
        return result

    def totals(self) -> dict[str, float]:
        """CPU-seconds by name, the dearest first."""
        totals = {name: sum(tests.values()) for name, tests in self.spent.items()}
        return dict(sorted(totals.items(), key=lambda item: -item[1]))

    def too_dear(self) -> list[str]:
        """Names whose rules cost more than `SHARE` times the median."""
        costs = {name: total / self.rules.get(name, 1) for name, total in self.totals().items()}
        return [name for name, cost in costs.items() if cost > SHARE * statistics.median(costs.values())]

    def pytest_terminal_summary(self, terminalreporter: Any, config: pytest.Config) -> None:
        totals = self.totals()
        if hasattr(config, "workerinput") or not totals:
            return
        over = {name: total for name, total in totals.items() if total > self.limit(name)}
        shown = totals if config.getoption("costs") else dict(list(over.items())[:10])
        terminalreporter.write_line(
            f"an optimizer costs {statistics.median(totals.values()):.2f} CPU-seconds (median of {len(totals)}), "
            f"{len(over)} of them more than their budget of {BUDGET} for each rule"
        )
        for name, total in shown.items():
            dearest = ", ".join(f"{test} {seconds:.2f}" for test, seconds in dearest_of(self.spent[name]))
            terminalreporter.write_line(f"  {name} {total:.2f} of {self.limit(name):.1f}: {dearest}")


def is_whole(config: pytest.Config) -> bool:
    """Whether a session is of the whole suite: where some tests run, the first of them pay for what others share."""
    return config.args_source is pytest.Config.ArgsSource.TESTPATHS and not config.getoption("keyword")


def dearest_of(tests: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(tests.items(), key=lambda item: -item[1])[:3]


def function_of(item: pytest.Item) -> str:
    """A test's place without its parameters."""
    return item.nodeid.partition("[")[0]
