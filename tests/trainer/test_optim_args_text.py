"""The text of optim_args: JSON or name=value pairs, with tuples, flags and None."""

import math

import pytest

from hfoptim.trainer.options import fit, parse_options


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (None, {}),
        ("", {}),
        ("lr=1e-3", {"lr": 1e-3}),
        ("betas=(0.95,0.98),nesterov=True,lr=None", {"betas": (0.95, 0.98), "nesterov": True, "lr": None}),
        ("betas=[0.95, 0.98], eps=1e-6", {"betas": (0.95, 0.98), "eps": 1e-6}),
        (" nesterov = false , momentum = .9 ", {"nesterov": False, "momentum": 0.9}),
        ("fused=none,foreach=FALSE,maximize=true", {"fused": None, "foreach": False, "maximize": True}),
        ("momentum=1,decay_rate=-0.8", {"momentum": 1, "decay_rate": -0.8}),
        ("include_in_weight_decay=['a,b', \"c=d\"]", {"include_in_weight_decay": ("a,b", "c=d")}),
        ("name=my-adam.v2", {"name": "my-adam.v2"}),
        ("name='False'", {"name": "False"}),
        ("lr=1e-3,", {"lr": 1e-3}),
        ('{"betas": [0.9, 0.98], "nesterov": true, "lr": null}', {"betas": (0.9, 0.98), "nesterov": True, "lr": None}),
        (' {"eps": [1e-30, 1e-3]}', {"eps": (1e-30, 1e-3)}),
        ("{}", {}),
        ({"betas": [0.9, 0.98], "lr": 1e-3}, {"betas": (0.9, 0.98), "lr": 1e-3}),
    ],
)
def test_is_read(text, options):
    read = parse_options(text)
    assert read == options
    assert [type(value) for value in read.values()] == [type(value) for value in options.values()]


def test_infinity_and_nan_are_numbers():
    read = parse_options("a=inf,b=-inf,c=nan")
    assert read["a"] == math.inf
    assert read["b"] == -math.inf
    assert math.isnan(read["c"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr", "'lr' is not of the form name=value"),
        ("lr=", "'lr=' is not of the form"),
        ("=3", "'=3' is not of the form"),
        ("0.9,0.98", "'0.9' is not of the form"),
        ("betas=0.9,0.98", "'0.98' is not of the form"),
        ("betas=(0.9,0.98", r"'\)' is missing"),
        ("name='a", '"\'" is missing'),
        ("betas=0.9)", r"unexpected '\)'"),
        ("lr=1,lr=2", "'lr' is given twice"),
        ("lr=os.system(1)", "cannot read the value 'os.system"),
        ("lr=1 2", "cannot read the value '1 2'"),
        ('{"lr": 1', "is not JSON"),
        ('{"lr": 1, "lr": 2}', "'lr' is given twice"),
    ],
)
def test_mistakes_are_named(text, words):
    with pytest.raises(ValueError, match=words):
        parse_options(text)


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="optim_args must be text or a mapping, got 3"):
        parse_options(3)


def test_the_word_false_is_false():
    assert fit("nesterov", "False", False) is False
    assert fit("nesterov", "true", False) is True
    # The default of `cadan`; and a flag that may be a word.
    assert fit("caution", "false", "momentum") is False
    assert fit("caution", "momentum", False) == "momentum"


def test_text_for_a_number_is_read_and_for_a_text_is_left():
    assert fit("lr", "1e-3", 1e-4) == 1e-3  # YAML reads 1e-3 as text
    assert fit("betas", "(0.9, 0.98)", (0.9, 0.999)) == (0.9, 0.98)
    assert fit("name", "12", "AdamWeightDecay") == "12"


@pytest.mark.parametrize(
    ("value", "default", "words"),
    [
        ("yes", False, "nesterov must be True or False, got 'yes'"),
        (1, False, "nesterov must be True or False, got 1"),
        ("big", 1e-3, "nesterov must be a number, got 'big'"),
        (True, 1e-3, "nesterov must be a number, got True"),
        (None, 1e-3, "nesterov must be a number, got None"),
        ((0.1, 0.2), 1e-3, r"nesterov must be a number, got \(0.1, 0.2\)"),
    ],
)
def test_a_value_of_another_kind_is_refused(value, default, words):
    with pytest.raises(ValueError, match=words):
        fit("nesterov", value, default)


def test_numbers_as_text_reach_the_optimizer_from_every_place():
    """What YAML makes of 1e-6, in options, inside of betas, in patterns and in the options of a schedule."""
    from hfoptim import OptimizerCallback
    from hfoptim.trainer import build

    options = {"betas": ["9e-1", "0.98"], "weight_decay": "1e-2", "layer_decay": "0.5"}
    patterns = {"*.bias": {"lr": "1e-5", "betas": ("0.5", "0.75")}}
    chosen = OptimizerCallback(
        "lion", lr="1e-6", param_options=patterns, schedule="polynomial", schedule_kwargs={"lr_end": "1e-7"}, **options
    ).choice
    made = build.registry.dummy(chosen.optimizer_class, chosen.options).param_groups[0]
    assert (made["lr"], made["betas"], made["weight_decay"]) == (1e-6, (0.9, 0.98), 1e-2)
    assert chosen.grouping.layer_decay == 0.5
    assert chosen.grouping.param_options["*.bias"]["lr"] == 1e-5
    with pytest.raises((TypeError, ValueError), match=r"betas\[1\]='high'"):
        OptimizerCallback("lion", betas=["0.9", "high"])
