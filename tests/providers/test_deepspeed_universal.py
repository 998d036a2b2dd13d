"""DeepSpeed's universal checkpoints: saved by two processes, gone on with by one and by three."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import zero_shapes_worker
from ranks import ROOT, run_ranks

pytest.importorskip("deepspeed")

WORKER = Path(__file__).resolve().parent / "zero_shapes_worker.py"


# The converter wants exp_avg and exp_avg_sq by these names, and ZeRO-3 gives all groups the options of the first.
@pytest.mark.parametrize(("name", "stage"), [("adamw", 1), ("nadamw", 2)])
def test_a_run_goes_on_on_another_number_of_processes(
    tmp_path: Path, name: str, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    run_ranks(WORKER, str(tmp_path), str(stage), f"{name}:saved", ranks=2, output=tmp_path, timeout=200)
    saved = tmp_path / f"{name}:saved"
    line = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    line += ["--input_folder", str(saved / "half"), "--output_folder", str(saved / "universal")]
    line += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    # What is in the checkpoint comes from here.
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    subprocess.run(line, check=True, capture_output=True, timeout=200, env={**os.environ, "PYTHONPATH": paths})
    start, want = dict(zero_shapes_worker.Network().named_parameters()), zero_shapes_worker.alone(name)
    moved = max(float((want[key] - start[key]).detach().abs().max()) for key in want)
    for ranks in (1, 3):
        run_ranks(WORKER, str(tmp_path), str(stage), f"{name}:universal", ranks=ranks, output=tmp_path, timeout=200)
        found = torch.load(tmp_path / f"{name}:universal.0.pt")
        assert not isinstance(found, str), found
        for key, value in want.items():
            assert float((found[key] - value).abs().max()) <= 2e-6 * moved, (ranks, key)
