"""Options that users of torch.optim, timm, optimi and others pass: taken, or refused with what to write here."""

from __future__ import annotations

import pytest
import torch
from harness import assert_same, feed, parameters
from tiers import every_kind_of_entry, names_by_kind

import hfoptim
from hfoptim import registry

ON_ENGINE = [name for name in hfoptim.list_optimizers() if name != "lbfgs"]


def named():
    return list(parameters(("matrix", "vector")).items())


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("capturable", "CUDA graph.*leave it out, and take fused=True"),
        ("differentiable", "without a gradient; leave it out, or take the class of torch"),
        ("amsgrad", "adam, adamw, adam_weight_decay and novograd have it"),
    ],
)
@every_kind_of_entry
def test_a_flag_of_torch_is_taken_as_false_and_refused_as_true(entry, flag, reason):
    if flag in entry.cls(named()).defaults:
        return  # an option of its own
    optimizer = entry.cls(named(), **{flag: False})
    assert flag not in optimizer.param_groups[0]
    assert flag not in optimizer.state_dict()["param_groups"][0]
    with pytest.raises(ValueError, match=rf"{flag}=True is not possible here: .*{reason}"):
        entry.cls(named(), **{flag: True})
    with pytest.raises(ValueError, match=f"{flag}=True is not possible here"):
        entry.cls([{"params": named(), flag: True}])
    with pytest.raises(TypeError, match=f"{flag}='False' is a str"):
        entry.cls(named(), **{flag: "False"})
    # Groups of an optimizer of torch's, with all that is in them.
    entry.cls([{"params": named(), flag: False}])


@pytest.mark.parametrize("name", names_by_kind(ON_ENGINE))
def test_flags_of_torch_by_name(name):
    hfoptim.create_optimizer_v2(named(), name, capturable=False, differentiable=False)
    with pytest.raises(ValueError, match="capturable=True is not possible here"):
        hfoptim.create_optimizer_v2(named(), name, capturable=True)


def test_a_flag_stays_refused_after_a_round_trip_of_pickle():
    """torch puts `differentiable` into the defaults of what it unpickles."""
    import copy

    optimizer = copy.deepcopy(hfoptim.Lion(named()))
    with pytest.raises(ValueError, match="differentiable=True"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "differentiable": True})


@pytest.mark.parametrize(
    ("name", "option", "said"),
    [
        ("adam", "weight_decouple", "here it is called 'decouple_wd'"),
        ("adam", "decoupled_weight_decay", "here it is called 'decouple_wd'"),
        ("prodigy", "weight_decouple", "here it is called 'decouple'"),
        ("adopt", "decouple", "here it is called 'decoupled'"),
        ("adan", "adam_wd", "here it is called 'no_prox'"),
        ("adan", "weight_decouple", "here it is called 'no_prox'"),
        ("adamw_hf", "weight_decouple", "where weight decay enters is fixed here"),
        ("lion", "fixed_decay", "here it is called 'decouple_lr'"),
        ("lamb", "fixed_decay", "decouple_lr=True of adam, adamw, adan, lion and sgd"),
        ("lamb", "decouple_lr", "adam, adamw, adan, lion and sgd have it"),
        ("lion", "use_gc", "here it is called 'gradient_centralization'"),
        ("adamw", "optim_bits", "here it is called 'state_dtype'"),
        ("adamw", "min_8bit_size", "state_dtype='8bit'"),
        ("lion", "cautious", "here it is called 'caution'"),
        ("lion", "beta1", "here it is called 'betas'"),
        ("sgd", "beta1", "here it is called 'momentum'"),
        ("sgd", "learning_rate", "here it is called 'lr'"),
        ("lars", "trust_coefficient", "here it is called 'trust_coeff'"),
        ("lamb", "correct_bias", "here it is called 'bias_correction'"),
        ("adamw", "epsilon", "here it is called 'eps'"),
        ("lion", "wieght_decay", "did you mean 'weight_decay'"),
    ],
)
def test_an_option_of_another_name_is_answered_with_ours(name, option, said):
    cls = registry.get_optimizer_class(name, bind_defaults=False)
    with pytest.raises(TypeError, match=rf"{cls.__name__} has no option '{option}'; .*{said}"):
        cls(named(), **{option: 1})
    with pytest.raises(ValueError, match=rf"{name} has no option '{option}'; .*{said}"):
        hfoptim.create_optimizer_v2(named(), name, **{option: 1})


# -- decouple_lr -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [hfoptim.Adam, hfoptim.AdamW, hfoptim.Adan, hfoptim.Lion, hfoptim.SGD])
def test_fully_decoupled_decay_does_not_depend_on_the_peak(cls):
    decayed = {}
    for peak in (1e-2, 1e-1):
        param = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        param.grad = torch.zeros(3, dtype=torch.float64)
        optimizer = cls([param], lr=peak, weight_decay=1e-2, decouple_lr=True)
        assert optimizer.param_groups[0]["max_lr"] == peak
        optimizer.step()
        optimizer.param_groups[0]["lr"] = peak / 2  # a schedule moves it
        optimizer.step()
        decayed[peak] = param.detach().clone()
    torch.testing.assert_close(decayed[1e-2], decayed[1e-1], rtol=1e-12, atol=0)
    torch.testing.assert_close(decayed[1e-2], torch.full((3,), 0.99 * 0.995, dtype=torch.float64), rtol=2e-4, atol=0)
    with pytest.raises(ValueError, match="the weight decay divides by the peak learning rate"):
        cls([torch.nn.Parameter(torch.ones(2))], lr=0.0, decouple_lr=True)
    with pytest.raises(TypeError, match="decouple_lr=1 is a int"):
        cls([torch.nn.Parameter(torch.ones(2))], decouple_lr=1)


# -- an lr in a group --------------------------------------------------------------------------------------------------


def groups(**options):
    (name, matrix), other = named()
    return [{"params": [(name, matrix)], **options}, {"params": [other]}]


@pytest.mark.parametrize("name", ["adafactor", "lookahead_adafactor"])
def test_an_lr_in_a_group_switches_relative_steps_off_as_an_lr_argument_does(name):
    optimizer = hfoptim.create_optimizer_v2(groups(lr=1e-2), name)
    found = [(group["lr"], group["relative_step"]) for group in optimizer.param_groups]
    assert found == [(1e-2, False), (None, True)]
    params = {group["param_names"][0]: group["params"][0] for group in optimizer.param_groups}
    plain = parameters(("matrix",))
    alone = hfoptim.create_optimizer_v2(list(plain.items()), "adafactor", lr=1e-2)
    feed(params, 1)
    feed(plain, 1)
    optimizer.step()
    alone.step()
    assert_same(params["matrix"].detach(), plain["matrix"].detach())
    # Asked for in so many words, it stays, and the two exclude each other.
    for given, options in ((groups(lr=1e-2, relative_step=True), {}), (groups(lr=1e-2), {"relative_step": True})):
        with pytest.raises(ValueError, match=r"lr=0\.01 and relative_step=True exclude each other"):
            hfoptim.create_optimizer_v2(given, name, **options)


def test_by_class_lr_and_relative_steps_exclude_each_other_in_either_place():
    with pytest.raises(ValueError, match="exclude each other"):
        hfoptim.Adafactor(named(), lr=1e-2)
    with pytest.raises(ValueError, match="exclude each other"):
        hfoptim.Adafactor(groups(lr=1e-2))


def test_an_lr_in_a_group_under_sam_and_from_a_function():
    sam = hfoptim.SAM(groups(lr=1e-2), "adafactor")
    assert [group["relative_step"] for group in sam.param_groups] == [False, True]
    model = torch.nn.Linear(3, 2)
    made = hfoptim.create_optimizer_v2(
        model, "adafactor", param_group_fn=lambda m: [{"params": [m.weight], "lr": 0.5}, {"params": [m.bias]}]
    )
    assert [group["relative_step"] for group in made.param_groups] == [False, True]


def test_no_momentum_in_a_group_is_no_nesterov_momentum():
    """The same, of SGD: by name the option that makes no sense any more goes."""
    optimizer = hfoptim.create_optimizer_v2(groups(momentum=0.0), "sgd")
    assert [group["nesterov"] for group in optimizer.param_groups] == [False, True]
