"""GuardSteps: a Trainer's ranks take a step together or not at all, and a rank that is missing is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import guarding_worker
import pytest
import torch
from guarding_worker import ALL, BAD, STEPS, train
from ranks import run_ranks
from transformers import Trainer

import hfoptim
from hfoptim import GuardSteps, OptimizerCallback
from hfoptim.trainer import EvaluationWeights

WORKER = Path(guarding_worker.__file__)
NAME = "transformer.h.0.attn.c_attn.weight"


def found(kind: str, folder: Path, *cases: str) -> list[dict[str, Any]]:
    run_ranks(WORKER, kind, str(folder), *cases, ranks=2, output=folder, timeout=240)
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def same(ours: dict[str, Any], theirs: dict[str, Any], case: str = "") -> None:
    assert ours["weights"] == theirs["weights"], case


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_all_ranks_skip_or_raise(kind: str, tmp_path: Path) -> None:
    cases = [f"{fault}-{way}" for fault in ("nan", "missing") for way in ("skip", "raise")]
    cases += ["frozen-raise"] if kind == "fsdp2" else []  # DDP compares the ranks' parameters by itself
    first, second = found(kind, tmp_path, ALL, *cases)
    for case in cases:
        ours, theirs = first[case], second[case]
        assert ours["said"] == theirs["said"], case
        assert ours["steps"] == theirs["steps"], case
        same(ours, theirs, case)
        if case.endswith("skip"):
            assert (ours["said"], ours["steps"], ours["skipped"]) == ("", STEPS, 1), case
            same(ours, first[ALL], case)
            assert ours["norms"][BAD] == 0.0, case
            assert 0.0 not in ours["norms"][:BAD] + ours["norms"][BAD + 1 :], case
    assert f"'{NAME}' is not finite on rank 1: no rank has taken the step" in first["nan-raise"]["said"]
    assert f"'{NAME}' has a gradient on rank 0 and none on rank 1" in first["missing-raise"]["said"]
    assert {first[f"{fault}-raise"]["steps"] for fault in ("nan", "missing")} == {BAD}
    if kind == "fsdp2":
        assert f"parameter '{NAME}' is not there, or frozen, on rank 1" in first["frozen-raise"]["said"]
        assert first["frozen-raise"]["steps"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("stuck", "RuntimeError: rank 1 did not come out of backward pass 5: "),
        ("fails", "RuntimeError: rank 1 failed in backward pass 5: ValueError: spoiled: "),
    ],
)
def test_a_rank_that_others_wait_for_in_backward_is_named(fault: str, said: str, tmp_path: Path) -> None:
    first, second = found("ddp", tmp_path, fault)
    assert first[fault]["said"].startswith(said)
    assert second[fault]["said"] == "ValueError: spoiled" or fault == "stuck"


def test_a_step_that_is_left_out_leaves_no_trace(tmp_path: Path) -> None:
    guard = GuardSteps(nonfinite="skip")
    ours = train(str(tmp_path), "nan", guard)
    assert (ours["steps"], guard.skipped) == (STEPS, 1)
    same(ours, train(str(tmp_path), ALL, None))


def test_the_schedule_waits(tmp_path: Path) -> None:
    ours = train(str(tmp_path), "nan", GuardSteps(nonfinite="skip"), lr_scheduler_type="linear")
    assert ours["rates"] == pytest.approx([1e-2 * (1 - done / STEPS) for done in (0, 1, 2, 2)])


def test_one_process_raises_and_names_the_parameter(tmp_path: Path) -> None:
    ours = train(str(tmp_path), "nan", GuardSteps())
    assert (
        ours["said"]
        == f"RuntimeError: the gradient of parameter '{NAME}' is not finite on rank 0: no rank has taken the step"
    )
    assert ours["steps"] == BAD


@pytest.mark.parametrize("name", ["sam_sgd", "bsam", "momo", "adahessian", "schedulefree_adamw", "lookahead_adamw"])
def test_what_optimizers_were_told_of_a_step_that_is_left_out_is_dropped(name: str, tmp_path: Path) -> None:
    """The same as with the micro-batches of that step taken out of the data; dropout is off."""
    guard = GuardSteps(nonfinite="skip")
    ours = train(str(tmp_path), "nan", guard, name, max_steps=STEPS)
    assert guard.skipped == 1
    same(ours, without_the_bad_batches(str(tmp_path), name))


def without_the_bad_batches(folder: str, name: str) -> dict[str, Any]:
    data = guarding_worker.make_data()
    before = guarding_worker.make_data

    # In order, so that it is known which ones the step has.
    def shorter() -> Any:
        return data[: 2 * BAD] + data[2 * BAD + 2 :]

    guarding_worker.make_data = shorter
    try:
        return train(folder, "", None, name, max_steps=STEPS - 1)
    finally:
        guarding_worker.make_data = before


def test_it_resumes(tmp_path: Path) -> None:
    """With the schedule as far behind as it was."""
    straight = train(
        str(tmp_path / "one"), "nan", GuardSteps(nonfinite="skip"), max_steps=6, lr_scheduler_type="linear"
    )
    args: dict[str, Any] = {"max_steps": 6, "lr_scheduler_type": "linear", "save_strategy": "steps", "save_steps": 4}
    train(str(tmp_path / "two"), "nan", GuardSteps(nonfinite="skip"), **args)
    there = str(tmp_path / "two" / "checkpoint-4")
    again = train(str(tmp_path / "two"), "", GuardSteps(nonfinite="skip"), resume=there, **args)
    assert again["rates"] == straight["rates"][4:]
    same(again, straight)


class Steps(torch.optim.AdamW):
    """Of torch, counting its steps."""

    taken = 0

    def step(self, closure: Any = None) -> Any:
        self.taken += 1
        return super().step(closure)


def test_an_optimizer_of_others_and_two_trainings(model: Any, arguments: Any, text: Any, messages: Any) -> None:
    network = model()
    optimizer, guard = Steps(network.parameters(), lr=1e-3), GuardSteps(nonfinite="skip")
    trainer = Trainer(
        network, arguments(), train_dataset=text, optimizers=(optimizer, None), callbacks=[guard, EvaluationWeights()]
    )
    network.lm_head.weight.register_hook(lambda grad: grad * (float("nan") if trainer.state.global_step == 1 else 1.0))
    trainer.train()
    assert (optimizer.taken, guard.skipped) == (3, 1)
    assert [message for message in messages() if "step 2 is left out: the gradient of " in message]
    trainer.train()
    assert (optimizer.taken, guard.skipped) == (6, 1)
    trainer.remove_callback(guard)
    trainer.train()
    assert optimizer.taken == 10


def test_refusals(model: Any, arguments: Any, text: Any) -> None:
    with pytest.raises(ValueError, match="nonfinite='never' is none of"):
        GuardSteps(nonfinite="never")
    with pytest.raises(TypeError, match="timeout"):
        GuardSteps(timeout="long")  # type: ignore[arg-type]
    assert repr(GuardSteps(timeout=5)) == "GuardSteps(nonfinite='raise', differing='raise', timeout=5)"
    two = [GuardSteps(), GuardSteps()]
    with pytest.raises(ValueError, match="two GuardSteps"):
        Trainer(model(), arguments(), train_dataset=text, callbacks=two).train()
    released = OptimizerCallback("adamw", gradient_release=True)
    args = arguments(max_grad_norm=0.0)
    with pytest.raises(ValueError, match="gradient_release=True takes the steps inside of backward"):
        Trainer(model(), args, train_dataset=text, callbacks=[released, GuardSteps()]).train()


def test_accelerate() -> None:
    """A loop with accumulation: steps in between are nobody's, and a prepared schedule waits for one left out."""
    from accelerate import Accelerator

    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    network = torch.nn.Linear(3, 2)
    optimizer = hfoptim.AdamW(network.named_parameters(), lr=0.1)
    schedule: Any = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + step))
    network, optimizer, schedule = accelerator.prepare(network, optimizer, schedule)
    guard = hfoptim.StepGuard(optimizer, nonfinite="skip")
    taken, rates = [], []
    for step in range(8):
        with accelerator.accumulate(network):
            loss = network(torch.ones(2, 3)).square().sum() * (float("nan") if step == 3 else 1.0)
            accelerator.backward(loss)
            taken.append(guard.step())
            assert accelerator.optimizer_step_was_skipped is (step == 3) or step == 4
            schedule.step()
            optimizer.zero_grad()
        rates.append(round(schedule.get_last_lr()[0], 4))
    assert taken == [False, True, False, False, False, True, False, True]
    assert rates == [0.1, 0.05, 0.05, 0.05, 0.05, 0.0333, 0.0333, 0.025]
    assert guard.skipped == 1
