"""What every test of this suite needs: few threads, no network, and the peers' backends chosen before any import."""

from __future__ import annotations

import gc
import logging
import os
import tempfile
from collections import Counter
from contextlib import contextmanager
from itertools import compress

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("KERAS_BACKEND", "torch")

import pytest
from budget import Budget


@pytest.fixture
def names():
    """hfoptim's names in transformers, for the time of one test."""
    from hfoptim import trainer

    trainer.enable()
    yield
    trainer.disable()


class Log(logging.Handler):
    """What was logged."""

    def __init__(self):
        super().__init__()
        self.records = []
        self.levels = {}

    def emit(self, record):
        self.records.append(record)

    @contextmanager
    def at_level(self, level, logger="hfoptim"):
        """From this level on, for a time."""
        changed = logging.getLogger(logger)
        before = changed.level
        changed.setLevel(level)
        try:
            yield
        finally:
            changed.setLevel(before)

    def set_level(self, level, logger="hfoptim"):
        """From this level on, until the test is over."""
        changed = logging.getLogger(logger)
        self.levels.setdefault(changed, changed.level)
        changed.setLevel(level)

    @property
    def messages(self):
        return [record.getMessage() for record in self.records]

    @property
    def text(self):
        return "\n".join(self.messages)


@pytest.fixture
def caplog():
    """pytest's own, in short: its plugin, which takes milliseconds of each test to know all loggers, is turned off."""
    log = Log()
    root = logging.getLogger()
    root.addHandler(log)
    yield log
    root.removeHandler(log)
    for changed, level in log.levels.items():
        changed.setLevel(level)


@pytest.fixture
def quick_compiler(monkeypatch):
    """C++ kernels are compiled in half the time, as they are written: what the compiler's optimization makes of them
    is tried in tests/kernels."""
    from hfoptim.engine.codegen import build

    flags = build._flags()
    monkeypatch.setattr(build, "_flags", lambda: (*flags, "-O1"))


@pytest.fixture
def messages(caplog):
    """The warnings of hfoptim so far."""
    with caplog.at_level(logging.INFO):
        yield lambda: [r.getMessage() for r in caplog.records if r.name.startswith("hfoptim") and r.levelno >= 30]


def pytest_addoption(parser):
    parser.addoption("--costs", action="store_true", help="say what each optimizer cost the tests, in CPU-seconds")


# Modules by which tests start processes.
STARTING = {"family", "ranks", "subprocess"}


def starts_processes(module):
    return any(
        STARTING & {getattr(one, "__name__", None), getattr(one, "__module__", None)} for one in vars(module).values()
    )


def is_slow(value):
    return any(mark.name == "slow" for mark in getattr(value, "marks", ()))


def without_slow(mark):
    """A `parametrize` without the values marked `slow`; as it is where it has none or no others."""
    names, values, *rest = mark.args
    values = list(values)
    kept = [not is_slow(value) for value in values]
    if all(kept) or not any(kept):
        kept = [True] * len(values)  # the mark's own may be an iterator, which has been read now
    given, ids = dict(mark.kwargs), mark.kwargs.get("ids")
    if ids is not None and not callable(ids):
        given["ids"] = list(compress(ids, kept))
    return pytest.mark.parametrize(names, list(compress(values, kept)), *rest, **given).mark


def pytest_generate_tests(metafunc):
    """Where slow tests are left out anyway they are not made: they are more than half of all."""
    if metafunc.config.option.markexpr == "not slow":
        own = metafunc.definition.own_markers
        own[:] = [without_slow(mark) if mark.name == "parametrize" else mark for mark in own]


def pytest_collection_finish(session):
    """accelerate collects garbage in every training: not among the objects of all that was imported.

    And torch.manual_seed keeps a stack trace for each kind of device that might be there one day: for none that is not.
    """
    gc.collect()
    gc.freeze()
    if session.items:
        import torch

        for devices in (torch.cuda, torch.xpu):
            if not devices.is_available():
                devices.manual_seed_all = lambda seed: None


def pytest_unconfigure():
    gc.unfreeze()


def pytest_collection_modifyitems(items):
    """First the files that start processes, then those that train, then by number of tests: so the workers come to
    their end together."""
    tests = Counter(item.path for item in items)
    modules = {item.path: item.module for item in items}
    first = {path for path, module in modules.items() if starts_processes(module)}
    items.sort(
        key=lambda item: (item.path not in first, item.path.parent.name != "trainer", -tests[item.path], item.path)
    )


def pytest_configure(config):
    if hasattr(config.option, "loadscopereorder"):  # pytest-xdist would sort files by number of tests alone
        config.option.loadscopereorder = False
    config.pluginmanager.register(Budget(), "budget")
    if "HFOPTIM_CACHE" not in os.environ:  # workers and other children have it from here: a kernel is compiled once
        kernels = tempfile.TemporaryDirectory(prefix="hfoptim-kernels-", ignore_cleanup_errors=True)
        os.environ["HFOPTIM_CACHE"] = kernels.name
        config.add_cleanup(kernels.cleanup)
    if "HF_HOME" not in os.environ:  # datasets that tests make
        caches = tempfile.TemporaryDirectory(prefix="hfoptim-datasets-", ignore_cleanup_errors=True)
        os.environ["HF_HOME"] = caches.name
        config.add_cleanup(caches.cleanup)
