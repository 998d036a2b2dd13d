"""The benchmarks run: on small shapes, all candidates, and write what they print."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("family", ["Adafactor", "Lion"])
def test_step_time_times_every_candidate(tmp_path: Path, family: str) -> None:
    output = tmp_path / "rows.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "step_time.py"), "--layers", "1", "--vocab", "256"]
    command += ["--repeats", "2", "--family", family, "--threads", "1", "--no-compiled", "--output", str(output)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "COLUMNS": "160"})
    assert run.returncode == 0, run.stderr
    rows = json.loads(output.read_text())["families"][family]
    names = [row["optimizer"] for row in rows]
    assert names[0] == "torch AdamW fused"
    assert f"hfoptim {family} foreach" in names
    assert f"hfoptim {family} compiled" not in names
    assert all(row["median_ms"] > 0 and row["repeats"] == 2 for row in rows)
    assert all(name in run.stdout for name in names)
