"""Training with real gradients under FSDP2 and DDP, against one process."""

from __future__ import annotations

from pathlib import Path

from family import launch, taken


def test_training_with_fsdp2_and_ddp_is_training_on_one_process(folder: Path, which: str) -> None:
    found = launch(folder, 2, which, "training")["training"].ranks
    assert [set(names) for names in found] == [taken(which), taken(which)]
