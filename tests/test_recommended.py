"""Learning rates that others train with: the table, what is taken from it, and what is far from it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import hfoptim
import schedules
from hfoptim.cli import app
from hfoptim.registry.lookup import canonical_name, option_defaults, option_names
from hfoptim.registry.recommendation import TASKS, Recommendation, Same
from hfoptim.registry.recommended import recommendations, say_if_far, take_recommended
from hfoptim.registry.recommended_values import SETTINGS

OWN = [(name, each) for name, own in SETTINGS.items() for each in own]


def test_there_are_many_and_each_task_has_some():
    assert len(SETTINGS) >= 60
    for task in TASKS:
        assert sum(any(each.task == task for each in recommendations(name)) for name in SETTINGS) >= 4, task


@pytest.mark.parametrize(("name", "each"), OWN, ids=[name for name, _ in OWN])
def test_every_entry_can_be_read_and_set(name, each):
    assert canonical_name(name) == name
    assert each.source.startswith("https://")
    assert recommendations(name)
    if isinstance(each, Same):
        assert SETTINGS[each.name]
        return
    assert each.task in TASKS
    assert each.of
    assert 1e-7 < each.low <= each.lr <= each.high <= 5.0
    assert each.high / each.low <= 1000.0
    known = option_defaults(name)
    if each.weight_decay is not None:
        assert 0.0 <= each.weight_decay < 1.0
        assert not each.weight_decay or {"weight_decay", "weight_decay_rate"} & known.keys()
    if each.betas is not None:
        assert len(each.betas) == hfoptim.get_optimizer_info(name).num_betas
        assert all(0.0 <= beta < 1.0 for beta in each.betas)
    if each.schedule is not None:
        assert each.schedule in schedules.list_schedules()
    assert each.options.keys() <= set(option_names(name))
    if getattr(hfoptim.get_optimizer_info(name).opt_class, "lr_is_factor", False):
        assert each.lr == 1.0
    # An optimizer takes it, and with these options it is not far from itself.
    options = {option: values[-1] for option, values in each.options.items()}
    hfoptim.create_optimizer_v2([("weight", nn.Parameter(torch.zeros(4, 4)))], name, lr=each.lr, **options)
    assert say_if_far(name, each.lr, {**known, **options}) is None


def test_the_first_that_fits_is_taken():
    first = SETTINGS["adamw"][0]
    assert take_recommended("AdamW", {"lr": "recommended", "weight_decay": 0.1}) == (
        {"weight_decay": 0.1, "lr": first.lr},
        first,
    )
    options, taken = take_recommended("adamw", {"lr": "recommended", "task": "lora"})
    assert (options, taken.task) == ({"lr": 2e-4}, "lora")
    assert take_recommended("cadamw", {"lr": "recommended"})[1] is first
    # Muon's two scales want rates of their own.
    asked = {"lr": "recommended", "task": "pretrain"}
    assert take_recommended("muon", asked)[0] == {"lr": 1e-3}
    assert take_recommended("muon", {**asked, "adjust_lr_fn": None})[0] == {"adjust_lr_fn": None, "lr": 0.02}
    assert take_recommended("lion", {"lr": 1e-3}) == ({"lr": 1e-3}, None)


def test_what_stands_around_an_optimizer_leaves_its_rates():
    assert recommendations("sam_sgd") == recommendations("sgd")
    assert recommendations("ema_nesterov_lion") == recommendations("lion")
    assert recommendations("mechanic_sgd") == recommendations("ranger") == ()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("lbfgs", {"lr": "recommended"}, "no source is known for lbfgs; give a number"),
        ("soap", {"lr": "recommended"}, "for soap and task='finetune', only for 'pretrain'"),
        ("lion", {"lr": "recommended", "task": "sft"}, "task='sft' is none of 'pretrain', 'finetune', 'lora'"),
        ("lion", {"lr": 1e-4, "task": "lora"}, "task='lora' says which learning rate to take for lr='recommended'"),
        ("adafactor", {"lr": "recommended"}, "goes with scale_parameter=False; give that too"),
    ],
)
def test_what_is_not_known_is_said(name, options, words):
    with pytest.raises(ValueError, match=words):
        take_recommended(name, options)
    with pytest.raises(ValueError, match=words):
        hfoptim.create_optimizer_v2([nn.Parameter(torch.zeros(4))], name, **options)


@pytest.mark.parametrize(
    ("name", "lr", "options", "far"),
    [
        ("sgd", 5e-5, {}, "600 times smaller than 0.03"),
        ("sgd", 1e-2, {}, None),
        ("lion", 1e-2, {}, "50 times larger than 0.0002"),
        ("lion", 1e-3, {}, None),
        ("adamw", 1e-6, {}, None),
        ("adamw", 0.1, {}, "100 times larger than 0.001"),
        ("muon", 3e-4, {"adjust_lr_fn": "original"}, "67 times smaller than 0.02"),
        ("muon", 3e-4, {}, None),
        ("muon", 2e-2, {"adjust_lr_fn": None}, None),
        ("adafactor", None, {}, None),
        ("lbfgs", 1e-9, {}, None),
        ("adamw", 0.0, {}, None),
    ],
)
def test_far_is_thirty_times(name, lr, options, far):
    said = say_if_far(name, lr, {**option_defaults(name), **options})
    assert (said is None) is (far is None)
    if far is not None:
        assert far in said
        low, high = (f(getattr(e, side) for e in recommendations(name) if e.holds({**option_defaults(name), **options}))
                     for f, side in ((min, "low"), (max, "high")))  # fmt: skip
        assert f"from {low:g} to {high:g}" in said
        assert "https://" in said


def test_an_optimizer_is_made_with_it(caplog):
    model = nn.Linear(4, 4)
    made = hfoptim.create_optimizer_v2(model, "lion", lr="recommended", task="pretrain", weight_decay=0.1)
    assert {group["lr"] for group in made.param_groups} == {2e-4}
    (record,) = caplog.records
    assert record.getMessage().startswith("lion takes the recommended lr=0.0002 for task='pretrain': lr 0.0002, from")
    assert "https://github.com/epfml/llm-optimizer-benchmark" in record.getMessage()


def test_info_shows_them():
    out = CliRunner().invoke(app, ["info", "sophiag"], env={"COLUMNS": "200"}).stdout
    assert "lr 0.0006, from 0.0003 to 0.0007, weight_decay 0.2, betas (0.965, 0.99), cosine, warm-up 2000 steps" in out
    assert "https://github.com/Liuhong99/Sophia" in out


def test_in_words():
    each = Recommendation("lora", 1e-4, "https://x.org", "a model", 1e-5, 2e-4, 0.1, (0.9, 0.99), "cosine", "10 %")
    assert str(each) == (
        "lr 0.0001, from 1e-05 to 0.0002, weight_decay 0.1, betas (0.9, 0.99), cosine, warm-up 10 %: a model; "
        "https://x.org"
    )
    assert math.isclose(Recommendation("lora", 1e-4, "https://x.org", "a model").high, 1e-4)


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


WAYS = {
    "create": lambda name, **options: hfoptim.create_optimizer_v2(model(), name, **options),
    "build": lambda name, **options: hfoptim.OPTIMIZERS.build({"type": name, **options}, model().parameters()),
    "config": lambda name, **options: hfoptim.from_config({"optimizer": {"type": name, **options}}, model()),
    "groups": lambda name, **options: hfoptim.from_config(
        {"optimizer": {"type": name, **options}, "groups": {"layer_decay": 0.9}}, model()
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_rate_that_is_far_is_warned_of_once_outside_of_a_trainer(way, caplog, monkeypatch):
    monkeypatch.setattr("hfoptim.registry.recommended._said", set())
    for lr in (1e-3, "1e-3", torch.tensor(1e-3)):
        WAYS[way]("lion", lr=lr)
    for name in ("lion", "prodigy"):
        WAYS[way](name)
    assert not caplog.records
    for _ in range(2):
        WAYS[way]("lion", lr=1e-2)
    (record,) = caplog.records
    assert "lr=0.01 is 50 times larger than 0.0002" in record.getMessage()
    assert "from 2e-06 to 0.001" in record.getMessage()
    WAYS[way]("lion", lr=2e-2)
    WAYS[way]("torch_sgd", lr=5e-5)
    WAYS[way]("sam_sgd", lr=5e-5)
    assert [each.getMessage().split(", which is what ")[1].split()[0] for each in caplog.records] == [
        *("lion", "lion", "torch_sgd", "sam_sgd")
    ]


def test_a_wrong_rate_is_the_optimizers_to_refuse(caplog):
    for lr, error in ((-1.0, ValueError), ("fast", TypeError), (math.nan, ValueError)):
        with pytest.raises(error, match="lr"):
            hfoptim.create_optimizer_v2(model(), "lion", lr=lr)
    assert not caplog.records


def test_a_configuration_asks_for_a_recommended_rate(caplog):
    asked = {"type": "Lion", "lr": "recommended", "task": "pretrain", "weight_decay": 0.1}
    made = hfoptim.from_config({"optimizer": asked, "paramwise_cfg": {"bias_lr_mult": 2.0}}, model()).optimizer
    assert {group["lr"] for group in made.param_groups} == {2e-4, 4e-4}
    assert hfoptim.OPTIMIZERS.build(asked, model().parameters()).defaults["lr"] == 2e-4
    assert all("lion takes the recommended lr=0.0002" in record.getMessage() for record in caplog.records)
    with pytest.raises(ValueError, match="task='pretrain' says which learning rate to take"):
        hfoptim.OPTIMIZERS.build({**asked, "lr": 1e-4}, model().parameters())


def test_names_of_other_packages_have_those_of_the_same_equations():
    assert recommendations("bnb_lion8bit") == recommendations("bnb_paged_lion") == recommendations("lion")
    assert recommendations("ds_onebit_adam") == recommendations("adam")
    assert recommendations("ao_adamw4bit") == recommendations("adamw")
    assert recommendations("bnb_lars8bit") == ()  # nor have ours
    # torch's Muon scales its updates as the author's does, ours by name as AdamW's.
    assert take_recommended("torch_muon", {"lr": "recommended", "task": "pretrain"})[0] == {"lr": 0.02}
    made = hfoptim.create_optimizer_v2(model(), "torch_adamw", lr="recommended", task="lora")
    assert type(made) is torch.optim.AdamW
    assert made.defaults["lr"] == 2e-4
    out = CliRunner().invoke(app, ["info", "torch_adamw"], env={"COLUMNS": "200"}).stdout
    assert "https://github.com/artidoro/qlora" in out
