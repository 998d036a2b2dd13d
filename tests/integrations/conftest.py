"""Tiny models, tokenizers and data for trainers that others build; `make test-trainers` installs what they need."""

from __future__ import annotations

import importlib
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# In an environment without a package its tests are skipped; in the one that is made for them none may be.
if os.environ.get("HFOPTIM_ALL_TRAINERS"):
    for package in ("lightning", "peft", "sentence_transformers", "trl"):
        importlib.import_module(package)
