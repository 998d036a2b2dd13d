"""Every optimizer under FSDP2 and other divisions, on real processes: steps as on one process, and collectives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cases import Entry
from family import Found, launch, taken
from tiers import DENSE, few_variants


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
            assert entry.name not in taken("all"), "its gradients need no graph"


def test_every_variant_was_looked_at(steps: dict[str, Found], which: str) -> None:
    first = steps["every_optimizer"].ranks[0]
    variants = {f"{e.name}-{name}" for e in DENSE for name in (few_variants(e) if which == "few" else e.variants)}
    assert set(first["collectives"]) | set(first["refused"]) == variants
    # The same along the last dimension.
    assert set(steps["by_columns"].ranks[0]) == taken(which) | {"muown"}


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


# Of every rule, over the few parameters: reductions share an all-reduce each, and so do all matrices the way to their
# owners and back. What is not here is stepped part by part, without a word to other ranks.
OF_EACH: list[tuple[dict[str, int], str]] = [
    (
        {"allreduce_": 1},
        "adai-l2 adaiv2-damped adaiv2-decay adam-clipped adam_atan2-regenerating adam_weight_decay-clipnorm "
        "adam_weight_decay-global_clipnorm adams-amsgrad adams-decay adan-caution adan-clipped adanorm-amsgrad "
        "adanorm-decay adashift-max amos-momentum amos-plain avagrad-l2 dadapt_adagrad-plain dadapt_adam-plain "
        "dadapt_adan-proximal dadapt_lion-decay dadapt_sgd-plain dog-decay dowg-decay gravity-decay "
        "grokadamw-decay kourkoutas-plain lomo-clipped mars-adamw mars-amsgrad mars-lion nadamw-clipped "
        "nero-balanced nero-free novograd-amsgrad novograd-decay prodigy-coupled prodigy-decoupled scion-rows "
        "stable_adamw-decay swats-options swats-switching tiger-scaled",
    ),
    (
        {"alltoall_base_": 4},
        "adago-decay apollo_adamw-other apollo_adamw-projected conda-decay conda-full dion-half dion2-half "
        "dion2-nordion2 fira-projected galore_adamw-other galore_adamw-projected klshampoo-default "
        "klsoap-one_factor ldadamw-feedback ldadamw-svd mars_m-decay muon-adamuon muon-decay muon-normuon "
        "muon-rms muonclip-decay muown-decay polargrad-decay racs-decay sinkgd-decay soap-default soap_muon-decay "
        "spectralsphere-decay splus-decay",
    ),
    (
        {"allreduce_": 6},
        "adafactor-relative adafactor-warmup adafactor_torch-decay adalomo-plain adamp-nesterov adamp-projected "
        "came-decay rose-stable sgdp-nesterov sgdp-projected",
    ),
    (
        {"allreduce_": 2},
        "adagc-decay kourkoutas-all lamb-unclipped lars-larc lars-momentum lars-plain "
        "prodigy_plus_schedule_free-whole ranger21_base-plain rose-plain stablespam-resets",
    ),
    (
        {"allreduce_": 3},
        "adatam-decay aida-l2 apollo-constant fadam-decay fromage-default lamb-decay ldog-decay tam-decay",
    ),
    (
        {"allreduce_": 4},
        "adafactor-lr apollo-belief apollo-stable sgdsai-default sm3-average sm3-sum",
    ),
    (
        {"alltoall_base_": 6},
        "alice-alice_0 alice-tracking distributed_shampoo-adam kron-decay kron-diagonal psgd_pro-decay "
        "shampoo-decay shampoo-decoupled soap-merged",
    ),
    (
        {"all_reduce": 6, "allreduce_": 2},
        "adamc_schedule_free_plus-annealed alig-momentum alig-plain momo-plain momo_adam-proximal",
    ),
    (
        {"alltoall_base_": 2},
        "adamw_sn-matrices adamw_sn-sizes mars-shampoo splus-often",
    ),
    (
        {"all_reduce": 6, "allreduce_": 1},
        "emofact-decay emolynx-decay emonavi-decay emonavi-shadow",
    ),
    (
        {"allreduce_": 7},
        "adafactorbv-factored adalomo-clipped",
    ),
    (
        {"allreduce_": 5},
        "lamb-caution",
    ),
    (
        {"allreduce_": 12},
        "adamp-caution sgdp-caution",
    ),
    (
        {"alltoall_base_": 8},
        "distributed_shampoo-dash distributed_shampoo-plain",
    ),
    (
        {"allreduce_": 1, "alltoall_base_": 4},
        "scion-constrained scionlight-constrained",
    ),
    (
        {"allreduce_": 15},
        "adalite-decay",
    ),
    (
        {"allreduce_": 1, "alltoall_base_": 2},
        "adam_mini-decay",
    ),
    (
        {"allreduce_": 1, "alltoall_base_": 3},
        "prodigy-sliced prodigy_plus_schedule_free-plain",
    ),
    (
        {"alltoall_base_": 12},
        "demo-decay",
    ),
    (
        {"allreduce_": 6, "alltoall_base_": 4},
        "galore_adafactor-projected",
    ),
    (
        {"allreduce_": 4, "alltoall_base_": 4},
        "galore_adafactor-other",
    ),
    (
        {"allreduce_": 29},
        "ranger21_base-usual",
    ),
]


def test_the_collectives_of_every_rule(steps: dict[str, Found], which: str) -> None:
    if which != "few":
        pytest.skip("the table is of the few parameters and options")
    found = steps["every_optimizer"].ranks[0]["collectives"]
    expected = {key: counts for counts, keys in OF_EACH for key in keys.split()}
    assert {key: counts for key, counts in found.items() if counts} == expected


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
