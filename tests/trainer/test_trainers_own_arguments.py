"""Trainer(optimizers=...) and Trainer(optimizer_cls_and_kwargs=...) with hfoptim's classes."""

import pytest
import torch
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

import hfoptim
import schedules
from hfoptim.trainer import OptimizerCallback


def test_optimizers_with_optimizer_and_schedule(make_trainer, model, inner, watcher):
    network = model()
    optimizer = hfoptim.Lion(network.parameters(), lr=1e-3)
    schedule = schedules.get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=4)
    trainer = make_trainer(watcher, own={"model": network, "optimizers": (optimizer, schedule)})
    trainer.train()
    assert inner(trainer) is optimizer
    assert trainer.lr_scheduler is schedule
    assert watcher.logged == [lrs[0] for lrs in watcher.applied] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_optimizers_with_adafactor_and_its_schedule(make_trainer, model, inner):
    network = model()
    optimizer = hfoptim.Adafactor(network.parameters())
    schedule = hfoptim.AdafactorSchedule(optimizer)
    trainer = make_trainer(own={"model": network, "optimizers": (optimizer, schedule)})
    trainer.train()
    assert int(optimizer.state[network.transformer.wte.weight]["step"]) == 4


def test_optimizers_made_by_create_optimizer(make_trainer, model, inner, watcher):
    network = model()
    pair = hfoptim.create_optimizer(network, 1e-2, 4, 2, weight_decay_rate=0.1)
    make_trainer(watcher, own={"model": network, "optimizers": pair}).train()
    assert watcher.logged == pytest.approx([0.0, 5e-3, 1e-2, 5e-3])


def test_optimizer_cls_and_kwargs(make_trainer, inner):
    own = {"optimizer_cls_and_kwargs": (hfoptim.Lion, {"lr": 1e-3, "betas": (0.8, 0.9)})}
    trainer = make_trainer(own=own, weight_decay=0.1)
    trainer.train()
    assert type(inner(trainer)) is hfoptim.Lion
    assert [(g["betas"], g["weight_decay"]) for g in inner(trainer).param_groups] == [
        ((0.8, 0.9), 0.1),
        ((0.8, 0.9), 0.0),
    ]


def test_they_work_with_the_names_enabled_too(names, make_trainer, model, inner):
    network = model()
    optimizer = hfoptim.SGD(network.parameters(), lr=1e-2)
    trainer = make_trainer(own={"model": network, "optimizers": (optimizer, None)}, optim="lion")
    trainer.train()
    assert inner(trainer) is optimizer


def test_callback_and_name_build_the_same(names, make_trainer):
    given = {"weight_decay": 0.1, "lr_scheduler_type": "linear", "max_steps": 3}

    def trained(*args, **more):
        trainer = make_trainer(*args, **given, **more)
        trainer.train()
        return trainer

    one = trained(OptimizerCallback("lion", lr=1e-3))
    other = trained(optim="lion", learning_rate=1e-3)
    third = trained(own={"optimizer_cls_and_kwargs": (hfoptim.Lion, {"lr": 1e-3})})
    for key, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[key]), key
        assert torch.equal(value, third.model.state_dict()[key]), key


def test_seq2seq_trainer(names, model, text, inner, tmp_path):
    args = Seq2SeqTrainingArguments(
        str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no", max_steps=2, optim="lion"
    )
    trainer = Seq2SeqTrainer(model(), args, train_dataset=text)
    trainer.train()
    assert type(inner(trainer)) is hfoptim.Lion
    trainer = Seq2SeqTrainer(model(), args, train_dataset=text, callbacks=[OptimizerCallback("sgd")])
    trainer.train()
    assert type(inner(trainer)) is hfoptim.SGD
