"""`ScheduleChange`: another schedule from a step of a Trainer's run on, and from there on in every checkpoint."""

import pickle

import pytest
import torch

import schedules
from hfoptim import OptimizerCallback, ScheduleChange

GIVEN = {"max_steps": 10, "warmup_steps": 2, "learning_rate": 1e-2}
CHANGES = {
    "extend": lambda: ScheduleChange(4, extend=12),
    "replace": lambda: ScheduleChange(4, replace=schedules.get_curve("linear", 0, 5), restart=True),
    "anneal": lambda: ScheduleChange(4, anneal={"num_steps": 3, "to": 0.5}),
}


def expected(kind):
    """The learning rates of the steps, from a schedule that is changed by hand."""
    schedule = schedules.get_scheduler("cosine", torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-2), 2, 10)
    before = [schedule.lr_at(step)[0] for step in range(4)]
    schedule.go_to(4)
    CHANGES[kind]()._change(schedule)
    return before + [schedule.lr_at(step)[0] for step in range(4, 10)]


@pytest.mark.parametrize("kind", CHANGES)
def test_changed_at_its_step_and_resumed_bit_for_bit(make_trainer, watcher, tmp_path, kind):
    def train(folder, *callbacks, resume=None):
        watcher.applied.clear()
        callbacks = (OptimizerCallback("adamw", schedule="cosine"), watcher, *callbacks)
        given = {**GIVEN, "output_dir": str(folder), "save_strategy": "steps", "save_steps": 2}
        trainer = make_trainer(*callbacks, **given)
        trainer.train(resume_from_checkpoint=resume and str(tmp_path / "whole" / f"checkpoint-{resume}"))
        return [torch.cat([param.detach().flatten() for param in trainer.model.parameters()]), *watcher.applied]

    weights, *whole = train(tmp_path / "whole", CHANGES[kind]())
    assert [lr for lr, *_ in whole] == pytest.approx(expected(kind), rel=1e-12)
    for step, callbacks in ((2, [CHANGES[kind]()]), (4, [CHANGES[kind]()]), (4, []), (6, [])):
        resumed, *after = train(tmp_path / "resumed", *callbacks, resume=step)
        assert after == whole[step:]
        assert torch.equal(resumed, weights)


def test_what_is_wrong_is_said_when_it_is_made(make_trainer):
    for wrong, error, message in (
        ({}, ValueError, "give one of extend, replace and anneal, got none"),
        ({"extend": 9, "anneal": 3}, ValueError, "got extend, anneal"),
        ({"extend": 3}, ValueError, "after the current step 4, got 3"),
        ({"replace": "cosine"}, TypeError, "curve must be a schedules.curves.Curve"),
        ({"anneal": {"shape": "stairs", "num_steps": 2}}, ValueError, "shape must be one of"),
        ({"extend": 9, "restart": True}, ValueError, "about the curve of replace"),
    ):
        with pytest.raises(error, match=message):
            ScheduleChange(4, **wrong)
    assert repr(pickle.loads(pickle.dumps(CHANGES["extend"]()))) == "ScheduleChange(4, extend: total=12)"
    with pytest.raises(TypeError, match="the Trainer has a LambdaLR; choose one by name"):
        make_trainer(CHANGES["extend"](), **GIVEN).train()
