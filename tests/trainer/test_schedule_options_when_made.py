"""Values of schedule options are refused when arguments and callbacks are made, not when the training starts."""

import logging

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hfoptim.compare.config import CompareConfig, CompareError
from hfoptim.trainer import OptimizerCallback
from schedules import absolute, constant, linear

WRONG = [
    ("rex", {"min_lr": "1e-6 or so"}, TypeError, "min_lr must be a number, got '1e-6 or so'"),
    ("rex", {"min_lr": -1.0}, ValueError, "min_lr must be at least 0"),
    ("rex", {"minlr": 0.0}, ValueError, "has no option 'minlr'; it has .*: did you mean 'min_lr'"),
    ("wsd", {"num_decay_steps": 9, "decay_type": "lineer"}, ValueError, "got 'lineer': did you mean 'linear'"),
    ("plateau", {"factor": 1.5}, ValueError, "factor must be below 1"),
    ("plateau", {"mode": "mni"}, ValueError, "got 'mni': did you mean 'min'"),
    ("rex", {"min_lr": 1e-3}, ValueError, r"0\.001 is above the initial lr 0\.0001"),
    ("rex", {"min_lr": "1e-3"}, ValueError, r"0\.001 is above the initial lr 0\.0001"),
    ("multistep", {"milestones": [9, 3]}, ValueError, "must be in ascending order"),
]


@pytest.mark.parametrize(("schedule", "options", "error", "words"), WRONG)
def test_wrong_values_are_refused_when_made(names, arguments, schedule, options, error, words):
    given = {"lr_scheduler_type": schedule, "lr_scheduler_kwargs": options, "eval_strategy": "steps"}
    with pytest.raises(error, match=f"lr_scheduler_kwargs: .*{words}"):
        arguments(learning_rate=1e-4, **given)
    with pytest.raises(error, match=f"lr_scheduler_kwargs: .*{words}"):
        arguments(optim="lion", optim_args="lr=1e-4", **given)
    with pytest.raises(error, match=f"schedule_kwargs: .*{words}"):
        OptimizerCallback("lion", lr=1e-4, schedule=schedule, schedule_kwargs=options)


def test_numbers_as_text_are_numbers(names, arguments, make_trainer, inner):
    given = {"lr_scheduler_type": "rex", "lr_scheduler_kwargs": {"min_lr": "1e-5"}, "max_steps": 2}
    trainer = make_trainer(learning_rate=1e-3, **given)
    trainer.train()
    assert inner(trainer).param_groups[0]["lr"] == pytest.approx(1e-5)


def test_a_floor_above_another_lr_than_the_main_one_is_seen_too():
    given = {"schedule": "rex", "schedule_kwargs": {"min_lr": 1e-4}}
    for options in ({"head_lr": 1e-5}, {"param_options": {"*.bias": {"lr": 1e-5}}}):
        with pytest.raises(ValueError, match=r"0\.0001 is above the initial lr 1e-05"):
            OptimizerCallback("adamw", lr=1e-3, **options, **given)
    # With rates by pattern nothing may be left for the main one.
    OptimizerCallback("adamw", lr=1e-5, param_options={"*": {"lr": 1e-3}}, **given)


def test_a_callback_whose_lr_the_arguments_have_is_checked_when_its_trainer_is_made(make_trainer):
    given = {"schedule": "rex", "schedule_kwargs": {"min_lr": 1e-3}}
    callback = OptimizerCallback("adamw", **given)
    make_trainer(callback, learning_rate=1e-2)
    with pytest.raises(ValueError, match=r"schedule_kwargs: .* 0\.001 is above the initial lr 0\.0001"):
        make_trainer(callback, learning_rate=1e-4)
    # Steps that the arguments fix count, and those that the callback has count more.
    cycles = {"schedule": "cosine_annealing_with_warmup", "schedule_kwargs": {"first_cycle_steps": 30}}
    with pytest.raises(ValueError, match="must be more than num_warmup_steps=50"):
        make_trainer(OptimizerCallback("adamw", lr=1e-2, **cycles), warmup_steps=50)
    cycles["schedule_kwargs"]["num_warmup_steps"] = 5
    make_trainer(OptimizerCallback("adamw", lr=1e-2, **cycles), warmup_steps=50)


def test_the_lr_of_a_callback_counts_for_a_schedule_of_the_arguments(names, make_trainer):
    given = {"lr_scheduler_type": "rex", "lr_scheduler_kwargs": {"min_lr": 1e-3}}
    make_trainer(OptimizerCallback("adamw", lr=1e-2), **given)
    with pytest.raises(ValueError, match=r"lr_scheduler_kwargs: .* 0\.001 is above the initial lr 0\.0001"):
        make_trainer(OptimizerCallback("adamw", lr=1e-4), **given)


def test_what_is_not_known_yet_is_not_refused(names, arguments, caplog):
    # Whose lr? An optimizer made by hand has its own; learning_rate is not the user's.
    given = {"lr_scheduler_type": "rex", "lr_scheduler_kwargs": {"min_lr": 1e-3}}
    with caplog.at_level(logging.WARNING):
        args = arguments(**given)
    assert "0.001 is above the initial lr 5e-05" in caplog.text
    assert args.lr_scheduler_kwargs == {"min_lr": 1e-3}
    model = torch.nn.Linear(2, 2)
    Trainer(model, args, optimizers=(torch.optim.SGD(model.parameters(), lr=0.1), None))
    # How many steps? What only some numbers of them go with passes, and what none goes with does not.
    share = "warmup_ratio" if "warmup_ratio" in TrainingArguments.__dataclass_fields__ else "warmup_steps"
    for name, options, warmup in (
        ("cosine_annealing_with_warmup", {"first_cycle_steps": 30}, {share: 0.1}),
        ("rsqrt", {"decay_steps": 5000}, {"warmup_steps": 100}),
        ("infinite", {"num_cooldown_steps": 0.2, "num_anneal_steps": 5000}, {"warmup_steps": 100}),
        ("noam", {}, {share: 0.1}),
    ):
        given = {"lr_scheduler_type": name, "lr_scheduler_kwargs": options, "learning_rate": 1e-3, "max_steps": -1}
        arguments(**given, **warmup)
    with pytest.raises(ValueError, match="num_warmup_steps must be at least 1"):
        arguments(lr_scheduler_type="noam", learning_rate=1e-3)
    with pytest.raises(ValueError, match="decay_steps=5000 is more than the 40 steps"):
        arguments(lr_scheduler_type="rsqrt", lr_scheduler_kwargs={"decay_steps": 5000}, max_steps=40)


def test_curves_of_other_hyperparameters(make_trainer):
    def callback(curve, name="weight_decay", **options):
        return OptimizerCallback("adamw", lr=1e-3, schedule="linear", hyperparameters={name: curve}, **options)

    with pytest.raises(TypeError, match=r"hyperparameters\['weight_decay'\]: min_lr must be a number"):
        callback(("rex", {"min_lr": "low"}))
    with pytest.raises(ValueError, match="did you mean 'linear'"):
        callback(("wsd", {"num_decay_steps": 9, "decay_type": "lineer"}))
    callback(("cosine_annealing_with_warmup", {"first_cycle_steps": 5}))
    callback(("noam", {"num_warmup_steps": 0.1}))
    # What the optimizer's own numbers do not go with is seen once they are known, when the Trainer is made.
    for curve, name, words in (
        (absolute(1.5) * constant(), "beta2", "it must stay below 1"),
        (("rex", {"min_lr": 5.0}), "weight_decay", "5 is above the initial lr 0.1"),
        (linear(9), "beta1", "without momentum"),
    ):
        with pytest.raises(ValueError, match=words):
            make_trainer(callback(curve, name, weight_decay=0.1))
    make_trainer(callback(linear(9), weight_decay=0.1))


def test_a_comparison_is_refused_before_it_runs():
    with pytest.raises(CompareError, match=r"--schedule polynomial: .*1e-07 is above the initial lr 1e-08"):
        CompareConfig.from_options(optimizers=["sgd"], lr_grid=["1e-8,1e-3"], schedule="polynomial")
    CompareConfig.from_options(optimizers=["sgd"], lr_grid=["1e-8,1e-3"], schedule="linear")
