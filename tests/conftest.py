"""What every test of this suite needs: few threads, no network, and the peers' backends chosen before any import."""

from __future__ import annotations

import logging
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("KERAS_BACKEND", "torch")

import pytest


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


def pytest_terminal_summary(terminalreporter):
    """Say how long it took to resume with every name."""
    reports = [each for outcome in terminalreporter.stats.values() for each in outcome if hasattr(each, "duration")]
    matrix = [each for each in reports if "test_resume_over_all_names" in each.nodeid]
    if matrix:
        tests, seconds = len({each.nodeid for each in matrix}), sum(each.duration for each in matrix)
        terminalreporter.write_line(f"resuming with every optimizer and schedule: {tests} tests, {seconds:.1f} s")
