"""Rules of every kind, precisions and gradients that are parts of a sum, on two processes."""

from __future__ import annotations

from pathlib import Path

from family import launch


def test_rules_of_every_kind_and_every_precision(tmp_path: Path) -> None:
    for found in launch(tmp_path, 2, "few", "kinds")["kinds"].ranks:
        rules = found["rules"]
        assert set(rules["reductions"]) == {"allreduce_"}
        # What cannot be done part by part goes to owners.
        assert rules["reversed_rows"] == rules["last_rows"] == {"alltoall_base_": 2}
        assert rules["cubed"] == {}
        assert set(found["several_meshes"]) == {"allreduce_"}
        assert found["precisions"] == 10
        assert {name: set(counts) for name, counts in found["sums_of_changed"].items()} == {
            "adai": {"allreduce_"},
            "ranger21_base": {"allreduce_"},
        }
