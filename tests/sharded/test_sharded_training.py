"""Training with real gradients under FSDP2 and DDP, against one process."""

from __future__ import annotations

from pathlib import Path

from family import launch, taken
from tiers import SIGNS_OF_ROUNDING


def test_training_with_fsdp2_and_ddp_is_training_on_one_process(folder: Path, which: str) -> None:
    found = launch(folder, 2, which, "training")["training"].ranks
    # The gradients of the last layer add up to zero over its rows.
    expected = taken(which) - SIGNS_OF_ROUNDING
    assert [set(names) for names in found] == [expected, expected]
