"""Six steps in one go equal three steps, a checkpoint, and three more: parameters, state and lr, bit for bit.

With dropout, shuffling, gradient accumulation, warmup, clipping and weight decay, so that everything random and
everything counted has to come back.
"""

import json

import pytest
import torch

from hfoptim.trainer import OptimizerCallback

SCHEDULED = {"lr_scheduler_type": "cosine", "warmup_steps": 2}
USUAL = {
    "max_steps": 6,
    "gradient_accumulation_steps": 2,
    "weight_decay": 0.1,
    "save_strategy": "steps",
    "save_steps": 3,
    "max_grad_norm": 0.5,
}


def tensors(state):
    """A state_dict's content, flat, for comparison."""
    for index, values in sorted(state["state"].items()):
        for name, value in sorted(values.items()):
            yield f"{index}.{name}", value
    for index, group in enumerate(state["param_groups"]):
        for name, value in sorted(group.items()):
            if name != "differentiable":  # torch's own, which it adds whenever it loads something
                yield f"group {index}.{name}", value


def same(one, other):
    assert [name for name, _ in one] == [name for name, _ in other]
    for (name, left), (_, right) in zip(one, other, strict=True):
        if isinstance(left, torch.Tensor):
            assert left.dtype == right.dtype, name
            assert torch.equal(left, right), name
        else:
            assert left == right, name


def logged(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [(entry["step"], entry["learning_rate"], entry["loss"], entry["grad_norm"]) for entry in history]


def run_both(make_trainer, tmp_path, callbacks, **given):
    """Train in one go and with a break; compare the two."""
    whole = make_trainer(*callbacks(), output_dir=str(tmp_path / "run"), **{**USUAL, **given})
    whole.train()
    history = logged(tmp_path / "run" / "checkpoint-6")
    (tmp_path / "run" / "checkpoint-6").rename(tmp_path / "whole")
    resumed = make_trainer(*callbacks(), output_dir=str(tmp_path / "run"), **{**USUAL, **given})
    with torch.no_grad():
        for param in resumed.model.parameters():
            param.add_(1.0)  # resuming has to put them back
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    same(sorted(whole.model.state_dict().items()), sorted(resumed.model.state_dict().items()))
    same(list(tensors(whole.optimizer.state_dict())), list(tensors(resumed.optimizer.state_dict())))
    assert [g["lr"] for g in whole.optimizer.param_groups] == [g["lr"] for g in resumed.optimizer.param_groups]
    assert whole.lr_scheduler.get_last_lr() == resumed.lr_scheduler.get_last_lr()
    again = logged(tmp_path / "run" / "checkpoint-6")
    assert [entry[0] for entry in again] == [1, 2, 3, 4, 5, 6]
    assert again == history
    return whole, resumed, history


@pytest.mark.parametrize(
    "name",
    [
        "lion",
        "adamw",
        "adam",
        "sgd",
        "momentum",
        "adam_weight_decay",
        "adafactor",
        "prodigy",
        "adamw_schedule_free",
        "muon",
    ],
)
def test_with_the_callback(make_trainer, tmp_path, name):
    kwargs = {"schedule": "cosine_with_restarts", "schedule_kwargs": {"num_cycles": 2}}
    run_both(make_trainer, tmp_path, lambda: [OptimizerCallback(name, lr=1e-3, **kwargs)], warmup_steps=1)


@pytest.mark.parametrize("name", ["lion", "adamw", "hfoptim_sgd", "hfoptim_adafactor"])
def test_with_names(names, make_trainer, tmp_path, name):
    run_both(make_trainer, tmp_path, list, optim=name, learning_rate=1e-3, **SCHEDULED)


def test_adafactor_that_sets_its_own_learning_rate(names, make_trainer, tmp_path, inner):
    options = {"optim": "hfoptim_adafactor", "optim_args": "relative_step=True,warmup_init=True,lr=None,beta1=0.9"}
    whole, resumed, history = run_both(make_trainer, tmp_path, list, **options)
    assert [inner(whole).applied_lr(i) for i in range(2)] == [inner(resumed).applied_lr(i) for i in range(2)]
    shown = [lr for _, lr, _, _ in history]
    assert shown == sorted(shown)  # the relative step grows in its warmup
    assert len(set(shown)) == 6
    assert shown[-1] == inner(whole).applied_lr(0)


@pytest.mark.parametrize("name", ["lion", "adafactor"])
def test_bfloat16_parameters(make_trainer, tmp_path, name, model):
    def own():
        return {"model": model().to(torch.bfloat16)}

    def make(*callbacks, **given):
        return make_trainer(*callbacks, own=own(), **given)

    run_both(make, tmp_path, lambda: [OptimizerCallback(name, lr=1e-2)])


@pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", "greedy"])
def test_schedules_that_follow_a_metric(make_trainer, tmp_path, schedule):
    options = {"schedule": schedule, "schedule_kwargs": {"patience": 0, "factor": 0.5, "min_lr": 1e-9}}
    given = {"eval_strategy": "steps", "eval_steps": 1, "logging_steps": 1}

    def callbacks():
        return [OptimizerCallback("sgd", lr=1e-2, **options)]

    whole = make_trainer(*callbacks(), output_dir=str(tmp_path / "run"), **{**USUAL, **given})
    whole.train()
    resumed = make_trainer(*callbacks(), output_dir=str(tmp_path / "run"), **{**USUAL, **given})
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert whole.lr_scheduler.state_dict() == resumed.lr_scheduler.state_dict()
    same(sorted(whole.model.state_dict().items()), sorted(resumed.model.state_dict().items()))


def test_preparing_the_optimizer_changes_nothing(make_trainer, inner):
    """accelerate saves and loads the state_dict of every optimizer before the first step."""
    for name in ("lion", "adafactor", "adamw", "sgd"):
        trainer = make_trainer(OptimizerCallback(name))
        trainer.create_optimizer()
        optimizer = inner(trainer)
        before = list(tensors(optimizer.state_dict()))
        trainer.accelerator.prepare(optimizer)
        same(before, list(tensors(optimizer.state_dict())))
        assert not optimizer.state


def test_a_checkpoint_of_another_optimizer_is_refused(make_trainer, tmp_path):
    make_trainer(OptimizerCallback("adamw", lr=1e-3), output_dir=str(tmp_path / "run"), **USUAL).train()
    trainer = make_trainer(OptimizerCallback("lion", lr=1e-3), output_dir=str(tmp_path / "run"), **USUAL)
    with pytest.raises(ValueError, match="not one of Lion"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
