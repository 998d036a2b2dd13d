"""Subclasses of Trainer that have a part in making the optimizer: what is chosen by name is made with them."""

import copy
import pickle
import threading

import pytest
import torch
from accelerate.state import GradientState
from tiers import names_by_kind
from torch import nn
from transformers import Trainer

import hfoptim
from hfoptim.optimizers.shared.adapters import Adapters
from hfoptim.trainer import OptimizerCallback, disable, enable
from hfoptim.trainer.options import parse_options


class Judging(Trainer):
    """Has a judge with weights beside the model; parameters whose names have one of `rates` learn at that rate."""

    rates: dict[str, float] = {}

    def __init__(self, *args, **kwargs):
        self.judge = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 1))
        super().__init__(*args, **kwargs)

    def get_optimizer_cls_and_kwargs(self, args, model=None):
        everything = nn.ModuleDict({"network": model, "judge": self.judge})
        cls, kwargs = super().get_optimizer_cls_and_kwargs(args, everything)
        decayed = self.get_decay_parameter_names(everything)
        if "params" not in kwargs:
            trained = {name: param for name, param in everything.named_parameters() if param.requires_grad}
            kwargs["params"] = [
                {"params": [p for n, p in trained.items() if n in decayed], "weight_decay": args.weight_decay},
                {"params": [p for n, p in trained.items() if n not in decayed], "weight_decay": 0.0},
            ]
        for word, lr in self.rates.items():
            chosen = {name: param for name, param in everything.named_parameters() if word in name}
            for group in kwargs["params"]:
                group["params"] = [p for p in group["params"] if all(p is not other for other in chosen.values())]
            for is_decayed, decay in ((True, args.weight_decay), (False, 0.0)):
                params = [param for name, param in chosen.items() if (name in decayed) is is_decayed]
                kwargs["params"].append({"params": params, "lr": lr, "weight_decay": decay})
        return cls, kwargs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs, output_hidden_states=True)
        loss = outputs.loss + self.judge(outputs.hidden_states[-1]).square().mean()
        return (loss, outputs) if return_outputs else loss


class Quick(Judging):
    rates = {"judge": 0.5, "wpe": 0.25}


class Wrapping(Trainer):
    """Makes its schedule with `super()`, for three times the steps."""

    def create_scheduler(self, num_training_steps, optimizer=None):
        self.asked = num_training_steps
        return super().create_scheduler(3 * num_training_steps, optimizer)


@pytest.fixture(params=["callback", "name"])
def chosen(request, make_trainer, names):
    """Makes a trainer of a class whose optimizer is chosen through the callback or through TrainingArguments.optim."""

    def make(trainer_class, name, optim_args=None, **given):
        if request.param == "callback":
            return make_trainer(
                OptimizerCallback(name, **parse_options(optim_args)), trainer_class=trainer_class, **given
            )
        return make_trainer(optim=f"hfoptim_{name}", optim_args=optim_args, trainer_class=trainer_class, **given)

    return make


def by_name(optimizer, key):
    return {name: group[key] for group in optimizer.param_groups for name in group["param_names"]}


@pytest.mark.parametrize("name", ["lion", "adafactor", "muon", "adam_weight_decay", "adamw_schedule_free"])
def test_parameters_that_a_subclass_adds_are_trained(chosen, inner, messages, name):
    trainer = chosen(Judging, name, learning_rate=1e-3, lr_scheduler_type="constant", weight_decay=0.1, max_steps=2)
    before = copy.deepcopy(trainer.judge.state_dict())
    trainer.train()
    moved = {key for key, value in trainer.judge.state_dict().items() if not torch.equal(before[key], value)}
    assert moved == set(before)
    assert {f"judge.{key}" for key in before} <= by_name(inner(trainer), "lr").keys()
    assert messages() == []


INFOS = [hfoptim.get_optimizer_info(name) for name in hfoptim.list_optimizers()]


# The groups are the Trainer's: one optimizer of each kind.
@pytest.mark.parametrize(
    "name",
    names_by_kind(
        [
            info.name
            for info in INFOS
            if info.needs is None and info.name != "adam_mini" and not issubclass(info.opt_class, Adapters)
        ]
    ),
)
def test_groups_that_a_subclass_makes_keep_their_learning_rate_and_get_names(make_trainer, inner, name):
    trainer = make_trainer(OptimizerCallback(name, lr=1e-2), trainer_class=Quick, weight_decay=0.1)
    trainer.create_optimizer()
    everything = nn.ModuleDict({"network": trainer.model, "judge": trainer.judge})
    held = {n: p for g in inner(trainer).param_groups for n, p in zip(g["param_names"], g["params"], strict=True)}
    assert {n: id(p) for n, p in held.items()} == {n: id(p) for n, p in everything.named_parameters()}
    rate = {n: 0.5 if "judge" in n else 0.25 if "wpe" in n else 1e-2 for n in held}
    assert by_name(inner(trainer), "lr") == rate
    decay = by_name(inner(trainer), "weight_decay")
    assert decay["network.transformer.h.0.mlp.c_fc.weight"] == 0.1
    assert decay["network.transformer.ln_f.weight"] == 0.0


def test_hidden_matrices_in_groups_of_a_subclass_are_muons(chosen, inner):
    class Attention(Judging):
        rates = {"attn": 0.5, "wte": 0.25, "judge.0": 0.125}

    trainer = chosen(Attention, "muon", learning_rate=1e-2)
    trainer.train()
    muon = by_name(inner(trainer), "use_muon")
    inside = {n for n, each in muon.items() if each}
    blocks = {f"network.transformer.h.0.{part}.weight" for part in ("attn.c_attn", "attn.c_proj")}
    assert inside == blocks | {f"network.transformer.h.0.mlp.{part}.weight" for part in ("c_fc", "c_proj")} | {
        "judge.0.weight"
    }
    assert {group["initial_lr"] for group in inner(trainer).param_groups} == {0.5, 0.25, 0.125, 1e-2}


def test_several_optimizers_and_a_subclass_with_groups(chosen, inner):
    options = '{"param_options": {"*attn*weight": {"optimizer": "lion", "lr": 1e-4, "betas": [0.5, 0.9]}}}'

    class Attention(Judging):
        rates = {"attn": 0.5}

    trainer = chosen(Attention, "adamw", options, learning_rate=1e-2)
    trainer.train()
    adamw, lion = inner(trainer).optimizers
    assert (type(adamw), type(lion)) == (hfoptim.Adam, hfoptim.Lion)
    assert {n.split(".")[-2] for g in lion.param_groups for n in g["param_names"]} == {"c_attn", "c_proj"}
    assert {(g["initial_lr"], g["betas"]) for g in lion.param_groups if g["params"]} == {(0.5, (0.5, 0.9))}
    biases = [g for g in adamw.param_groups if any("attn" in n for n in g["param_names"])]
    assert {g["initial_lr"] for g in biases} == {0.5}


def test_a_group_with_another_weight_decay_than_the_optimizers_is_named(make_trainer, messages):
    trainer = make_trainer(OptimizerCallback("lion", lr=1e-3, weight_decay=0.3), trainer_class=Quick)
    trainer.create_optimizer()
    (message,) = messages()
    assert "weight_decay=0, which is the TrainingArguments': 3 parameters (judge.0.weight, " in message
    assert "lion has 0.3; to have that everywhere, give weight_decay=0.3" in message


def test_layer_decay_with_a_subclass_that_has_groups(make_trainer, inner):
    class Positions(Judging):
        rates = {"wpe": 0.3}

    trainer = make_trainer(OptimizerCallback("adamw", lr=1.0, layer_decay=0.5), trainer_class=Positions)
    trainer.create_optimizer()
    rates = by_name(inner(trainer), "lr")
    assert rates["network.transformer.wpe.weight"] == 0.3
    assert rates["network.transformer.h.0.attn.c_attn.weight"] > rates["network.transformer.wte.weight"]
    assert all("lr_scale" not in group for group in inner(trainer).param_groups if group["lr"] == 0.3)


def test_a_subclass_that_makes_groups_by_itself(chosen, inner):
    """As LLaVA's trainer does: it asks Trainer for the class, and gives it groups of its own."""

    class ByItself(Trainer):
        def create_optimizer(self, model=None):
            cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(self.args)
            params = [p for p in self.model.parameters() if p.requires_grad]
            halves = [{"params": params[:5], "lr": 0.5}, {"params": params[5:]}]
            self.optimizer = cls(halves, **kwargs)
            return self.optimizer

    for name in ("lion", "muon"):
        trainer = chosen(ByItself, name, learning_rate=1e-2)
        trainer.train()
        found = inner(trainer)
        assert type(found) is {"lion": hfoptim.Lion, "muon": hfoptim.Muon}[name]
        assert by_name(found, "lr").keys() == {n for n, _ in trainer.model.named_parameters()}
        assert {g["initial_lr"] for g in found.param_groups} == {0.5, 1e-2}
    muon = by_name(found, "use_muon")
    assert not muon["transformer.wte.weight"]
    assert muon["transformer.h.0.mlp.c_fc.weight"]


def test_overrides_of_overrides(make_trainer, inner):
    seen = []

    class Outer(Quick):
        def get_optimizer_cls_and_kwargs(self, args, model=None):
            cls, kwargs = super().get_optimizer_cls_and_kwargs(args, model)
            seen.append(cls)
            return cls, {**kwargs, "betas": (0.5, 0.6)}

    trainer = make_trainer(OptimizerCallback("lion", lr=1e-2), trainer_class=Outer)
    trainer.train()
    assert issubclass(seen[0], hfoptim.Lion)
    assert type(inner(trainer)) is hfoptim.Lion
    assert {group["betas"] for group in inner(trainer).param_groups} == {(0.5, 0.6)}


def test_a_subclass_that_ignores_what_is_chosen_is_told(make_trainer):
    class Stubborn(Trainer):
        def get_optimizer_cls_and_kwargs(self, args, model=None):
            return torch.optim.SGD, {"lr": 1e-3}

    trainer = make_trainer(OptimizerCallback("lion", lr=1e-3), trainer_class=Stubborn)
    with pytest.raises(RuntimeError, match=r"chose Lion, but the training starts with SGD: .*get_optimizer_cls_and"):
        trainer.train()


# -- schedules --------------------------------------------------------------------------------------------------------


def test_a_subclass_of_the_schedule_is_asked(make_trainer, watcher):
    callback = OptimizerCallback("sgd", lr=1.0, schedule="linear")
    trainer = make_trainer(callback, watcher, trainer_class=Wrapping, max_steps=2)
    trainer.train()
    assert trainer.asked == 2
    assert watcher.logged == pytest.approx([1.0, 5 / 6])
    watcher.logged.clear()
    trainer = make_trainer(OptimizerCallback("sgd", lr=1.0), watcher, trainer_class=Wrapping, max_steps=2)
    trainer.train()
    assert watcher.logged == pytest.approx([1.0, 5 / 6])


class ItsOwn(Trainer):
    """Makes its schedule without `super()`."""

    def create_scheduler(self, num_training_steps, optimizer=None):
        self.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(self.optimizer, 0.5, 100)
        return self.lr_scheduler


def test_a_subclass_with_a_schedule_of_its_own_is_heard_and_told(make_trainer, watcher):
    make_trainer(OptimizerCallback("sgd", lr=1.0), watcher, trainer_class=ItsOwn, max_steps=2).train()
    assert watcher.logged == [0.5, 0.5]
    trainer = make_trainer(OptimizerCallback("sgd", lr=1.0, schedule="cosine"), trainer_class=ItsOwn)
    with pytest.raises(RuntimeError, match=r"schedule='cosine', but .* ConstantLR: ItsOwn\.create_scheduler"):
        trainer.train()


def test_a_schedule_of_its_own_does_not_hide_what_an_optimizer_asks_for(chosen, tmp_path):
    trainer = chosen(ItsOwn, "adamw_schedule_free", learning_rate=1e-2, save_strategy="steps", save_steps=2)
    trainer.train()
    saved = torch.load(tmp_path / "out" / "checkpoint-2" / "optimizer.pt", weights_only=True)
    assert not any(group["train_mode"] for group in saved["param_groups"])


# -- several trainers, copies, threads --------------------------------------------------------------------------------


def test_other_trainers_of_the_class_are_left_alone(make_trainer, inner):
    one = make_trainer(OptimizerCallback("lion", lr=1e-2), trainer_class=Quick)
    other = make_trainer(trainer_class=Quick)
    third = make_trainer(OptimizerCallback("sgd", lr=1e-2), trainer_class=Quick)
    for trainer in (one, other, third):
        trainer.train()
    assert [type(inner(trainer)) for trainer in (one, other, third)] == [hfoptim.Lion, torch.optim.AdamW, hfoptim.SGD]
    assert "param_names" not in inner(other).param_groups[0]


def test_a_trainer_inside_of_another_one(make_trainer, inner):
    class Outer(Trainer):
        def get_optimizer_cls_and_kwargs(self, args, model=None):
            self.teacher = make_trainer(OptimizerCallback("sgd", lr=1e-2))
            self.teacher.create_optimizer()
            self.plain = make_trainer()
            self.plain.create_optimizer()
            return super().get_optimizer_cls_and_kwargs(args, model)

    trainer = make_trainer(OptimizerCallback("lion", lr=1e-2), trainer_class=Outer)
    trainer.create_optimizer()
    assert type(inner(trainer)) is hfoptim.Lion
    assert type(inner(trainer.teacher)) is hfoptim.SGD
    assert type(inner(trainer.plain)) is torch.optim.AdamW


def test_trainers_in_threads(make_trainer, inner):
    names = ["lion", "adam", None, "adan", "prodigy", None]
    trainers = [make_trainer(*([OptimizerCallback(n, lr=1e-2)] if n else []), trainer_class=Quick) for n in names]
    start = threading.Barrier(len(trainers))

    def create(trainer):
        start.wait()
        for _ in range(20):
            trainer.optimizer = None
            trainer.create_optimizer()

    threads = [threading.Thread(target=create, args=(trainer,)) for trainer in trainers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = [hfoptim.get_optimizer_info(name).opt_class if name else torch.optim.AdamW for name in names]
    assert [type(inner(trainer)) for trainer in trainers] == wanted


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda trainer: pickle.loads(pickle.dumps(trainer))])
def test_copies_of_a_trainer(make_trainer, inner, twin):
    GradientState._reset_state()  # shared by all trainers, and after a training of any not to be pickled
    trainer = make_trainer(OptimizerCallback("lion", lr=1e-3, schedule="linear"), trainer_class=Quick)
    other = twin(trainer)
    other.train()
    assert type(inner(other)) is hfoptim.Lion
    judged = dict(other.judge.named_parameters())["0.weight"]
    assert any(p is judged for group in inner(other).param_groups for p in group["params"])
    assert trainer.optimizer is None


def test_the_callback_comes_before_the_names_and_stays_without_them(make_trainer, inner):
    trainer = make_trainer(OptimizerCallback("lion", lr=1e-3), trainer_class=Quick)
    enable()
    try:
        by_both = make_trainer(OptimizerCallback("lion", lr=1e-3), optim="hfoptim_sgd", trainer_class=Quick)
        by_both.create_optimizer()
        assert type(inner(by_both)) is hfoptim.Lion
    finally:
        disable()
    trainer.create_optimizer()
    assert type(inner(trainer)) is hfoptim.Lion


# -- names in every group ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, {"weight_decay": 0.1}])
def test_groups_have_names(chosen, inner, given):
    trainer = chosen(Trainer, "lion", **given)
    trainer.model.transformer.wte.requires_grad_(False)
    trainer.create_optimizer()
    params = dict(trainer.model.named_parameters())
    for group in inner(trainer).param_groups:
        assert [id(params[name]) for name in group["param_names"]] == [id(p) for p in group["params"]]
    assert sum(len(g["params"]) for g in inner(trainer).param_groups) == len(params) - 1


def test_groups_of_a_class_that_the_trainer_was_given_have_names(make_trainer, inner):
    trainer = make_trainer(own={"optimizer_cls_and_kwargs": (hfoptim.Lion, {"lr": 1e-3})})
    trainer.train()
    params = dict(trainer.model.named_parameters())
    for group in inner(trainer).param_groups:
        assert [id(params[name]) for name in group["param_names"]] == [id(p) for p in group["params"]]


def test_a_group_without_parameters_is_there_too(chosen, inner):
    trainer = chosen(Trainer, "lion")
    for param in trainer.model.parameters():
        param.requires_grad_(param.ndim > 1)
    trainer.train()
    assert [bool(group["params"]) for group in inner(trainer).param_groups] == [True, False]


def test_state_follows_the_names(make_trainer, inner):
    """The same shapes in another order: each parameter finds its own momentum."""

    class Twins(nn.Module):
        def __init__(self, order):
            super().__init__()
            for name in order:
                self.add_module(name, nn.Linear(4, 4, bias=False))

        def forward(self, x, labels=None):
            return {"loss": (self.b(self.a(x)) - x).square().mean()}

    data = [{"x": torch.randn(4), "labels": 0} for _ in range(8)]

    def make(order):
        own = {"model": Twins(order), "train_dataset": data, "eval_dataset": data}
        return make_trainer(OptimizerCallback("lion", lr=1e-2), own=own, max_steps=2)

    saved, other = make("ab"), make("ba")
    saved.train()
    other.create_optimizer()
    other.optimizer.load_state_dict(inner(saved).state_dict())
    for name in "ab":
        theirs = inner(saved).state[getattr(saved.model, name).weight]["exp_avg"]
        assert torch.equal(inner(other).state[getattr(other.model, name).weight]["exp_avg"], theirs)
