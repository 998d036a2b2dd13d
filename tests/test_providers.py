"""Optimizers of other packages by name, as far as that shows without these packages; see also tests/providers."""

from __future__ import annotations

import importlib.util
from typing import Any, ClassVar

import peers
import pytest
import torch
from torch import nn

import hfoptim
from hfoptim import registry
from hfoptim.providers import PROVIDERS, Provider
from hfoptim.registry import key

OUTSIDE = {each.name: (provider, each) for provider in PROVIDERS for each in provider.optimizers}
OF_TORCH = [name for name, (provider, _) in OUTSIDE.items() if provider.name == "torch"]
SPECIAL = ("torch_muon", "torch_lbfgs", "torch_sparse_adam")


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 2))


def test_names_begin_with_the_prefix_and_mean_an_algorithm_of_ours() -> None:
    own = set(hfoptim.list_optimizers())
    for name, (provider, each) in OUTSIDE.items():
        assert name.startswith(provider.prefix)
        assert each.algorithm in own
        info = hfoptim.get_optimizer_info(name)
        assert (info.provider, info.outside, info.algorithm) == (provider.name, True, each.algorithm)
        for spelling in (name.upper(), name.replace("_", "-"), name.replace("_", ""), *each.aliases):
            assert registry.canonical_name(spelling) == name
    assert not own & set(OUTSIDE)


def test_every_class_of_torch_has_a_name() -> None:
    classes = {
        each
        for each in vars(torch.optim).values()
        if isinstance(each, type) and issubclass(each, torch.optim.Optimizer) and each is not torch.optim.Optimizer
    }
    assert {hfoptim.get_optimizer_info(name).opt_class for name in OF_TORCH} == classes
    assert hfoptim.get_optimizer_info("torch_adamw").opt_class is torch.optim.AdamW
    assert hfoptim.get_optimizer_info("adamw").opt_class is hfoptim.Adam


def test_they_are_listed_by_provider() -> None:
    assert hfoptim.list_optimizers(provider="torch") == sorted(OF_TORCH)
    assert hfoptim.list_optimizers("*8bit", provider="torchao") == ["ao_adam8bit", "ao_adamw8bit"]
    assert len(hfoptim.list_optimizers(provider="bitsandbytes")) == 40
    with pytest.raises(ValueError, match=r"provider 'bitandbytes' is not known.*'bitsandbytes'"):
        hfoptim.list_optimizers(provider="bitandbytes")


@pytest.mark.parametrize("name", ["bnb_adamw8bt", "BNB-Lion8bits"])
def test_a_misspelt_name_has_those_of_its_provider_as_the_closest(name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown optimizer '{name}'.*'bnb_"):
        hfoptim.get_optimizer_info(name)


def test_timms_names_resolve_as_timm_has_them() -> None:
    load = (
        pytest.importorskip("timm.optim._optim_factory").default_registry if importlib.util.find_spec("timm") else None
    )
    load = load or peers.load("timm.optim._optim_factory.default_registry")
    names = [name for name in load.list_optimizers() if name.startswith(("fused", "bnb"))]
    assert len(names) > 14
    for name in names:
        theirs, ours = load.get_optimizer_info(name), hfoptim.get_optimizer_info(name)
        assert OUTSIDE[ours.name][1].path == theirs.opt_class
        assert dict(ours.defaults).items() >= dict(theirs.defaults or {}).items()


@pytest.mark.parametrize("name", sorted(set(OUTSIDE) - set(OF_TORCH)))
def test_what_is_not_installed_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = OUTSIDE[name][0]
    monkeypatch.setattr(Provider, "installed", False)
    with pytest.raises(ImportError, match=f"{name} is .*{provider.name} is not installed: ") as caught:
        hfoptim.create_optimizer_v2(model(), name, lr=1e-3)
    assert provider.install in str(caught.value)


def test_a_class_that_a_version_lacks_is_said() -> None:
    gone = Provider("torch", "x_", "torch", "pip install more", "", ())
    with pytest.raises(
        ImportError, match=r"x_a is torch.optim.Nope, which cannot be had from torch 2.*pip install more"
    ):
        gone.load(OUTSIDE["torch_adamw"][1].__class__("x_a", "torch.optim.Nope", "adamw", ""))


@pytest.mark.parametrize("name", sorted(set(OF_TORCH) - {*SPECIAL}))
def test_torchs_own_are_made_over_our_groups(name: str) -> None:
    made = model()
    decays = "weight_decay" in registry.option_names(name)
    given = {"weight_decay": 0.1} if decays else {}
    optimizer = hfoptim.create_optimizer_v2(made, name, lr=1e-3, **given)
    assert type(optimizer) is OUTSIDE[name] or type(optimizer).__module__.startswith("torch.optim")
    if decays:
        by_decay = {g["weight_decay"]: g["param_names"] for g in optimizer.param_groups}
        assert by_decay == {0.1: ["0.weight", "2.weight"], 0.0: ["0.bias", "1.weight", "1.bias", "2.bias"]}
    before = [param.detach().clone() for param in made.parameters()]
    made(torch.randn(4, 5)).square().sum().backward()
    optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, made.parameters(), strict=True))


def test_layer_decay_patterns_and_other_optimizers_apply() -> None:
    optimizer: Any = hfoptim.create_optimizer_v2(
        model(),
        "torch_adamw",
        lr=1e-3,
        param_options={"2.*": {"optimizer": "lion", "lr": 1e-4}, "0.*": {"lr_scale": 0.5}},
    )
    assert [type(each).__name__ for each in optimizer.optimizers] == ["AdamW", "Lion"]
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [1e-4, 5e-4, 1e-3]
    muon: Any = hfoptim.create_optimizer_v2(
        model(),
        "torch_muon",
        lr=1e-3,
        param_options={"*.bias": {"optimizer": "torch_adamw"}, "1.weight": {"optimizer": "torch_adamw"}},
    )
    assert [type(each) for each in muon.optimizers] == [torch.optim.Muon, torch.optim.AdamW]


def test_a_wrapper_goes_around_one_of_another_package() -> None:
    made = model()
    optimizer: Any = hfoptim.create_optimizer_v2(made, "lookahead_torch_adamw", lr=1e-2)
    made(torch.randn(4, 5)).square().sum().backward()
    optimizer.step()
    assert type(optimizer.optimizer) is torch.optim.AdamW


@pytest.mark.parametrize("option", ["state_dtype", "caution", "gradient_release"])
def test_options_of_our_engine_are_refused_in_words(option: str) -> None:
    with pytest.raises(
        ValueError,
        match=f"{option}='8bit' is an option of hfoptim's.*torch_adamw is torch's AdamW, which has lr, betas.*'adamw'",
    ):
        hfoptim.create_optimizer_v2(model(), "torch_adamw", **{option: "8bit"})
    with pytest.raises(ValueError, match="torch_adamw has no option 'momentm'"):
        hfoptim.create_optimizer_v2(model(), "torch_adamw", momentm=0.9)


def test_numbers_are_pythons_own_and_a_default_of_0_is_no_integer() -> None:
    optimizer = hfoptim.create_optimizer_v2(model(), "torch_sgd", lr="1e-2", momentum="0.9", dampening=0.5)
    assert {key: optimizer.defaults[key] for key in ("lr", "momentum", "dampening")} == {
        "lr": 0.01,
        "momentum": 0.9,
        "dampening": 0.5,
    }
    with pytest.raises((TypeError, ValueError), match="momentum='much'"):
        hfoptim.create_optimizer_v2(model(), "torch_sgd", momentum="much")


def test_a_registered_name_cannot_take_one_of_theirs() -> None:
    class Mine(hfoptim.Lion):
        """Mine.

        Source:
            https://example.org
        """

        names: ClassVar[Any] = (hfoptim.Name("bnb_adamw8bit"),)

    with pytest.raises(ValueError, match=r"claims the name 'bnb_adamw8bit', which bitsandbytes\.optim"):
        hfoptim.register(Mine)
    assert key("bnb_adamw8bit") == "bnbadamw8bit"
