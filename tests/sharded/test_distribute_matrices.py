"""`distribute_matrices`: matrices that every rank has, each stepped by one of them, are those of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks

import hfoptim

TESTS = Path(__file__).resolve().parents[1]
PATHS = [TESTS, TESTS / "optimizers"]


def found(folder: Path, ranks: int, which: str, *tasks: str, timeout: float = 900) -> dict[str, list[Any]]:
    """What each task found on each rank."""
    if torch.__version__ < "2.7":
        pytest.skip("torch's checkpoints of parameters that every rank has are those from 2.7 on")
    worker = TESTS / "sharded" / "owners_worker.py"
    run_ranks(worker, str(folder), "{rank}", which, *tasks, ranks=ranks, output=folder, timeout=timeout, paths=PATHS)
    return {task: [json.loads((folder / f"{task}.{rank}.json").read_text()) for rank in range(ranks)] for task in tasks}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("which", ["few", "all"])
def test_every_name_with_a_rule_of_matrices(tmp_path: Path, ranks: int, which: str) -> None:
    """The numbers of one process, bit for bit; one all-gather; state with the owner alone."""
    ranks_found = found(tmp_path, ranks, which, "steps", timeout=3000)["steps"]
    assert len(ranks_found[0]) >= 40
    for key, first in ranks_found[0].items():
        each = [of_rank[key] for of_rank in ranks_found]
        assert all(one["distance"] <= 1e-12 for one in each), key
        assert all(one["weights"] == first["weights"] for one in each), key
        assert all(one["collectives"] == {"_allgather_base_": 1} for one in each), key
        assert first["stateless"] or sum(one["kept"] for one in each) == first["matrices"], key
    for name in ("muon", "soap", "distributed_shampoo", "kron", "muonclip", "splus", "galore_adamw"):
        assert any(key.startswith(f"{name}-") for key in ranks_found[0]), name


def test_memory_faults_and_wrappers(tmp_path: Path) -> None:
    """On two ranks: half of the state; the same decision on both where something is wrong; wrappers."""
    told = found(tmp_path, 2, "few", "memory", "faults", "wrapped", "modes")
    for name, (divided, whole) in told["memory"][0].items():
        assert divided == whole / 2, name
    first, second = told["faults"]
    assert "did not come within 2 s" in first.pop("alone")
    assert "distribute_matrices=True divides matrices that every rank has" in first["other parameters"]
    assert first["other parameters"] == second["other parameters"]
    for quiet in ("a missing gradient", "no gradients"):
        assert first[quiet] == second[quiet] == "nothing"
    assert "the step failed on rank 1" in first["an error"]
    assert second["an error"] == "a decomposition failed"
    assert all("was stepped by another rank" in each["switched off"] for each in (first, second))
    assert set(told["wrapped"][0].values()) == {0.0}
    assert told["modes"] == [0.0, 0.0]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_checkpoints(tmp_path: Path, ranks: int) -> None:
    assert len(found(tmp_path, ranks, "few", "checkpoints", timeout=3000)["checkpoints"][0]) >= 40


def test_batches_under_way_at_once(tmp_path: Path) -> None:
    """Matrices of FSDP2, in more batches than one: the numbers of one process, and two all-to-alls for each."""
    for told in found(tmp_path, 2, "few", "batches")["batches"]:
        for each in told.values():
            assert each["far"] <= 1e-12
            assert each["collectives"] == {"alltoall_base_": 2 * 3}


@pytest.mark.slow
def test_rounds_and_broadcasts(tmp_path: Path) -> None:
    """On four ranks, of which one has by far the largest matrix."""
    for told in found(tmp_path, 4, "few", "rounds")["rounds"]:
        assert told["far"] == 0.0
        assert set(told["collectives"]) == {"_allgather_base_", "broadcast_"}


@pytest.mark.slow
def test_halves_of_the_ranks(tmp_path: Path) -> None:
    assert found(tmp_path, 4, "few", "groups")["groups"] == [0.0] * 4


@pytest.mark.slow
def test_a_trainer_saves_the_state_of_all_ranks(tmp_path: Path) -> None:
    for told in found(tmp_path, 2, "few", "trainer")["trainer"]:
        assert told["far"] == told["resumed"] == told["changed"] == 0.0
        assert 0 < told["elsewhere"] < told["matrices"]


def test_one_process_steps_all() -> None:
    """Without connected processes the option changes nothing."""
    weights = []
    for divided in (True, False):
        param = torch.nn.Parameter(torch.ones(3, 2))
        optimizer = hfoptim.Muon([("layer.0.weight", param)], lr=0.1, distribute_matrices=divided)
        param.grad = torch.arange(6.0).view(3, 2)
        optimizer.step()
        assert optimizer.owners() is None
        weights.append(param.detach())
    assert torch.equal(*weights)


def test_what_it_does_not_go_with() -> None:
    param = torch.nn.Parameter(torch.ones(3, 2))
    with pytest.raises(ValueError, match="gradient_release=True and distribute_matrices=True exclude each other"):
        hfoptim.Muon([param], distribute_matrices=True, gradient_release=True)
    for name, options in (("magma_muon", {}), ("lookahead_muon", {"lookahead_pullback_momentum": "reset"})):
        with pytest.raises(ValueError, match=r"looks at the state of .*distribute_matrices=True"):
            hfoptim.get_optimizer_class(name)([("layer.0.weight", param)], distribute_matrices=True, **options)
    narrow = torch.nn.Parameter(torch.ones(3, 2, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="exact weights, whose last bits"):
        hfoptim.get_optimizer_class("ema_muon")([("layer.0.weight", narrow)], distribute_matrices=True)
