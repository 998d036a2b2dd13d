"""Every optimizer under FSDP2 and other divisions, on real processes: steps as on one process, and collectives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cases import Entry
from family import Found, launch, taken
from tiers import DENSE, few_variants

# Variants with slice_p above 1.
SLICED = {"prodigy-sliced", "prodigy_plus_schedule_free-plain"}


@pytest.fixture(scope="module")
def steps(folder: Path, which: str) -> dict[str, Found]:
    return launch(folder, 2, which, "every_optimizer", "by_columns")


@pytest.mark.parametrize("entry", DENSE, ids=lambda e: e.name)
def test_an_optimizer_takes_the_steps_of_one_process(
    steps: dict[str, Found], which: str, entry: Entry, record_property: Callable[[str, object], None]
) -> None:
    record_property("cpu_seconds", steps["every_optimizer"].cpu_seconds[entry.name])
    first, second = steps["every_optimizer"].ranks
    assert first == second
    for name in few_variants(entry) if which == "few" else entry.variants:
        key = f"{entry.name}-{name}"
        assert (key in first["refused"]) != (key in first["collectives"]), key
        if key in first["refused"]:
            # Its gradients need a graph, or it looks at entries by their place in the whole parameter.
            assert entry.name not in taken("all") or key in SLICED


def test_every_variant_was_looked_at(steps: dict[str, Found], which: str) -> None:
    first = steps["every_optimizer"].ranks[0]
    variants = {f"{e.name}-{name}" for e in DENSE for name in (few_variants(e) if which == "few" else e.variants)}
    assert set(first["collectives"]) | set(first["refused"]) == variants
    # The same along the last dimension.
    assert set(steps["by_columns"].ranks[0]) == taken(which)


# Collectives of a step, for 7 parameters, or 13 where all are tried. docs/distributed.md says where they come from.
COLLECTIVES = {
    "adamw_hf-decay": {},
    "lion-decay": {},
    "adopt-decoupled": {},
    "adamw_schedule_free-decay": {},
    # Sums over all parameters: one all-reduce.
    "adam_weight_decay-global_clipnorm": {"allreduce_": 1},
    "prodigy-decoupled": {"allreduce_": 1},
    # One for each reduction of a rule, whatever the number of parameters.
    "adamw_hf-caution": {"allreduce_": 1},
    "adam_weight_decay-clipnorm": {"allreduce_": 1},
    "novograd-decay": {"allreduce_": 1},
    "lars-momentum": {"allreduce_": 2},
    "lamb-unclipped": {"allreduce_": 2},
    "lamb-decay": {"allreduce_": 3},
    "adafactor-relative": {"allreduce_": 6},  # 4 for matrices, 2 for vectors
    # To the owners and back, for 2-D matrices and for flattened kernels.
    "muon-decay": {"alltoall_base_": 4},
}


def test_the_collectives_of_a_step_do_not_depend_on_the_number_of_parameters(
    steps: dict[str, Found], which: str
) -> None:
    found = steps["every_optimizer"].ranks[0]["collectives"]
    counted = {key: found[key] for key in COLLECTIVES if key in found}
    assert counted == {key: COLLECTIVES[key] for key in counted}
    assert which == "few" or counted.keys() == COLLECTIVES.keys()
    assert len(counted) > len(COLLECTIVES) / 2


@pytest.mark.slow
def test_meshes_of_two_dimensions(tmp_path: Path) -> None:
    found = launch(tmp_path, 4, "all", "meshes_of_two_dimensions")["meshes_of_two_dimensions"].ranks
    assert set(found[0]) == taken("all")
    hybrid, divided_twice, _ = found[0]["muon"]
    assert set(hybrid) == {"alltoall_base_"}
    assert set(divided_twice) == {"all_gather_into_tensor"}
