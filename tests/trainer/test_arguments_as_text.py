"""What a command line leaves as text, and what is said of a mistake in it, with hfoptim's names enabled."""

import argparse
import json
import logging
import os

import pytest
import torch
import transformers
from transformers import HfArgumentParser, SchedulerType, TrainingArguments
from transformers.training_args import OptimizerNames

import hfoptim
import schedules
from hfoptim.trainer import OptimizerCallback, disable


def parse(*words):
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(
        ["--output_dir", "out", "--use_cpu", *words]
    )
    return args


# -- resume_from_checkpoint -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "read"), [("True", True), ("true", True), ("False", False), ("FALSE", False), ("None", None)]
)
def test_the_flag_of_resume_from_checkpoint(names, tmp_path, monkeypatch, word, read):
    monkeypatch.chdir(tmp_path)
    assert parse("--resume_from_checkpoint", word).resume_from_checkpoint is read
    assert TrainingArguments("out", resume_from_checkpoint=word, use_cpu=True).resume_from_checkpoint is read
    # A folder of this name is what transformers takes it for.
    (tmp_path / word).mkdir()
    assert parse("--resume_from_checkpoint", word).resume_from_checkpoint == word


@pytest.mark.parametrize("path", ["out/checkpoint-4", "truely", "1"])
def test_a_path_to_resume_from_stays(names, path):
    assert parse("--resume_from_checkpoint", path).resume_from_checkpoint == path


def test_without_the_names_it_is_transformers_text():
    assert parse("--resume_from_checkpoint", "True", "--lr_scheduler_kwargs", "a=1").resume_from_checkpoint == "True"
    assert parse("--lr_scheduler_kwargs", "a=1").lr_scheduler_kwargs == "a=1"


def test_true_resumes_from_the_last_checkpoint(names, make_trainer):
    saving = {"optim": "lion", "save_strategy": "steps", "save_steps": 3, "max_steps": 7}
    make_trainer(**{**saving, "max_steps": 5}).train()
    trainer = make_trainer(**saving, resume_from_checkpoint="True")
    result = trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    assert result.global_step == 7
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == list(range(1, 8))


# -- lr_scheduler_kwargs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written",
    [
        "pct_start=0.25,anneal_strategy=linear",
        '{"pct_start": 0.25, "anneal_strategy": "linear"}',
        ' {"pct_start": 0.25, "anneal_strategy": "linear"}',
        "{'pct_start': 0.25, 'anneal_strategy': 'linear'}",  # as the help of transformers spells it
    ],
)
def test_options_of_our_schedules_as_text(names, make_trainer, watcher, written):
    args = parse("--lr_scheduler_type", "one_cycle", "--lr_scheduler_kwargs", written)
    assert args.lr_scheduler_kwargs == {"pct_start": 0.25, "anneal_strategy": "linear"}
    given = {"lr_scheduler_type": "one_cycle", "learning_rate": 1e-3, "max_steps": 8}
    trainer = make_trainer(watcher, optim="lion", lr_scheduler_kwargs=written, **given)
    trainer.train()
    curve = schedules.get_curve("one_cycle", 0, 8, {"pct_start": 0.25, "anneal_strategy": "linear"})
    assert watcher.logged == pytest.approx([1e-3 * curve(step) for step in range(8)])


@pytest.mark.parametrize("written", ["num_cycles=2", '{"num_cycles": 2}', '{"num_cycles": "2"}', "{'num_cycles': 2}"])
def test_options_of_transformers_schedules_as_text(names, make_trainer, watcher, written):
    trainer = make_trainer(
        watcher, optim="lion", lr_scheduler_type="cosine_with_restarts", lr_scheduler_kwargs=written, learning_rate=1e-3
    )
    trainer.train()
    assert type(trainer.lr_scheduler) is torch.optim.lr_scheduler.LambdaLR
    assert watcher.logged == pytest.approx([1e-3, 5e-4, 1e-3, 5e-4])


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("pct_start", "lr_scheduler_kwargs: 'pct_start' is not of the form name=value"),
        ("pct_start=0.3,pct_start=0.4", "lr_scheduler_kwargs: 'pct_start' is given twice"),
        ("{pct_start: 0.3}", "lr_scheduler_kwargs starts with { but is not JSON"),
        ("p=0.3", "lr_scheduler_kwargs: one_cycle has no option 'p'"),
        ("milestones=2,4", r"in brackets: milestones=\(2,4\)"),
        ("3", "lr_scheduler_kwargs: '3' is not of the form"),
    ],
)
def test_mistakes_in_the_options_of_a_schedule(names, arguments, written, words):
    with pytest.raises(ValueError, match=words):
        arguments(lr_scheduler_type="one_cycle", lr_scheduler_kwargs=written)


def test_options_of_the_callbacks_schedule_as_text():
    callback = OptimizerCallback("lion", schedule="one_cycle", schedule_kwargs="pct_start=0.25,three_phase=True")
    assert callback.schedule_kwargs == {"pct_start": 0.25, "three_phase": True}
    with pytest.raises(ValueError, match="schedule_kwargs: 'p' is not of the form name=value"):
        OptimizerCallback("lion", schedule="one_cycle", schedule_kwargs="p")


def test_no_text_is_no_options(names, arguments):
    for written in ("", "{}"):
        assert not arguments(lr_scheduler_type="one_cycle", lr_scheduler_kwargs=written).lr_scheduler_kwargs


# -- choices that a script froze --------------------------------------------------------------------------------------


def parser_of_a_script_without_a_trainer():
    """As in run_clm_no_trainer.py and its like, which list a few of transformers' schedules."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    frozen = ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"]
    parser.add_argument("--lr_scheduler_type", type=SchedulerType, default="linear", choices=frozen)
    parser.add_argument("--optim", type=OptimizerNames, choices=["adamw_torch"])
    parser.add_argument("--model_type", default=None, choices=["gpt2", "rex"])
    return parser


@pytest.mark.parametrize("word", ["rex", "REX", "hfoptim_cosine", "one-cycle"])
def test_a_frozen_list_of_choices_takes_ours(names, word):
    args = parser_of_a_script_without_a_trainer().parse_args(["--lr_scheduler_type", word])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    made = transformers.get_scheduler(args.lr_scheduler_type, optimizer, num_warmup_steps=0, num_training_steps=10)
    assert isinstance(made, schedules.ScheduleLR)
    args = parser_of_a_script_without_a_trainer().parse_args(["--optim", "lookahead_lion"])
    assert args.optim.value == "lookahead_lion"


def test_a_frozen_list_keeps_everything_else_out(names, capsys):
    parser = parser_of_a_script_without_a_trainer()
    assert parser.parse_args([]).lr_scheduler_type == "linear"
    assert parser.parse_args(["--lr_scheduler_type", "cosine"]).lr_scheduler_type is SchedulerType.COSINE
    for line in (["--lr_scheduler_type", "inverse_sqrt"], ["--optim", "adafactor"], ["--model_type", "lion"]):
        with pytest.raises(argparse.ArgumentError, match="invalid choice"):
            parser.parse_args(line)
    with pytest.raises(argparse.ArgumentError, match=r"'rexx' is not the name of a schedule.*closest are 'rex'"):
        parser.parse_args(["--lr_scheduler_type", "rexx"])
    disable()
    with pytest.raises(argparse.ArgumentError):
        parser.parse_args(["--lr_scheduler_type", "rex"])


# -- messages name what was written -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"learning_rate": -1.0}, r"^learning_rate=-1.0 is out of range"),
        ({"learning_rate": float("nan")}, r"^learning_rate=nan"),
        ({"weight_decay": -0.1}, r"^weight_decay=-0.1 is out of range"),
        ({"adam_beta1": 1.5}, r"^adam_beta1=1.5 is out of range"),
        ({"adam_beta2": 1.0}, r"^adam_beta2=1.0 is out of range"),
        ({"optim": "hfoptim_adamw", "adam_epsilon": -1.0}, r"^adam_epsilon=-1.0 is out of range"),
        ({"optim_args": "lr=-1.0"}, r"^lr=-1.0 is out of range"),
        ({"optim_args": "lr=-1.0", "learning_rate": 1e-3}, r"^lr=-1.0 is out of range"),
        ({"optim_args": "betas=(0.9,1.0)", "adam_beta1": 0.8}, r"^betas\[1\]=1.0 is out of range"),
        ({"optim_args": "betas=0.9,0.98"}, r"in brackets: betas=\(0.9,0.98\)$"),
    ],
    ids=str,
)
def test_a_wrong_value_is_named_as_it_was_given(names, arguments, given, words):
    with pytest.raises(ValueError, match=words):
        arguments(**{"optim": "lion", **given})


def test_the_callback_names_the_argument_too(make_trainer):
    with pytest.raises(ValueError, match=r"^learning_rate=-1.0 is out of range"):
        make_trainer(OptimizerCallback("lion"), learning_rate=-1.0)
    with pytest.raises(ValueError, match=r"^lr=-1.0 is out of range"):
        make_trainer(OptimizerCallback("lion", lr=-1.0))


def test_a_warning_points_at_the_users_line(names, make_trainer, recwarn):
    trainer = make_trainer(optim="prodigy", learning_rate=1e-4)
    assert not [warning for warning in recwarn if "Prodigy" in str(warning.message)]
    trainer.train()
    found = [warning for warning in recwarn if "Prodigy" in str(warning.message)]
    assert [(os.path.basename(warning.filename), str(warning.message)[:26]) for warning in found] == [
        ("test_arguments_as_text.py", "a learning rate of 0.0001 ")
    ]


def test_a_warning_of_a_schedule_points_at_the_users_line(recwarn):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-5)
    schedules.get_scheduler("greedy", optimizer, scheduler_specific_kwargs={"min_lr": 1e-3})
    given = {"num_stable_steps": 1, "num_decay_steps": 1}
    schedules.get_scheduler("warmup_stable_decay", optimizer, 1, 10, given)
    assert [os.path.basename(warning.filename) for warning in recwarn] == ["test_arguments_as_text.py"] * 2


# -- names that transformers owns -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "ours"), [("adafactor", "adafactor"), ("SGD", "sgd"), ("schedule_free_adamw", "adamw_schedule_free")]
)
def test_a_name_of_transformers_is_said_once_to_be_theirs(names, arguments, messages, monkeypatch, name, ours):
    monkeypatch.setattr(hfoptim.trainer.arguments, "_said", set())
    for _ in range(2):
        arguments(optim=name)
    assert messages() == [f"optim={name.lower()!r} is transformers' own optimizer; hfoptim's is optim='hfoptim_{ours}'"]


def test_nothing_is_said_of_names_that_are_not_here_or_ours(names, arguments, messages, monkeypatch):
    monkeypatch.setattr(hfoptim.trainer.arguments, "_said", set())
    for name in ("adamw_torch", "adamw_bnb_8bit", "hfoptim_sgd", "lion"):
        arguments(optim=name)
    arguments()
    assert messages() == []


def test_refusals_can_be_told_from_other_errors(names, arguments, caplog):
    for given in ({"optim": "lion", "optim_args": "x=1"}, {"optim": "loin"}, {"lr_scheduler_kwargs": "x"}):
        with pytest.raises(ValueError) as refused, caplog.at_level(logging.DEBUG):
            arguments(**given)
        assert hfoptim.trainer.arguments.is_mistake(refused.value)
    assert caplog.records[0].exc_info
    with pytest.raises(ValueError) as theirs:
        arguments(save_strategy="lion")
    assert not hfoptim.trainer.arguments.is_mistake(theirs.value)


def test_arguments_with_read_text_are_written_and_read_again(names, tmp_path):
    args = parse("--lr_scheduler_type", "one_cycle", "--lr_scheduler_kwargs", "pct_start=0.3")
    assert json.loads(args.to_json_string())["lr_scheduler_kwargs"] == {"pct_start": 0.3}
