"""An optimizer keeps its own defaults unless the user changed the argument, and the log says what was taken."""

import pytest
import torch
from tiers import names_by_kind

import hfoptim
from hfoptim.optimizers.shared.adapters import Adapters
from hfoptim.trainer import OptimizerCallback


@pytest.fixture(params=["callback", "name"])
def build(request, make_trainer, inner, names):
    """Makes the optimizer `name` of a Trainer, through the callback or through TrainingArguments.optim."""

    def make(name, optim_args=None, **given):
        if request.param == "callback":
            from hfoptim.trainer.options import parse_options

            trainer = make_trainer(OptimizerCallback(name, **parse_options(optim_args)), **given)
        else:
            trainer = make_trainer(optim=f"hfoptim_{name}", optim_args=optim_args, **given)
        trainer.create_optimizer()
        return inner(trainer)

    return make


def groups(optimizer, *keys):
    return [tuple(group[key] for key in keys) for group in optimizer.param_groups]


INFOS = [hfoptim.get_optimizer_info(name) for name in hfoptim.list_optimizers()]


# The groups of those that look for hidden matrices are in test_hidden_matrices.py; those of adapters want a LoRA model.
OF_THE_TRAINER = [
    info.name
    for info in INFOS
    if info.needs is None and not info.hidden_matrices and not issubclass(info.opt_class, Adapters)
]


# Every name as such; with the callback, which makes groups in the same way, one of each kind.
@pytest.mark.parametrize(
    ("build", "name"),
    [
        *(pytest.param("name", name, id=f"name-{name}") for name in OF_THE_TRAINER),
        *(
            pytest.param("callback", *each.values, id=f"callback-{each.id}", marks=each.marks)
            for each in names_by_kind(OF_THE_TRAINER)
        ),
    ],
    indirect=["build"],
)
def test_nothing_given_is_the_optimizers_own(build, name):
    own = hfoptim.get_optimizer_class(name)([torch.nn.Parameter(torch.zeros(2, 2))]).param_groups[0]
    for group, decay in zip(build(name).param_groups, (own["weight_decay"], 0.0), strict=True):
        expected = {**own, "weight_decay": decay}  # the second group is that of biases and norms
        without = {"params", "param_names"}
        assert {k: group[k] for k in group.keys() - without} == {k: expected[k] for k in expected.keys() - without}


def test_lion_keeps_its_betas(build):
    assert groups(build("lion"), "betas") == [((0.9, 0.99),)] * 2


def test_a_changed_argument_is_taken_and_the_others_are_not(build):
    assert groups(build("lion", adam_beta2=0.95), "betas") == [((0.9, 0.95),)] * 2
    assert groups(build("lion", adam_beta1=0.8), "betas") == [((0.8, 0.99),)] * 2
    assert groups(build("adamw", adam_epsilon=1e-5), "eps", "betas") == [(1e-5, (0.9, 0.999))] * 2
    assert groups(build("adam_weight_decay", adam_beta1=0.8), "betas", "eps") == [((0.8, 0.999), 1e-7)] * 2


def test_what_is_written_for_the_optimizer_comes_first(build):
    given = {"adam_beta2": 0.95, "adam_epsilon": 1e-5, "learning_rate": 1e-2}
    assert (
        groups(build("adamw", "betas=(0.7,0.8),eps=1e-4,lr=1e-3", **given), "betas", "eps", "lr")
        == [((0.7, 0.8), 1e-4, 1e-3)] * 2
    )
    assert groups(build("adam_weight_decay", "beta_1=0.7", **given), "betas") == [((0.7, 0.999),)] * 2


def test_learning_rate(build, messages):
    assert groups(build("lion", learning_rate=3e-4), "lr") == [(3e-4,)] * 2
    assert messages() == []
    assert groups(build("lion"), "lr") == [(1e-4,)] * 2
    assert messages() == [
        "learning_rate is TrainingArguments' default 5e-05, so lion uses its own: 0.0001. "
        "To use 5e-05, write lr=5e-05 in optim_args or OptimizerCallback"
    ]
    assert groups(build("lion", "lr=5e-5"), "lr") == [(5e-5,)] * 2
    assert len(messages()) == 1


def test_weight_decay(build):
    assert groups(build("lion", weight_decay=0.1), "weight_decay") == [(0.1,), (0.0,)]
    assert groups(build("lion", "weight_decay=0.2"), "weight_decay") == [(0.2,), (0.0,)]
    assert groups(build("lion", "weight_decay=0.2", weight_decay=0.1), "weight_decay") == [(0.2,), (0.0,)]
    assert groups(build("lion", "weight_decay=0.0", weight_decay=0.1), "weight_decay") == [(0.0,), (0.0,)]
    assert groups(build("adam_weight_decay", "weight_decay_rate=0.2"), "weight_decay") == [(0.2,), (0.0,)]


def test_groups_are_the_trainers_also_where_the_decay_is_not(build):
    plain, other = build("lion", weight_decay=0.1), build("lion", "weight_decay=0.2", weight_decay=0.1)
    shapes = [[tuple(p.shape) for p in group["params"]] for group in plain.param_groups]
    assert shapes == [[tuple(p.shape) for p in group["params"]] for group in other.param_groups]
    assert all(shapes)


def test_an_own_default_for_weight_decay_survives(make_trainer, inner):
    """No optimizer of the catalogue has one yet; transformers' default of 0.0 must not erase it."""
    from hfoptim import registry

    class Decaying(hfoptim.Lion):
        names = (hfoptim.Name("decaying", options={"weight_decay": 0.3}),)

    hfoptim.register(Decaying)
    try:
        for given, decay in (({}, 0.3), ({"weight_decay": 0.1}, 0.1)):
            trainer = make_trainer(OptimizerCallback("decaying"), **given)
            trainer.create_optimizer()
            assert groups(inner(trainer), "weight_decay") == [(decay,), (0.0,)]
    finally:
        registry.known_optimizers.cache_clear()


def test_a_changed_argument_that_the_optimizer_has_not_is_named(build, messages):
    build("sgd", learning_rate=1e-2, adam_beta2=0.95, adam_epsilon=1e-5)
    assert messages() == [
        "adam_epsilon=1e-05 is not used: sgd has no such option",
        "adam_beta2=0.95 is not used: sgd has no such option",
    ]


def test_adams_epsilon_is_not_one_of_adafactors(build, messages):
    assert groups(build("adafactor", learning_rate=1e-3, adam_epsilon=1e-5), "eps") == [((1e-30, 1e-3),)] * 2
    assert messages() == ["adam_epsilon=1e-05 is not used: adafactor has no such option"]


def test_adafactor_takes_a_learning_rate_or_sets_its_own(build):
    keys = ("lr", "relative_step", "scale_parameter")
    assert groups(build("adafactor"), *keys) == [(None, True, True)] * 2
    assert groups(build("adafactor", learning_rate=1e-3), *keys) == [(1e-3, False, True)] * 2
    assert groups(build("adafactor", "lr=1e-3,scale_parameter=False"), *keys) == [(1e-3, False, False)] * 2
    assert groups(build("adafactor", "relative_step=True", learning_rate=1e-3), *keys) == [(None, True, True)] * 2
    assert groups(build("adafactor", "relative_step=False", learning_rate=1e-3), *keys) == [(1e-3, False, True)] * 2


def test_relative_step_and_no_lr_by_optim_args(build, messages):
    assert groups(build("adafactor", "relative_step=True,lr=None"), "lr", "relative_step") == [(None, True)] * 2
    assert messages() == []


def test_flags_are_flags(build):
    assert groups(build("sgd", "nesterov=False,momentum=0.5"), "nesterov", "momentum") == [(False, 0.5)] * 2
    assert groups(build("sgd", '{"nesterov": false, "foreach": true}'), "nesterov", "foreach") == [(False, True)] * 2
