"""Bad input is refused when it is given, by name and value."""

from __future__ import annotations

import inspect
import re
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from cases import ENTRIES
from cases.adam_weight_decay import ADAM_WEIGHT_DECAY
from harness import parameters
from tiers import every_entry, every_kind_of_entry

import hfoptim
from hfoptim.engine import inputs


@contextmanager
def given(name, value):
    """An error in here says of which argument and value it is."""
    try:
        yield
    except BaseException as error:  # pytest's own, too
        raise AssertionError(f"{name}={value!r}: {error}") from error


# Names of keys in a param group, where they differ from the constructor's.
IN_GROUP = {
    "learning_rate": "lr",
    "beta_1": "betas",
    "beta_2": "betas",
    "epsilon": "eps",
    "weight_decay_rate": "weight_decay",
    "eps_scale": "eps",
}
# Numbers that may be infinite.
UNLIMITED = {"growth_rate"}
IN_ADAFACTOR = {"lr": 1e-3, "relative_step": False}


def params():
    return list(parameters(("matrix", "vector")).items())


def usual(entry):
    """Options under which a learning rate may be given."""
    return dict(IN_ADAFACTOR) if issubclass(entry.cls, hfoptim.Adafactor) else {}


def group_of(entry, name, value):
    """A param group with one bad value."""
    key = name if name in entry.cls(params()).param_groups[0] else IN_GROUP.get(name, name)
    if name == "beta_1":
        value = (value, 0.9)
    if name == "beta_2":
        value = (0.9, value)
    if name == "eps_scale":
        value = (1e-30, value)
    return {"params": params(), **usual(entry), key: value}, key


@every_entry
def test_a_number_out_of_range_is_refused_by_name_and_value(entry):
    for name, out_of_range in entry.numbers.items():
        for value in (out_of_range, float("nan"), float("inf"), -float("inf")):
            with given(name, value):
                if name in UNLIMITED and value == float("inf"):
                    entry.cls(params(), **{name: value})
                else:
                    assert_out_of_range(entry, name, value)


def assert_out_of_range(entry, name, value):
    with pytest.raises(ValueError, match=_mentions(name, value)):
        entry.cls(params(), **{**usual(entry), name: value})
    group, key = group_of(entry, name, value)
    with pytest.raises(ValueError, match=_mentions(key, value)):
        entry.cls([group])
    # A later group, too; the optimizer is as it was.
    optimizer = entry.cls([("first", torch.nn.Parameter(torch.ones(2, 2)))])
    with pytest.raises(ValueError, match=_mentions(key, value)):
        optimizer.add_param_group(group_of(entry, name, value)[0])
    assert len(optimizer.param_groups) == 1


def _mentions(name, value):
    """The argument by its name or by that of the group's key, and the value."""
    names = "|".join({name, IN_GROUP.get(name, name)})
    return rf"(?s)^(?=.*({names})).*{re.escape(str(value))}"


@every_entry
def test_a_number_of_the_wrong_type_is_refused_by_name_and_value(entry):
    for name in entry.numbers:
        for value in ("1e-3 or so", "fast", True, [1e-3], {}, 1j):
            with given(name, value), pytest.raises((TypeError, ValueError), match=_mentions(name, value)):
                entry.cls(params(), **{**usual(entry), name: value})


def may_be_none(entry, name):
    return "None" in str(inspect.signature(entry.cls).parameters[name].annotation)


@every_entry
def test_none_is_refused_where_a_number_is_needed(entry):
    for name in (name for name in entry.numbers if not may_be_none(entry, name)):
        with given(name, None), pytest.raises((TypeError, ValueError), match=_mentions(name, "None")) as raised:
            entry.cls(params(), **{**usual(entry), name: None})
        assert "float()" not in str(raised.value), name


@pytest.mark.parametrize(
    "entry",
    # AggMo takes any number of them.
    [e for e in ENTRIES if "betas" in inspect.signature(e.cls).parameters and e.cls is not hfoptim.AggMo],
    ids=lambda e: e.name,
)
def test_betas_are_as_many_numbers_as_the_rule_needs_each_in_0_to_1(entry):
    for betas in WRONG_BETAS:
        assert_no_betas(entry, betas)


WRONG_BETAS = [
    *[(0.9,), (0.9, 0.9, 0.9), (1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, float("nan"))],
    *[("most", 0.9), ("1.5", 0.9), 0.9, "ab", ()],
]


def assert_no_betas(entry, betas):
    if issubclass(entry.cls, hfoptim.Adafactor) and betas in [(0.9,), (0.9, 0.9, 0.9)]:
        assert entry.cls(params(), betas=betas).defaults["beta1"] == 0.9  # the first of any number
        return
    if isinstance(betas, tuple):  # those of a pair; who has more coefficients has good ones before
        betas = (0.9,) * (len(entry.cls.hypers["betas"].default or (0, 0)) - 2) + betas
    default = entry.cls.hypers["betas"].default
    if default and default[-1] == 1.0 and isinstance(betas, tuple) and betas[-2:] == (0.9, 1.0):
        entry.cls(params(), betas=betas)  # the last one is no decay rate
        return
    with pytest.raises((TypeError, ValueError), match="betas"):
        entry.cls(params(), betas=betas, **usual(entry))
    if not issubclass(entry.cls, hfoptim.Adafactor):
        with pytest.raises((TypeError, ValueError), match="betas"):
            entry.cls([{"params": params(), "betas": betas}])


@pytest.mark.parametrize(
    "entry", [e for e in ENTRIES if e.cls in (hfoptim.Adam, hfoptim.AdamW, hfoptim.Lion)], ids=lambda e: e.name
)
def test_betas_of_none_are_refused(entry):
    with pytest.raises((TypeError, ValueError), match="betas=None"):
        entry.cls(params(), betas=None)


FLAGS = [
    pytest.param(entry, name, id=f"{entry.name}-{name}")
    for entry in ENTRIES
    for name, p in inspect.signature(entry.cls).parameters.items()
    if isinstance(p.default, bool) and name != "no_deprecation_warning"
]


def assert_must_be_a_bool(entry, name):
    # bool("False") is True: a string here is a mistake.
    for value in ("False", 1, 0.0, torch.tensor(True)):
        # Of some, one word is a value, too.
        error = (TypeError, ValueError) if isinstance(value, str) else TypeError
        with pytest.raises(error, match=name):
            entry.cls(params(), **{**usual(entry), name: value})
        with pytest.raises(error, match=name):
            entry.cls([{"params": params(), **usual(entry), name: value}])


@pytest.mark.parametrize(("entry", "name"), FLAGS)
def test_a_flag_must_be_a_bool(entry, name):
    assert_must_be_a_bool(entry, name)


@every_kind_of_entry
def test_a_flag_of_the_engine_must_be_a_bool(entry):
    for name in ("maximize", "foreach", "fused", "kahan_sum"):
        assert_must_be_a_bool(entry, name)


@pytest.mark.parametrize(
    ("given", "meant"),
    [("wieght_decay", "weight_decay"), ("maximise", "maximize"), ("for_each", "foreach"), ("kahan", "kahan_sum")],
)
@every_kind_of_entry
def test_an_unknown_option_is_refused_with_the_closest_name(entry, given, meant):
    with pytest.raises(TypeError, match=rf"{entry.cls.__name__} has no option '{given}'.*'{meant}'"):
        entry.cls(params(), **{given: 0.1})


@every_kind_of_entry
def test_foreach_and_fused_exclude_each_other(entry):
    with pytest.raises(ValueError, match="foreach=True and fused=True"):
        entry.cls(params(), foreach=True, fused=True)
    with pytest.raises(ValueError, match="foreach=True and fused=True"):
        entry.cls([{"params": params(), "fused": True}], foreach=True)


@every_kind_of_entry
def test_parameters_are_needed(entry):
    with pytest.raises(ValueError, match="empty parameter list"):
        entry.cls([])
    with pytest.raises((TypeError, ValueError), match=r"params|parameter"):
        entry.cls(torch.nn.Parameter(torch.ones(2)))
    with pytest.raises(TypeError, match="optimizer can only optimize Tensors"):
        entry.cls([1.0])
    with pytest.raises(ValueError, match="non-leaf"):
        entry.cls([torch.ones(2, requires_grad=True) * 2])
    same = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="more than one parameter group"):
        entry.cls([{"params": [same]}, {"params": [same]}])


def test_nesterov_needs_momentum_and_no_dampening():
    with pytest.raises(ValueError, match=r"nesterov=True needs momentum > 0.*momentum=0\.0"):
        hfoptim.SGD(params(), nesterov=True)
    with pytest.raises(ValueError, match=r"dampening=0\.1"):
        hfoptim.SGD(params(), nesterov=True, momentum=0.9, dampening=0.1)
    with pytest.raises(ValueError, match="nesterov=True"):
        hfoptim.SGD([{"params": params(), "nesterov": True}])
    with pytest.raises(ValueError, match=r"dampening=1\.5"):
        hfoptim.SGD(params(), momentum=0.9, dampening=1.5)


def test_adafactor_takes_a_learning_rate_or_relative_steps():
    with pytest.raises(ValueError, match=r"lr=0\.001 and relative_step=True exclude each other"):
        hfoptim.Adafactor(params(), lr=1e-3)
    with pytest.raises(ValueError, match="needs a learning rate"):
        hfoptim.Adafactor(params(), relative_step=False)
    with pytest.raises(ValueError, match="warmup_init=True needs relative_step=True"):
        hfoptim.Adafactor(params(), lr=1e-3, relative_step=False, warmup_init=True)
    with pytest.raises(ValueError, match="exclude each other"):
        hfoptim.Adafactor([{"params": params(), "lr": 1e-3}])
    with pytest.raises(ValueError, match=r"beta1=0\.9 and betas"):
        hfoptim.Adafactor(params(), beta1=0.9, betas=(0.9, 0.999))
    with pytest.raises(ValueError, match="clip_threshold=0"):
        hfoptim.Adafactor(params(), clip_threshold=0.0)
    with pytest.raises(ValueError, match="eps="):
        hfoptim.Adafactor(params(), eps=(1e-30, 1e-3, 1.0))
    with pytest.raises((TypeError, ValueError), match="eps"):
        hfoptim.Adafactor(params(), eps="tiny")


def test_name_patterns_need_names():
    plain = [torch.nn.Parameter(torch.ones(2))]
    for argument in ("exclude_from_weight_decay", "include_in_weight_decay"):
        with pytest.raises(ValueError, match="match names"):
            hfoptim.AdamWeightDecay(plain, weight_decay_rate=0.1, **{argument: ["bias"]})
    optimizer = hfoptim.AdamWeightDecay(params(), weight_decay_rate=0.1, exclude_from_weight_decay=["bias"])
    with pytest.raises(ValueError, match="names"):
        optimizer.add_param_group({"params": plain})


def test_a_name_pattern_is_a_list_of_regular_expressions():
    with pytest.raises((TypeError, ValueError), match="exclude_from_weight_decay"):
        hfoptim.AdamWeightDecay(params(), weight_decay_rate=0.1, exclude_from_weight_decay="bias")  # its letters
    with pytest.raises((TypeError, ValueError), match=r"exclude_from_weight_decay.*\(unclosed"):
        hfoptim.AdamWeightDecay(params(), weight_decay_rate=0.1, exclude_from_weight_decay=["(unclosed"])


def test_one_way_of_clipping():
    with pytest.raises(ValueError, match="clipnorm and global_clipnorm exclude each other"):
        hfoptim.AdamWeightDecay(params(), clipnorm=1.0, global_clipnorm=1.0)
    for name in ("clipnorm", "clipvalue", "global_clipnorm"):
        with pytest.raises(ValueError, match=f"{name}=0"):
            hfoptim.AdamWeightDecay(params(), **{name: 0.0})


def test_a_learning_rate_function_must_give_a_learning_rate():
    with pytest.raises(ValueError, match=r"lr=-1\.0"):
        hfoptim.AdamWeightDecay(params(), learning_rate=lambda step: -1.0)
    given = params()
    optimizer = hfoptim.AdamWeightDecay(given, learning_rate=lambda step: 1e-3 if step == 0 else float("nan"))
    for _, param in given:
        param.grad = torch.ones_like(param)
    optimizer.step()
    before = [param.detach().clone() for _, param in given]
    with pytest.raises(ValueError, match="nan"):
        optimizer.step()
    assert all(torch.equal(param, b) for (_, param), b in zip(given, before, strict=True))


def test_learning_rate_of_zero_at_the_start_and_fully_decoupled_decay():
    # The decay is lr / max_lr * weight_decay: a peak of 0 leaves it undefined, and must not mean "none" in silence.
    with pytest.raises(ValueError, match="max_lr"):
        hfoptim.Adam(params(), lr=0.0, decouple_lr=True, weight_decay=0.1)
    with pytest.raises(ValueError, match="max_lr"):
        hfoptim.Adam(params(), lr=1e-3, max_lr=0.0, decouple_lr=True, weight_decay=0.1)


def test_every_entry_lists_its_numbers():
    # So that a new hyper-parameter cannot join without a test of its range.
    known = {
        "params",
        "betas",
        "eps",
        "name",
        "lr",
        "weight_decay",
        "learning_rate",
        "include_in_weight_decay",
        "exclude_from_weight_decay",
        "no_deprecation_warning",
        "model_sharding",
        *("ns_coefficients", "use_muon", "split", "split_dim", "stacked", "ns_dtype", "norm_kwargs"),
        *("mu_dtype", "precond_dtype"),
        "triton",
        "reduce_func",
        *("lb", "subset_size"),  # any number
    }
    for entry in ENTRIES:
        for name, parameter in inspect.signature(entry.cls).parameters.items():
            of_others = re.match(r"str\b|bool\b|tuple\b|Sequence\b", str(parameter.annotation))
            if parameter.kind is not parameter.VAR_KEYWORD and not of_others and name not in known:
                assert name in entry.numbers or isinstance(parameter.default, bool), (entry.name, name)
    assert {"lr", "weight_decay"} <= set(ENTRIES[0].numbers)
    assert "learning_rate" in ADAM_WEIGHT_DECAY.numbers


def test_a_step_is_not_captured_in_a_cuda_graph(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    param = SimpleNamespace(is_cuda=True)
    with pytest.raises(RuntimeError, match="would repeat the learning rate and the count of this one step of AdamW"):
        inputs.refuse_capture([param], "AdamW")
    inputs.refuse_capture([torch.ones(2)], "AdamW")
    inputs.refuse_capture([], "AdamW")
