"""Optimizers that need a second gradient, in a Trainer: each next to a plain loop over the same batches."""

from __future__ import annotations

import contextlib
import json
import types
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from ranks import run_ranks
from resuming import same_end
from second_pass_worker import CASES, measure
from test_resume_over_all_names import resumes_exactly, train  # noqa: F401
from transformers import Trainer, TrainerCallback, TrainingArguments

import hfoptim
from hfoptim.engine import unwrap
from hfoptim.trainer import OptimizerCallback, SecondPass, second_pass

# By its name in this transformers.
CHECKPOINTING = (
    "activation_checkpointing" if hasattr(TrainingArguments, "activation_checkpointing") else "gradient_checkpointing"
)


def check(name, found):
    """Rounding alone: of bfloat16 where the batches were cut in other ways, of logits in float32 for SophiaG."""
    allowed = 0.05 if CASES[name].autocast else 1e-5 if CASES[name].name == "sophiag" else 1e-9
    assert found["moved"] > 5e-3
    assert found["difference"] < allowed * max(1.0, found["moved"])


@pytest.mark.parametrize("name", CASES)
def test_the_weights_are_those_of_a_plain_loop(name, tmp_path):
    found = measure(CASES[name], str(tmp_path))
    check(name, found)
    assert found["losses"] < (5e-3 if CASES[name].autocast else 1e-4)  # 4.57 rounds what it logs


ON_TWO = {
    "ddp": ("sam_sgd", "bsam clipped", "svrg_sgd clipped", "adahessian", "lbfgs search", "sophiag"),
    "fsdp2": ("sam_sgd", "sam_adamw clipped", "bsam", "looksam_sgd clipped", "svrg_sgd clipped"),
}


@pytest.mark.parametrize("kind", ON_TWO)
def test_on_two_processes(kind, tmp_path):
    worker, names = Path(__file__).with_name("second_pass_worker.py"), ON_TWO[kind]
    run_ranks(worker, kind, str(tmp_path), *names, ranks=2, output=tmp_path, timeout=300)
    ranks = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("rank-*.json"))]
    assert len(ranks) == 2
    for name in names:
        one, other = (rank[name] for rank in ranks)
        assert one["weights"] == other["weights"], name
        check(name, one)


@pytest.mark.parametrize(
    "name",
    [
        "sam_adamw",
        "looksam_adamw",
        "friendlysam_adamw",
        "svrg_adamw",
        "adahessian",
        "lbfgs",
        "sophiag",
        "lookahead_sophiah",
        "ema_mars",
        "bsam",
        "ema_bsam",
    ],
)
def test_a_resumed_training_is_the_same(resumes_exactly, name):  # noqa: F811
    # With dropout, accumulation, and a break between two estimates of the Hessian.
    options = {"sam_adamw": {"rho": 0.5}, "lbfgs": {"max_iter": 2}, "sophiag": {"update_period": 3}}
    options["ema_mars"] = {"is_approx": False, "gamma": 0.5}
    options["looksam_adamw"] = {"looksam_k": 3}
    options["lookahead_sophiah"] = {"update_period": 3, "lookahead_k": 3}
    clip = {"max_grad_norm": 0.0} if name == "lbfgs" else {}
    resumes_exactly(name, options.get(name), learning_rate=1e-2, by_callback=(name in ("sam_adamw", "bsam"),), **clip)


@pytest.mark.parametrize("every", [None, 4, 5])
def test_a_training_with_svrg_resumed_between_and_at_snapshots(train, every):  # noqa: F811
    # The checkpoint is of step 4, and an epoch has 3.
    ends = []
    for resume in (False, True):
        callbacks = [SecondPass(snapshot_every=every)]
        ends.append(train("svrg_sgd", {"svrg_snapshots": 3}, resume=resume, callback=True, callbacks=callbacks))
    same_end(*ends)
    taken = {group["svrg_taken"] for group in unwrap(ends[0].optimizer).param_groups}
    assert taken == {{None: 3, 4: 2, 5: 2}[every]}


def test_svrgs_pass_over_all_data_leaves_the_others_data_and_random_numbers(make_trainer):
    # A coefficient of 0: snapshots are taken, and gradients are as they are.
    ends = []
    for name in ("svrg_sgd", "sgd"):
        options = {"svrg_coefficient": 0.0} if name == "svrg_sgd" else {}
        given = {"gradient_accumulation_steps": 2, "max_steps": 5}
        trainer = make_trainer(OptimizerCallback(name, lr=1e-2, **options), **given)
        trainer.train()
        assert len(trainer.accelerator._dataloaders) == 1
        ends.append((trainer.model.state_dict(), [e["loss"] for e in trainer.state.log_history if "loss" in e]))
    assert ends[0][1] == ends[1][1]
    assert all(map(torch.equal, ends[0][0].values(), ends[1][0].values()))


def test_with_svrg_the_inner_optimizer_is_told_the_first_loss(make_trainer, monkeypatch):
    told = []
    add_loss = hfoptim.AliG.add_loss
    monkeypatch.setattr(hfoptim.AliG, "add_loss", lambda self, loss: (told.append(float(loss)), add_loss(self, loss)))
    trainer = make_trainer(OptimizerCallback("svrg_alig"), max_steps=3, gradient_accumulation_steps=2)
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert [one + two for one, two in zip(told[::2], told[1::2], strict=True)] == pytest.approx(logged, abs=1e-3)


class Masks(TrainerCallback):
    """Notes which entries dropout leaves out."""

    def __init__(self):
        self.seen = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        model.transformer.drop.register_forward_hook(lambda *_, **__: self.seen.append(_[2].ne(0)))


@pytest.mark.parametrize("name", ["sam_sgd", "lbfgs"])
def test_dropout_is_the_same_in_both_passes(make_trainer, name):
    masks, given = Masks(), {"max_grad_norm": 0.0, "gradient_accumulation_steps": 2, "learning_rate": 1e-3}
    options = {"max_iter": 2} if name == "lbfgs" else {}
    make_trainer(OptimizerCallback(name, **options), masks, max_steps=2, **given).train()
    assert len(masks.seen) == 8
    for first in (0, 4):
        one, two, one_again, two_again = masks.seen[first : first + 4]
        assert torch.equal(one, one_again)
        assert torch.equal(two, two_again)
        assert not torch.equal(one, two)


def test_other_random_numbers_are_as_without_a_second_pass(make_trainer):
    # rho = 0: the second gradient is the first one.
    ends = []
    for name in ("sam_sgd", "sgd"):
        options = {"rho": 0.0} if name == "sam_sgd" else {}
        trainer = make_trainer(OptimizerCallback(name, lr=1e-2, **options), gradient_accumulation_steps=2, max_steps=5)
        trainer.train()
        ends.append((trainer.model.state_dict(), [e["loss"] for e in trainer.state.log_history if "loss" in e]))
    assert ends[0][1] == ends[1][1]
    assert all(map(torch.equal, ends[0][0].values(), ends[1][0].values()))


def test_an_optimizer_made_by_hand(make_trainer, model):
    ends = []
    for by_hand in (True, False):
        own, given = model(), {"learning_rate": 1e-1}
        if by_hand:
            optimizer = hfoptim.SAM(own.parameters(), torch.optim.SGD, lr=1e-1, momentum=0.9, nesterov=True)
            trainer = make_trainer(SecondPass(), own={"model": own, "optimizers": (optimizer, None)}, **given)
        else:
            trainer = make_trainer(OptimizerCallback("sam_sgd"), own={"model": own}, **given)
        trainer.train()
        ends.append(own.state_dict())
    for one, other in zip(*(end.values() for end in ends), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_closure_of_ones_own_is_left_alone(make_trainer):
    calls = []

    class Own(Trainer):
        def create_optimizer(self, *args, **kwargs):
            optimizer = super().create_optimizer(*args, **kwargs)
            step = optimizer.step

            def closure():
                calls.append(self.state.global_step)
                loss = self.model(**self.data_collator([self.train_dataset[0]])).loss
                loss.backward()
                return loss

            optimizer.step = types.MethodType(lambda *_: step(closure), optimizer)
            return optimizer

    make_trainer(OptimizerCallback("sam_sgd", lr=1e-2), trainer_class=Own, max_steps=2).train()
    assert calls == [0, 1]


@pytest.mark.parametrize("name", ["sam_sgd", "sophiag"])
def test_nothing_is_left_on_the_optimizer_after_the_training(make_trainer, name):
    trainer = make_trainer(OptimizerCallback(name, lr=1e-3), max_steps=1)
    trainer.train()
    inner = trainer.optimizer.optimizer
    assert not inner._optimizer_step_pre_hooks
    assert not inner._optimizer_step_post_hooks


# -- what it cannot be combined with ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("sam_adamw", {"fp16": True}, r"fp16=True scales the loss .* SAMAdam needs two gradients .* give bf16=True"),
        ("sophiag", {"fp16": True}, r"fp16=True scales the loss .* SophiaG"),
        ("lbfgs", {}, r"max_grad_norm=1.0 shortens gradients.* LBFGS .*give max_grad_norm=0"),
        ("adahessian", {"torch_compile": True}, r"torch_compile=True makes .* Adahessian"),
        ("sam_adamw", {"deepspeed": "ds.json"}, r"DeepSpeed takes its steps with one gradient, and SAMAdam needs two"),
        ("svrg_sgd", {"fp16": True}, r"fp16=True scales the loss .* SVRGSGD"),
    ],
)
def test_arguments_that_exclude_it_are_refused_before_the_training(names, arguments, model, text, name, given, words):
    args = arguments()
    for key, value in given.items():  # transformers itself refuses some of them on this machine
        setattr(args, key, value)
    with pytest.raises(ValueError, match=words):
        Trainer(model(), args, train_dataset=text, callbacks=[OptimizerCallback(name)])
    if name == "lbfgs":
        with pytest.raises(ValueError, match=words):
            arguments(optim="hfoptim_lbfgs")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("adahessian", "flash", r"attn_implementation='flash_attention_2' cannot be differentiated twice"),
        ("adahessian", "reentrant", r"reentrant gradient checkpointing .*use_reentrant': False"),
        ("sam_sgd", "parallelism", r"SAMSGD works with data parallelism only"),
        ("sam_sgd", "fsdp", r"FSDP of version 1 cuts parameters in a way that SAMSGD does not take"),
        ("adahessian", "fsdp", r"FSDP cuts parameters in a way that Adahessian does not take"),
    ],
)
def test_models_that_exclude_it_are_refused_when_the_training_starts(make_trainer, name, change, words):
    trainer = make_trainer(OptimizerCallback(name, lr=1e-3))
    if change == "flash":
        trainer.model.config._attn_implementation_internal = "flash_attention_2"
    elif change == "reentrant":
        setattr(trainer.args, CHECKPOINTING, True)
        setattr(trainer.args, f"{CHECKPOINTING}_kwargs", {"use_reentrant": True})
    elif change == "parallelism":
        trainer.accelerator = types.SimpleNamespace(scaler=None, parallelism_config=object())
    else:
        trainer.is_fsdp_enabled = True
    trainer.create_optimizer_and_scheduler(4)
    with pytest.raises(ValueError, match=words):
        second_pass._refuse(trainer, second_pass._needs(trainer.optimizer))


def test_svrg_needs_data_with_a_length(make_trainer, text):
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(list(text) * 9)

    trainer = make_trainer(OptimizerCallback("svrg_sgd", lr=1e-3), own={"train_dataset": Endless()}, max_steps=2)
    with pytest.raises(ValueError, match=r"SVRG takes the gradient of all batches .* has no length"):
        trainer.train()


def test_snapshots_are_of_svrg_alone(make_trainer):
    with pytest.raises(ValueError, match=r"snapshot_every=0"):
        SecondPass(snapshot_every=0)
    with pytest.raises(ValueError, match=r"snapshot_every=3 is about SVRG's snapshots"):
        make_trainer(OptimizerCallback("sam_sgd", lr=1e-3), SecondPass(snapshot_every=3)).train()


def test_labels_that_are_no_classes_are_refused_for_sophiag(make_trainer):
    class Regression(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(1, 1)

        def forward(self, x, labels):
            return {"loss": (self.linear(x) - labels).square().mean(), "logits": self.linear(x)}

    data = [{"x": torch.ones(1), "labels": torch.ones(1)}] * 8
    own = {"model": Regression(), "train_dataset": data}
    trainer = make_trainer(OptimizerCallback("sophiag", lr=1e-3, update_period=1), own=own)
    with pytest.raises(ValueError, match="SophiaG draws labels from a model's predicted classes"):
        trainer.train()


def test_gradient_checkpointing_that_is_not_reentrant_gives_a_graph(make_trainer):
    ends = []
    for checkpointing in (True, False):
        given = {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": False}}
        trainer = make_trainer(OptimizerCallback("adahessian", lr=1e-2), **(given if checkpointing else {}))
        trainer.train()
        ends.append(trainer.model.state_dict())
    for one, other in zip(*(end.values() for end in ends), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_graph_is_freed_after_each_micro_batch(make_trainer):
    trainer = make_trainer(OptimizerCallback("adahessian", lr=1e-2), gradient_accumulation_steps=2, max_steps=2)

    class Looking(TrainerCallback):
        def __init__(self):
            self.graphs = []

        def on_substep_end(self, args, state, control, model=None, **kwargs):
            self.graphs += [param.grad.requires_grad for param in model.parameters()]

    looking = Looking()
    trainer.add_callback(looking)
    trainer.train()
    assert looking.graphs
    assert not any(looking.graphs)


def test_in_accelerate_svrg_takes_its_snapshots_from_the_prepared_dataloader():
    """The recipe of docs/wrappers.md with two micro-batches a step, next to a plain loop over the steps' batches."""
    ends = []
    data = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for parts in (2, 1):
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 2).double()
        optimizer = hfoptim.SVRG(hfoptim.AdamW(net.parameters(), lr=1e-2), snapshots=3)
        loader = torch.utils.data.DataLoader(data, batch_size=4 // parts)
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=parts)
        if parts > 1:
            net, optimizer, loader = accelerator.prepare(net, optimizer, loader)

        def backward(batch, share, net=net, accelerator=accelerator, plain=parts == 1):
            loss = net(batch).square().mean() * share
            loss.backward() if plain else accelerator.backward(loss * accelerator.gradient_accumulation_steps)
            return loss.detach()

        for _ in range(3):
            svrg = unwrap(optimizer, hfoptim.SVRG)
            svrg.snapshot(lambda loader=loader, backward=backward: [backward(each, 1 / len(loader)) for each in loader])
            batches = list(loader)
            for start in range(0, len(batches), parts):

                def closure(own=batches[start : start + parts], svrg=svrg, backward=backward, parts=parts):
                    svrg.zero_grad()
                    return sum(backward(each, 1 / parts) for each in own)

                optimizer.step(closure)
                optimizer.zero_grad()
        ends.append([param.detach() for param in net.parameters()])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_in_accelerate_the_closure_goes_through_all_micro_batches():
    """The recipe of docs/wrappers.md, next to one big batch."""
    ends = []
    data = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for parts in (4, 1):
        torch.manual_seed(0)
        accelerator = Accelerator(cpu=True)
        net = torch.nn.Linear(3, 2).double()
        net, optimizer = accelerator.prepare(net, hfoptim.SAM(net.parameters(), "adamw", lr=1e-2, rho=0.1))
        for _ in range(3):
            batches = data.chunk(parts)

            def closure(net=net, optimizer=optimizer, batches=batches, accelerator=accelerator):
                optimizer.zero_grad()
                total = 0.0
                for number, batch in enumerate(batches, 1):
                    last = number == len(batches)
                    with contextlib.nullcontext() if last else accelerator.no_sync(net):
                        loss = net(batch).square().mean() / len(batches)
                        accelerator.backward(loss)
                    total += loss.detach()
                accelerator.clip_grad_norm_(net.parameters(), 0.1)
                return total

            optimizer.step(closure)
            optimizer.zero_grad()
        ends.append([param.detach() for param in net.parameters()])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
