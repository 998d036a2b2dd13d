"""What is said once when a training begins: warm-ups that do nothing or meet, losses that nobody divides."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import Trainer
from window_worker import VOCABULARY, Case, make_data, make_model

from hfoptim.trainer import OptimizerCallback, TokenWeights, advice

NEW = int(transformers.__version__.split(".")[0]) >= 5
NAME = "adamw_schedule_free"


# -- warm-ups ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lr_scheduler_type": "constant"}, []),
        ({"lr_scheduler_type": "constant", "optim_args": "warmup_steps=2"}, []),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2}, []),
        (
            {"lr_scheduler_type": "constant", "warmup_steps": 8},
            ["warmup_steps=8 does nothing: the schedule 'constant' has no warm-up; the optimizer's own is "
             'optim_args="warmup_steps=8" or OptimizerCallback(..., warmup_steps=8)'],
        ),
        (
            {"lr_scheduler_type": "hfoptim_constant", "warmup_steps": 8},
            ["warmup_steps=8 does nothing: the schedule 'hfoptim_constant'"],
        ),
        (
            {"lr_scheduler_type": "linear", "warmup_steps": 8},
            ["which 'linear' is not; use 'constant'. A warm-up is then an option of the optimizer, "
             'optim_args="warmup_steps=8"'],
        ),
        (
            {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2, "optim_args": "warmup_steps=3"},
            ["two warm-ups multiply, warmup_steps=2 of the schedule and the optimizer's own warmup_steps=3"],
        ),
        (
            {"lr_scheduler_type": "linear", "warmup_steps": 2, "optim_args": "warmup_steps=3"},
            ["constant learning rate", "two warm-ups multiply"],
        ),
        (
            {"optim": "radam_schedule_free", "lr_scheduler_type": "linear"},
            ["which 'linear' is not; use 'constant'. It needs no warm-up; warmup_steps of the TrainingArguments"],
        ),
        ({"optim": "lion", "lr_scheduler_type": "linear", "warmup_steps": 8}, []),
        (
            {"optim": "schedule_free_lion", "lr_scheduler_type": "linear", "warmup_steps": 8},
            ["ScheduleFree takes the place of a schedule and wants a constant learning rate, which 'linear' is not"],
        ),
        ({"optim": "schedule_free_lion", "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 8}, []),
        (
            {"optim": "lion", "lr_scheduler_type": "constant", "warmup_steps": 8},
            ["warmup_steps=8 does nothing: the schedule 'constant' has no warm-up; use 'constant_with_warmup'"],
        ),
        (
            {"optim": "lion", "lr_scheduler_type": "hfoptim_plateau", "warmup_steps": 8, "eval_strategy": "epoch"},
            ["warmup_steps=8 does nothing: the schedule 'hfoptim_plateau' has no warm-up; leave it out"],
        ),
    ],
    ids=str,
)  # fmt: skip
def test_warm_ups(names, make_trainer, messages, given, words):
    trainer = make_trainer(**{"optim": NAME, "learning_rate": 1e-3, "max_steps": 1, **given})
    for _ in range(2):
        trainer.create_optimizer_and_scheduler(10)
        trainer.optimizer = trainer.lr_scheduler = None
    found = messages()
    assert len(found) == len(words), found
    for message, part in zip(found, words, strict=True):
        assert part in message


def test_warm_ups_with_the_callback(make_trainer, messages):
    callback = OptimizerCallback("lion", lr=1e-3, schedule="constant", schedule_kwargs={"num_warmup_steps": 5})
    make_trainer(callback).create_optimizer_and_scheduler(10)
    callback = OptimizerCallback("lion", lr=1e-3, schedule="linear", schedule_kwargs={"num_warmup_steps": 5})
    make_trainer(callback).create_optimizer_and_scheduler(10)
    callback = OptimizerCallback(NAME, lr=1e-3, schedule="constant_with_warmup", warmup_steps=3)
    make_trainer(callback, warmup_steps=4).create_optimizer_and_scheduler(10)
    one, two = messages()
    assert one.startswith("num_warmup_steps=5 does nothing: the schedule 'constant'")
    assert two.startswith("two warm-ups multiply, warmup_steps=4")


@pytest.mark.skipif(NEW, reason="transformers 5 has shares in warmup_steps")
def test_a_share_as_it_was_given(names, make_trainer, messages):
    trainer = make_trainer(optim="lion", learning_rate=1e-3, lr_scheduler_type="constant", warmup_ratio=0.25)
    trainer.create_optimizer_and_scheduler(10)
    assert messages()[0].startswith("warmup_ratio=0.25 does nothing")


# -- learning rates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("sgd", {"lr": 5e-5}, "lr=5e-05 is 600 times smaller than 0.03, which is what sgd is trained with (ViT"),
        ("sgd", {"lr": 5e-2}, None),
        ("lion", {"lr": 1e-2}, "from 2e-06 to 0.001: see `hfoptim info lion`"),
        ("lion", {"lr": 1e-4}, None),
        ("muon", {"lr": 1e-4, "adjust_lr_fn": "original"}, "200 times smaller than 0.02, which is what muon"),
        ("muon", {"lr": 1e-4}, None),
        ("soap", {}, None),
        ("adamw", {"lr": 1e-5, "param_options": {"*.mlp.*": {"optimizer": "sgd"}}}, None),
    ],
)
def test_rates_far_from_all_that_is_known(make_trainer, messages, name, options, words):
    trainer = make_trainer(OptimizerCallback(name, weight_decay=0.1, **options))
    for _ in range(2):
        trainer.create_optimizer()
        trainer.optimizer = None
    said = [message for message in messages() if "is trained with" in message]
    assert len(said) == (words is not None)
    assert words is None or words in said[0]


def test_rates_of_the_arguments(names, make_trainer, messages):
    make_trainer(optim="hfoptim_sgd", learning_rate=1e-4).create_optimizer()
    assert "lr=0.0001 is 300 times smaller than 0.03" in messages()[0]


@pytest.mark.parametrize("way", ["callback", "optim_args"])
def test_the_recommended_rate_and_whose_it_is(names, make_trainer, messages, way):
    if way == "callback":
        trainer = make_trainer(OptimizerCallback("lion", lr="recommended", task="pretrain", schedule="cosine"))
    else:
        trainer = make_trainer(optim="lion", optim_args="lr=recommended,task=pretrain", learning_rate=3e-4)
    trainer.create_optimizer_and_scheduler(10)
    assert {group["initial_lr"] for group in trainer.optimizer.param_groups} == {2e-4}
    (message,) = messages()
    assert message.startswith("lion takes the recommended lr=0.0002 for task='pretrain': lr 0.0002, from 0.0002")
    assert "https://github.com/epfml/llm-optimizer-benchmark" in message
    with pytest.raises(ValueError, match="no source is known for soap and task='finetune'"):
        OptimizerCallback("soap", lr="recommended")


# -- losses that nobody divides ---------------------------------------------------------------------------------------


class OwnLoss(Trainer):
    """A loss that takes no notice of the number it is given, as many trainers have."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]


class OwnMean(OwnLoss):
    """The same, and says so (transformers 5)."""

    loss_is_scaled_for_ga = False


def train(make_trainer, model, *callbacks, trainer_class=Trainer, **given):
    own = {"model": make_model(model), "train_dataset": make_data(Case(model))}
    given = {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2, "max_steps": 2, **given}
    trainer = make_trainer(*callbacks, trainer_class=trainer_class, own=own, **given)
    trainer.train()
    return trainer


UNTRAINED = torch.tensor(float(VOCABULARY)).log().item()  # a loss of about this, and some more of T5's
CASES = {  # what a Trainer does, and whether its loss is 4 times too large
    "t5": ({"model": "t5"}, NEW),  # T5's forward takes **kwargs in transformers 5 only
    "one micro-batch": ({"model": "t5", "gradient_accumulation_steps": 1}, False),
    "reads the number": ({"model": "llama"}, False),
    "no **kwargs": ({"model": "plain"}, False),
    "token weights": ({"model": "t5", "weights": True}, False),
    "transformers' optimizer": ({"model": "t5", "theirs": True}, False),
    "a loss of its own": ({"model": "llama", "trainer_class": OwnLoss}, True),
    "a loss of its own, told": ({"model": "llama", "trainer_class": OwnMean}, not NEW),
    "label smoothing": ({"model": "llama", "label_smoothing_factor": 0.1}, not NEW),
}


@pytest.mark.parametrize("case", CASES)
def test_a_loss_that_nobody_divides_is_said_once(make_trainer, messages, case):
    given, wrong = CASES[case]
    given = dict(given)
    callbacks = [OptimizerCallback("lion", lr=1e-4, schedule="constant")] * (not given.pop("theirs", False))
    callbacks += [TokenWeights()] * given.pop("weights", False)
    trainer = train(make_trainer, given.pop("model"), *callbacks, **given)
    found = [message for message in messages() if "num_items_in_batch" in message]
    assert len(found) == wrong, messages()
    if found:
        assert "4 times too large" in found[0]
        assert "4 micro-batches in a step, on 1 process(es)" in found[0]
        assert f"the loss of {type(trainer.model).__name__} makes no use" in found[0]
        assert trainer.state.log_history[0]["loss"] > 3 * UNTRAINED
    elif not case.startswith("transformers"):
        assert trainer.state.log_history[0]["loss"] < 2 * UNTRAINED


def test_watching_changes_no_bit(make_trainer, monkeypatch):
    losses = []
    for watched in (True, False):
        with monkeypatch.context() as patch:
            if not watched:
                patch.setattr(advice, "attend", lambda *args: None)
            trainer = train(make_trainer, "llama", OptimizerCallback("lion", lr=1e-3), logging_steps=1)
        losses.append([entry.get("loss") for entry in trainer.state.log_history])
        losses[-1] += [param.sum().item() for param in trainer.model.parameters()]
    assert losses[0] == losses[1]


def test_a_witness_notes_every_use():
    def witness():
        made = torch.tensor(3).as_subclass(advice._Witness)
        made.used = False
        return made

    for use in (lambda n: torch.ones(2) / n, lambda n: n.item(), float, lambda n: n.to("cpu"), lambda n: 2 * n):
        made = witness()
        use(made)
        assert made.used
    made = witness()
    {"n": made}.get("n")
    assert made is not None
    assert torch.is_tensor(made)
    assert not made.used
    assert type(torch.ones(2) / witness()) is torch.Tensor
