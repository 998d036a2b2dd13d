"""Tiny models, tokenizers and data for trainers that others build; `make test-trainers` installs what they need."""

from __future__ import annotations

import importlib
import logging
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

from hfoptim import trainer as hfoptim_trainer

# In an environment without a package its tests are skipped; in the one that is made for them none may be.
if os.environ.get("HFOPTIM_ALL_TRAINERS"):
    for package in ("lightning", "peft", "sentence_transformers", "trl"):
        importlib.import_module(package)


@pytest.fixture
def names():
    """hfoptim's names in transformers, for the time of one test."""
    hfoptim_trainer.enable()
    yield
    hfoptim_trainer.disable()


@pytest.fixture
def messages(caplog):
    """The warnings of hfoptim so far."""
    caplog.set_level(logging.INFO, logger="hfoptim")
    return lambda: [r.getMessage() for r in caplog.records if r.name.startswith("hfoptim") and r.levelno >= 30]
