"""Whether a family runs over few options and optimizers, as in `make test`, or over all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module", params=["few", pytest.param("all", marks=pytest.mark.slow)])
def which(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, which: str) -> Path:
    if torch.__version__ < "2.7":
        pytest.skip("fully_shard has ignored_params, which leaves scalars alone, from torch 2.7 on")
    return tmp_path_factory.mktemp(f"sharded-{which}")
