"""What every test of this suite needs: few threads, no network, and the peers' backends chosen before any import."""

from __future__ import annotations

import gc
import logging
import os
import tempfile
from collections import Counter
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


@pytest.fixture
def messages(caplog):
    """The warnings of hfoptim so far."""
    caplog.set_level(logging.INFO, logger="hfoptim")
    return lambda: [r.getMessage() for r in caplog.records if r.name.startswith("hfoptim") and r.levelno >= 30]


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
        return mark
    given, ids = dict(mark.kwargs), mark.kwargs.get("ids")
    if ids is not None and not callable(ids):
        given["ids"] = list(compress(ids, kept))
    return pytest.mark.parametrize(names, list(compress(values, kept)), *rest, **given).mark


def pytest_generate_tests(metafunc):
    """Where slow tests are left out anyway they are not made: they are more than half of all."""
    if metafunc.config.option.markexpr == "not slow":
        own = metafunc.definition.own_markers
        own[:] = [without_slow(mark) if mark.name == "parametrize" else mark for mark in own]


def pytest_collection_finish():
    """accelerate collects garbage in every training: not among the objects of all that was imported."""
    gc.collect()
    gc.freeze()


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
