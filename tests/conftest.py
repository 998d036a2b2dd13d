"""What every test of this suite needs: few threads, no network, and the peers' backends chosen before any import."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("KERAS_BACKEND", "torch")


def pytest_terminal_summary(terminalreporter):
    """Say how long it took to resume with every name."""
    reports = [each for outcome in terminalreporter.stats.values() for each in outcome if hasattr(each, "duration")]
    matrix = [each for each in reports if "test_resume_over_all_names" in each.nodeid]
    if matrix:
        tests, seconds = len({each.nodeid for each in matrix}), sum(each.duration for each in matrix)
        terminalreporter.write_line(f"resuming with every optimizer and schedule: {tests} tests, {seconds:.1f} s")
