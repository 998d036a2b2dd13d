"""Optimizers around optimizers in the Trainer, by name: Lookahead works, SAM and second-order ones are refused."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import load_file
from test_resume_is_exact import SCHEDULED, run_both
from transformers import HfArgumentParser, TrainerCallback, TrainingArguments
from transformers.training_args import OptimizerNames

import hfoptim
from hfoptim.trainer import OptimizerCallback, disable, enable


@pytest.mark.parametrize("spelled", ["lookahead_adamw", "Lookahead-AdamW", "hfoptim_lookahead_adamw"])
def test_lookahead_by_name(names, make_trainer, inner, spelled):
    trainer = make_trainer(optim=spelled, optim_args="lookahead_k=2,betas=(0.8,0.9)", weight_decay=0.1)
    assert trainer.args.optim.value == "lookahead_adamw"
    trainer.train()
    optimizer = inner(trainer)
    assert isinstance(optimizer, hfoptim.Lookahead)
    assert type(optimizer.optimizer) is hfoptim.Adam
    chosen = [(g["lookahead_k"], g["lookahead_alpha"], g["betas"], g["weight_decay"]) for g in optimizer.param_groups]
    assert chosen == [(2, 0.5, (0.8, 0.9), 0.1), (2, 0.5, (0.8, 0.9), 0.0)]
    assert [g["lookahead_step"] for g in optimizer.param_groups] == [4, 4]


@pytest.mark.parametrize("name", ["lookahead_lion", "lookahead_sgd"])
def test_lookahead_resumes_exactly(names, make_trainer, tmp_path, name):
    # Saved after 3 steps, which is in the middle of a cycle of 2.
    run_both(make_trainer, tmp_path, list, optim=name, optim_args="lookahead_k=2", learning_rate=1e-2, **SCHEDULED)


def test_badam_resumes_exactly(names, make_trainer, tmp_path):
    # Saved after 3 steps, in the middle of the second block.
    options = "badam_switch_every=2,badam_include_embedding=True,badam_include_lm_head=True"
    run_both(make_trainer, tmp_path, list, optim="badam", optim_args=options, learning_rate=1e-2, **SCHEDULED)


def test_lookahead_through_the_callback(make_trainer, inner):
    trainer = make_trainer(OptimizerCallback("lookahead_lion", lr=1e-3, lookahead_alpha=0.8, schedule="cosine"))
    trainer.train()
    assert isinstance(inner(trainer), hfoptim.Lookahead)
    assert type(inner(trainer).optimizer) is hfoptim.Lion
    assert inner(trainer).param_groups[0]["lookahead_alpha"] == 0.8


def test_the_average_is_what_is_saved_and_evaluated(names, make_trainer, inner, tmp_path):
    seen = []

    class Watch(TrainerCallback):
        def on_evaluate(self, args, state, control, model=None, **kwargs):
            seen.append({name: value.clone() for name, value in model.state_dict().items()})

    given = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    trainer = make_trainer(
        Watch(), optim="ema_adamw", optim_args="ema_decay=0.5", learning_rate=1e-2, output_dir=str(tmp_path), **given
    )
    trainer.eval_dataset = trainer.train_dataset
    trainer.train()
    optimizer = inner(trainer)
    assert isinstance(optimizer, hfoptim.EMA)
    optimizer.train()
    trained = {name: param.detach().clone() for name, param in trainer.model.named_parameters()}
    averages = {name: optimizer.kept["weight_average"][param] for name, param in trainer.model.named_parameters()}
    saved = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    for name in set(saved) & set(trained):
        assert torch.equal(saved[name], averages[name]), name
        assert torch.equal(seen[-1][name], averages[name]), name
    assert any(not torch.equal(trained[name], averages[name]) for name in trained)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ema_lion", "ema_decay=0.5"),
        ("schedule_free_lion", "schedule_free_momentum=0.8"),
        ("mechanic_lion", "mechanic_s_init=0.1"),
    ],
)
def test_wrapped_ones_resume_exactly(names, make_trainer, tmp_path, name, options):
    run_both(make_trainer, tmp_path, list, optim=name, optim_args=options, **SCHEDULED)


def test_the_average_of_schedule_free_is_what_is_saved(names, make_trainer, inner, tmp_path):
    given = {"save_strategy": "steps", "save_steps": 4, "lr_scheduler_type": "constant", "output_dir": str(tmp_path)}
    trainer = make_trainer(optim="schedule_free_lion", learning_rate=1e-2, **given)
    trainer.train()
    optimizer = inner(trainer)
    assert isinstance(optimizer, hfoptim.ScheduleFree)
    saved = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    optimizer.train()
    group = optimizer.param_groups[0]
    for name, param in trainer.model.named_parameters():
        if name in saved:
            torch.testing.assert_close(saved[name], optimizer.evaluated(param, group), rtol=0, atol=1e-7)
            assert not torch.equal(saved[name], param.detach())


def test_lookahead_around_an_optimizer_that_sets_its_own_learning_rate(make_trainer, inner):
    trainer = make_trainer(OptimizerCallback("lookahead_adafactor"))
    trainer.train()
    assert isinstance(trainer.lr_scheduler, hfoptim.AdafactorSchedule)


def test_the_name_can_be_written_copied_and_taken_back(tmp_path):
    before = [member.value for member in OptimizerNames]
    enable()
    try:
        for given in ("lookahead_lion", "LOOKAHEAD-Lion"):
            parser = HfArgumentParser(TrainingArguments)
            line = ["--output_dir", str(tmp_path), "--use_cpu", "--optim", given]
            (args,) = parser.parse_args_into_dataclasses(line)
            assert args.optim.value == "lookahead_lion"
        assert OptimizerNames("lookahead_lion") is args.optim
        assert args.optim in list(OptimizerNames)
        pickled = pickle.dumps(args.optim)
        assert pickle.loads(pickled) is copy.deepcopy(args.optim) is args.optim
    finally:
        disable()
    assert [member.value for member in OptimizerNames] == before
    try:
        assert pickle.loads(pickled).value == "lookahead_lion"  # reading it enables the names
    finally:
        disable()
    assert [member.value for member in OptimizerNames] == before


def test_mistakes_are_refused_when_the_arguments_are_made(names, arguments, capsys):
    with pytest.raises(ValueError, match="'lookahead_k'"):
        arguments(optim="lookahead_lion", optim_args="lookahead_kk=2")
    with pytest.raises(ValueError, match="lookahead_k=0"):
        arguments(optim="lookahead_lion", optim_args="lookahead_k=0")
    with pytest.raises(ValueError, match="'lookahead_loin' is not the name of an optimizer"):
        arguments(optim="lookahead_loin")
    with pytest.raises(SystemExit):
        HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(["--optim", "lookahead_loin"])
    assert "argument --optim" in capsys.readouterr().err
