"""What every test of this suite needs: few threads, no network, and the peers' backends chosen before any import."""

from __future__ import annotations

import logging
import os
import tempfile

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


def pytest_configure(config):
    config.pluginmanager.register(Budget(), "budget")
    if "HFOPTIM_CACHE" not in os.environ:  # workers and other children have it from here: a kernel is compiled once
        kernels = tempfile.TemporaryDirectory(prefix="hfoptim-kernels-", ignore_cleanup_errors=True)
        os.environ["HFOPTIM_CACHE"] = kernels.name
        config.add_cleanup(kernels.cleanup)
