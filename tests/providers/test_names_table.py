"""The tables of docs/trainer.md over transformers' own names are what runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import transformers

ROOT = Path(__file__).resolve().parents[2]


def test_it_is_up_to_date(tmp_path: Path) -> None:
    pinned = (ROOT / "constraints-providers.txt").read_text(encoding="utf-8").splitlines()
    pytest.importorskip("bitsandbytes", reason="make test-providers has it")
    if f"transformers=={transformers.__version__}" not in pinned:
        pytest.skip("the tables are of the pinned transformers")
    run = [sys.executable, str(ROOT / "benchmarks" / "transformers_names.py"), "--check"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, f"run {run[1]} without --check, {done.stderr[-2000:]}"
