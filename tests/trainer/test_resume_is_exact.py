"""Six steps in one go equal three steps, a checkpoint, and three more: what test_resume_over_all_names leaves out."""

import json

import pytest
import torch
from resuming import history, same, same_end, tensors

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


def logged(folder):
    return history(json.loads((folder / "trainer_state.json").read_text())["log_history"])


def run_both(make_trainer, tmp_path, callbacks, **given):
    """Train in one go and with a break; compare the two, also what their last checkpoints have of the log."""
    whole = make_trainer(*callbacks(), output_dir=str(tmp_path / "run"), **{**USUAL, **given})
    whole.train()
    (tmp_path / "run" / "checkpoint-6").rename(tmp_path / "whole")
    resumed = make_trainer(*callbacks(), output_dir=str(tmp_path / "run"), **{**USUAL, **given})
    with torch.no_grad():
        for param in resumed.model.parameters():
            param.add_(1.0)  # resuming has to put them back
    resumed.train(resume_from_checkpoint=True)
    same_end(whole, resumed)
    assert logged(tmp_path / "run" / "checkpoint-6") == logged(tmp_path / "whole") == history(whole.state.log_history)
    return whole, resumed, logged(tmp_path / "whole")


def test_adafactor_that_sets_its_own_learning_rate(names, make_trainer, tmp_path, inner):
    options = {"optim": "hfoptim_adafactor", "optim_args": "relative_step=True,warmup_init=True,lr=None,beta1=0.9"}
    whole, resumed, entries = run_both(make_trainer, tmp_path, list, **options)
    assert [inner(whole).applied_lr(i) for i in range(2)] == [inner(resumed).applied_lr(i) for i in range(2)]
    shown = [lr for _, lr, _, _ in entries]
    assert shown == sorted(shown)  # the relative step grows in its warmup
    assert len(set(shown)) == 6
    assert shown[-1] == inner(whole).applied_lr(0)


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
