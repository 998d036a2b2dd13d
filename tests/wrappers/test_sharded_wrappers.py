"""Lookahead, SAM and several optimizers as one over parameters divided between two processes (see the workers)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.parametrize("worker", ["sharded_worker.py", "combined_worker.py"])
def test_sharded_parameters_are_stepped_as_whole_ones(tmp_path, worker):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent / "optimizers")])
    runs = [
        subprocess.Popen(
            [sys.executable, str(HERE / worker), str(tmp_path), str(rank)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [run.communicate(timeout=180)[0] for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [0, 0], "\n".join(text[-3000:] for text in said)
    assert sorted(path.name for path in tmp_path.glob("done-*")) == ["done-0", "done-1"]
