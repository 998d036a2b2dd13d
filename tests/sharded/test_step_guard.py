"""Faults of one rank: all take the same decision about the step, nothing changes, nobody waits for ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import guard_worker
import pytest
import ranks
import torch
from torch import nn

import hfoptim

WORKER = Path(__file__).resolve().parent / "guard_worker.py"
SAID = {
    "nan": "the gradient of parameter '0.weight' is not finite on rank 1: no rank has taken the step",
    "missing": "parameter '0.weight' has a gradient on rank 0 and none on rank 1: no rank has taken the step",
}


def found(folder: Path, *tasks: str) -> list[dict[str, Any]]:
    """What each of two ranks found, by task."""
    ranks.run_ranks(WORKER, str(folder), "{rank}", "2", *tasks, ranks=2, output=folder, timeout=180)
    return [{task: json.loads((folder / f"{task}.{rank}.json").read_text()) for task in tasks} for rank in range(2)]


def alone(name: str, steps: list[int]) -> list[torch.Tensor]:
    """The weights after these steps on one process."""
    model = guard_worker.network()
    optimizer = hfoptim.create_optimizer_v2(model, name, lr=0.05)
    for step in steps:
        guard_worker.gradients(model, step)
        optimizer.step()
    return [param.detach().flatten() for param in model.parameters()]


def test_all_ranks_raise_or_skip_and_go_on_as_if_the_step_had_not_been(tmp_path: Path) -> None:
    first, second = found(tmp_path, "faults", "unlike")
    assert len(first["faults"]) == 16
    for case, ours in first["faults"].items():
        name, _, fault, way = case.split("-")
        assert second["faults"][case] == ours, case
        assert ours["taken"] == [True, True, SAID[fault] if way == "raise" else False, True], case
        wanted = alone(name, [step for step in range(guard_worker.STEPS) if step != guard_worker.BAD])
        for got, want in zip(ours["weights"], wanted, strict=True):
            torch.testing.assert_close(torch.tensor(got, dtype=torch.float64), want, rtol=1e-9, atol=1e-12, msg=case)
    assert first["unlike"] == second["unlike"]
    assert "'0.weight' is not the same parameter everywhere" in first["unlike"]["frozen"]
    assert "trained on rank 0; " in first["unlike"]["frozen"]
    assert first["unlike"]["frozen"].endswith("frozen on rank 1")
    assert "(4, 5)" in first["unlike"]["other"]
    assert first["unlike"]["number"] == (
        "the ranks have other numbers of parameters: 4 on rank 0, 3 on rank 1; parameter '2.bias' is not there, or "
        "frozen, on rank 1"
    )


def test_a_rank_that_does_not_come_is_named(tmp_path: Path) -> None:
    first, _ = found(tmp_path, "waiting")
    assert first["waiting"].startswith("rank 1 did not come to agreement 3 (last in step 1): ")


def test_a_rank_that_was_killed_is_named(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="rank 1: -9"):
        found(tmp_path, "killed")
    assert json.loads((tmp_path / "killed.0.json").read_text()).startswith("rank 1 did not come to agreement 3")


@pytest.mark.slow  # for the seconds in which they wait
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("failing", "RuntimeError: rank 1 failed in backward pass 2: ValueError: spoiled: "),
        ("stuck", "RuntimeError: rank 1 did not come out of backward pass 2: "),
    ],
)
def test_a_rank_that_others_wait_for_in_a_backward_pass_is_named(tmp_path: Path, fault: str, said: str) -> None:
    first, second = found(tmp_path, fault)
    assert first[fault].startswith(said)
    assert not second[fault].startswith("no error")


@pytest.mark.slow
def test_a_rank_that_was_killed_in_a_backward_pass_is_named(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="rank 1: -9"):
        found(tmp_path, "ended")
    said = json.loads((tmp_path / "ended.0.json").read_text())
    assert said.startswith("RuntimeError: rank 1 did not come out of backward pass 2: ")


def one(**options: Any) -> tuple[hfoptim.StepGuard, nn.Module]:
    model = guard_worker.network()
    guard_worker.gradients(model, 0)
    return hfoptim.StepGuard(hfoptim.AdamW(model.named_parameters()), **options), model


def test_one_process_decides_alone() -> None:
    guard, model = one(nonfinite="skip")
    assert guard.step()
    before = guard_worker.whole(model)
    guard_worker.spoil(model, "nan")
    assert not guard.step()
    assert guard.skipped == 1
    assert guard_worker.whole(model) == before
    guard, model = one()
    guard_worker.spoil(model, "nan")
    with pytest.raises(RuntimeError, match=r"'0\.weight' is not finite on rank 0"):
        guard.step()
    guard, model = one()
    model.zero_grad()
    assert guard.step()  # nothing to do is no fault


def test_the_loss_reaches_the_optimizer() -> None:
    model = guard_worker.network()
    guard = hfoptim.StepGuard(hfoptim.create_optimizer_v2(model, "momo"))
    guard_worker.gradients(model, 0)
    assert guard.step(loss=torch.tensor(2.0))
    with pytest.raises(RuntimeError, match="not told"):
        guard.step()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"nonfinite": "ignore"}, "nonfinite='ignore' is none of 'raise', 'skip'"),
        ({"differing": True}, "differing=True is none of 'raise', 'skip', 'allow'"),
        ({"timeout": 0}, "timeout=0 must be above 0"),
    ],
)
def test_wrong_choices(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        one(**options)


def test_what_it_cannot_guard() -> None:
    with pytest.raises(TypeError, match=r"expected a torch\.optim\.Optimizer"):
        hfoptim.StepGuard(guard_worker.network())  # type: ignore[arg-type]
    released = hfoptim.AdamW(guard_worker.network().parameters(), gradient_release=True)
    with pytest.raises(ValueError, match="gradient_release=True takes the steps inside of backward"):
        hfoptim.StepGuard(released)
    flat = nn.Parameter(torch.ones(3))
    flat._fsdp_flattened = True  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="FSDP1 or DeepSpeed has flattened"):
        hfoptim.StepGuard(hfoptim.AdamW([flat]))
