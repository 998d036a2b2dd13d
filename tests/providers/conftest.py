"""Other packages' optimizers, tried for real; `make test-providers` installs the packages."""

from __future__ import annotations

import importlib
import os

# In an environment without a package its tests are skipped; in the one that is made for them none may be. What is set
# here would reach all other tests, which share the process elsewhere.
if os.environ.get("HFOPTIM_ALL_PROVIDERS"):
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # DeepSpeed and torchao look for a GPU's tools; torchao's steps are compiled, in minutes, for the same numbers.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    for package in ("bitsandbytes", "deepspeed", "flashoptim", "torchao"):
        importlib.import_module(package)
