"""DeepSpeed's lines of examples/accelerate/README.md run on CPUs, and reach the losses of all others."""

from __future__ import annotations

import pytest
from test_examples_accelerate import COMMANDS, LAST, kind, launched

pytest.importorskip("deepspeed")


@pytest.mark.parametrize("command", [each for each in COMMANDS if "zero" in each], ids=kind)
def test_launched(command: str) -> None:
    assert f"2 process(es)\n{LAST}\n" in launched(command)
