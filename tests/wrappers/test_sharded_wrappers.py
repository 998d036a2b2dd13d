"""Lookahead, SAM and several optimizers as one over parameters divided between two processes (see the workers)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ranks import run_ranks

HERE = Path(__file__).resolve().parent
OPTIMIZERS = HERE.parent / "optimizers"


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.parametrize("worker", ["sharded_worker.py", "combined_worker.py"])
def test_sharded_parameters_are_stepped_as_whole_ones(tmp_path, worker):
    run_ranks(HERE / worker, str(tmp_path), "{rank}", ranks=2, output=tmp_path, timeout=180, paths=[OPTIMIZERS])
    assert sorted(path.name for path in tmp_path.glob("done-*")) == ["done-0", "done-1"]
