"""What a class declares becomes its constructor, checks, attributes and docs."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from dataclasses import KW_ONLY
from pathlib import Path

import pytest
import torch
from torch import nn

import hfoptim
from hfoptim.engine import ELEMENT, ENGINE_DEFAULTS, Rule, RuleOptimizer, hyper
from hfoptim.optimizers.lion import lion

ROOT = Path(__file__).resolve().parents[1]

# Positions, kinds and defaults, as documented; `params` comes first, the engine's options last.
SIGNATURES = {
    "AdEMAMix": "lr=0.001, betas=(0.9, 0.999, 0.9999), alpha=5.0, t_alpha_beta3=None, eps=1e-08, weight_decay=0.0",
    "Adafactor": (
        "lr=None, eps=(1e-30, 0.001), clip_threshold=1.0, decay_rate=-0.8, beta1=None, weight_decay=0.0, "
        "scale_parameter=True, relative_step=True, warmup_init=False, *, eps_scale=None, "
        "min_dim_size_to_factor=None, betas=None"
    ),
    "Adagrad": "lr=0.01, lr_decay=0.0, weight_decay=0.0, initial_accumulator_value=0.0, eps=1e-10",
    "Adahessian": (
        "lr=0.1, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0, hessian_power=1.0, update_each=1, n_samples=1, "
        "avg_conv_kernel=False"
    ),
    "Adam": (
        "lr=0.001, betas=(0.9, 0.99), weight_decay=0.0, eps=1e-06, decouple_wd=False, decouple_lr=False, "
        "max_lr=None, *, triton=None, amsgrad=False, clipping_threshold=None"
    ),
    "AdamMini": (
        "lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0, *, model_sharding=None, dim=2048, n_heads=32, "
        "n_kv_heads=None, verbose=True"
    ),
    "AdamW": (
        "lr=0.001, betas=(0.9, 0.999), eps=1e-06, weight_decay=0.0, correct_bias=True, "
        "no_deprecation_warning=False, *, decouple_lr=False, max_lr=None, amsgrad=False"
    ),
    "AdamWScheduleFree": (
        "lr=0.0025, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0, warmup_steps=0, r=0.0, weight_lr_power=2.0"
    ),
    "AdamWeightDecay": (
        "learning_rate=0.001, beta_1=0.9, beta_2=0.999, epsilon=1e-07, amsgrad=False, weight_decay_rate=0.0, "
        "include_in_weight_decay=None, exclude_from_weight_decay=None, name='AdamWeightDecay', *, clipnorm=None, "
        "clipvalue=None, global_clipnorm=None, lr=None, betas=None, eps=None, weight_decay=None"
    ),
    "Adan": (
        "lr=0.001, betas=(0.98, 0.92, 0.99), eps=1e-08, weight_decay=0.0, no_prox=False, *, decouple_lr=False, "
        "max_lr=None, max_grad_norm=None"
    ),
    "Adopt": "lr=0.001, betas=(0.9, 0.9999), eps=1e-06, clip_exp=0.333, weight_decay=0.0, decoupled=False",
    "Lamb": (
        "lr=0.001, bias_correction=True, betas=(0.9, 0.999), eps=1e-06, weight_decay=0.01, grad_averaging=True, "
        "max_grad_norm=1.0, trust_clip=False, always_adapt=False, decoupled_decay=False"
    ),
    "Lars": (
        "lr=1.0, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, trust_coeff=0.001, eps=1e-08, "
        "trust_clip=False, always_adapt=False"
    ),
    "Lion": "lr=0.0001, betas=(0.9, 0.99), weight_decay=0.0, decouple_lr=False, max_lr=None",
    "Muon": (
        "lr=0.001, weight_decay=0.1, momentum=0.95, nesterov=True, ns_coefficients=(3.4445, -4.775, 2.0315), "
        "eps=1e-07, ns_steps=5, adjust_lr_fn=None, *, use_muon=None, stacked=None, split=None, split_dim=None, "
        "betas=(0.9, 0.95), fallback='adamw', fallback_lr_scale=1.0, safety_factor=1.0, algo='muon', ns_dtype=None"
    ),
    "NvNovoGrad": (
        "lr=0.001, betas=(0.95, 0.98), eps=1e-08, weight_decay=0.0, grad_averaging=False, amsgrad=False, "
        "decoupled_decay=False"
    ),
    "Prodigy": (
        "lr=1.0, betas=(0.9, 0.999), beta3=None, eps=1e-08, weight_decay=0.0, decouple=True, "
        "use_bias_correction=False, safeguard_warmup=False, d0=1e-06, d_coef=1.0, growth_rate=inf, "
        "fsdp_in_use=False, slice_p=1"
    ),
    "SGD": (
        "lr=0.001, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, *, decouple_wd=False, "
        "decouple_lr=False, max_lr=None"
    ),
}


def params(count=1):
    return [nn.Parameter(torch.ones(2)) for _ in range(count)]


def bare(signature):
    kept = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(inspect.Signature(kept))


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_those_documented(name):
    cls = getattr(hfoptim, name)
    assert bare(inspect.signature(cls)) == f"(params, {SIGNATURES[name]}, **options)"
    # LightningCLI and timm's tests ask the constructor.
    assert bare(inspect.signature(cls.__init__)) == f"(self, params, {SIGNATURES[name]}, **options)"


class Toy(RuleOptimizer):
    """A toy.

    It steps:

        p = p - lr u

    Raises:
        ValueError: the flag without a size.

    Source:
        Nobody, nowhere.
    """

    rule = lion
    lr: float = hyper(1e-2, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.99), "decay rates")
    weight_decay: float = hyper(0.0, "decay")
    size: float | None = hyper(None, "a size", above=0.0, excluded="is nothing")
    share: float = hyper(0.5, "a share", most=1.0)
    count: int = hyper(3, "how many", low=1, below=100)
    kind: str = hyper("one", "which", choices=("one", "two"))
    _: KW_ONLY
    flag: bool | None = hyper(None, "whether")
    free: object = hyper((1, 2), "anything of two", check=lambda name, value: tuple(value))
    spare: int = hyper(0, "kept nowhere", in_group=False)

    def check_group(self, group):
        super().check_group(group)
        if group["flag"] and group["size"] is None:
            raise ValueError("flag=True needs a size")


def test_what_is_declared_becomes_the_signature():
    assert bare(inspect.signature(Toy)) == (
        "(params, lr=0.01, betas=(0.9, 0.99), weight_decay=0.0, size=None, share=0.5, count=3, kind='one', *, "
        "flag=None, free=(1, 2), spare=0, **options)"
    )
    optimizer = Toy(params(), 1.0, [0.5, 0.6], count="7", size=2, free=[1, 3], spare=5, maximize=True)
    group = optimizer.param_groups[0]
    wanted = {"lr": 1.0, "betas": (0.5, 0.6), "count": 7, "size": 2.0, "free": (1, 3), "maximize": True}
    assert {name: group[name] for name in wanted} == wanted
    assert group.keys() == {*Toy.hypers, *ENGINE_DEFAULTS, "params"} - {"spare"} | ({"differentiable"} & group.keys())


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, "lr=-1.0 is out of range, expected a number in [0, inf)"),
        ({"lr": None}, TypeError, "lr=None is a NoneType, expected a number"),
        ({"betas": (0.9,)}, ValueError, "betas=(0.9,) has 1 entries, expected 2"),
        ({"betas": (0.9, 1.0)}, ValueError, "betas[1]=1.0 is out of range, expected a number in [0, 1)"),
        ({"size": 0}, ValueError, "size=0 is nothing, expected a number above 0, or None"),
        ({"share": 1.5}, ValueError, "share=1.5 is out of range, expected a number in [0, 1]"),
        ({"count": 0}, ValueError, "count=0 is out of range, expected a number in [1, inf)"),
        ({"count": 100}, ValueError, "count=100 is out of range, expected a number in [1, 100)"),
        ({"count": 1.5}, ValueError, "count=1.5 is not a whole number"),
        ({"kind": "tow"}, ValueError, "kind='tow' is not known; did you mean 'two'"),
        ({"kind": 2}, TypeError, "kind=2 is a int, expected one of one, two"),
        ({"flag": 1}, TypeError, "flag=1 is a int, expected True, False or None"),
        ({"spare": "x"}, TypeError, "spare='x' is a str, expected a number"),
        ({"flag": True}, ValueError, "flag=True needs a size"),
        ({"shaer": 0.5}, TypeError, "Toy has no option 'shaer'; did you mean 'share'"),
        ({"amsgrad": True}, ValueError, "amsgrad=True is not possible here"),
    ],
    ids=str,
)
def test_values_are_checked(given, error, message):
    with pytest.raises(error, match=re.escape(message)):
        Toy(params(), **given)
    if next(iter(given)) not in ("spare", "shaer"):
        with pytest.raises(error, match=re.escape(message)):
            Toy([{"params": params(), **given}])


def test_calls_that_do_not_fit_name_the_class():
    with pytest.raises(TypeError, match=r"Toy: missing.*'params'"):
        Toy(lr=1.0)
    with pytest.raises(TypeError, match="Toy: too many"):
        Toy(params(), 1.0, (0.9, 0.9), 0.0, 1.0, 0.5, 3, "one", True)
    with pytest.raises(TypeError, match=r"Toy: multiple values.*'lr'"):
        Toy(params(), 1.0, lr=1.0)


def test_attributes_read_and_write_the_groups():
    optimizer = Toy([{"params": params()}, {"params": params(), "lr": 0.5, "betas": (0.1, 0.2)}])
    assert optimizer.lr == [0.01, 0.5]
    assert optimizer.betas == [(0.9, 0.99), (0.1, 0.2)]
    assert optimizer.weight_decay == 0.0
    assert optimizer.caution is False
    optimizer.lr = "0.25"
    optimizer.caution = True
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
    assert [group["caution"] for group in optimizer.param_groups] == [True, True]
    optimizer.param_groups[0]["lr"] = torch.tensor(0.25)
    assert optimizer.lr == 0.25
    for name, value, message in (("lr", -1.0, "lr=-1.0"), ("flag", True, "needs a size"), ("fused", 3, "fused=3")):
        before = [dict(group) for group in optimizer.param_groups]
        with pytest.raises((TypeError, ValueError), match=message):
            setattr(optimizer, name, value)
        assert [dict(group) for group in optimizer.param_groups] == before
    assert not hasattr(optimizer, "spare")


def test_arguments_can_be_something_else_in_the_groups():
    class Renaming(Toy):
        rate: float | None = hyper(None, "another name of lr", in_group=False)

        def from_arguments(self, given):
            self.given = given["rate"]
            return {**given, "lr": given["lr"] if given["rate"] is None else given["rate"], "steps": 0}

    optimizer = Renaming(params(), rate="0.5")
    assert (optimizer.lr, optimizer.given, optimizer.param_groups[0]["steps"]) == (0.5, 0.5, 0)
    assert "rate" not in optimizer.param_groups[0]
    assert list(Renaming.hypers)[-4:] == ["rate", "flag", "free", "spare"]


def test_a_constructor_of_ones_own_shows_its_own_signature():
    class Own(Toy):
        def __init__(self, params, speed=2.0):
            super().__init__(params, lr=speed)

    assert str(inspect.signature(Own)) == "(params, speed=2.0)"
    assert Own(params()).lr == 2.0

    class Below(Own):
        extra: int = hyper(1, "more")

    assert str(inspect.signature(Below)) == "(params, speed=2.0)"
    assert str(inspect.signature(Below.__init__)) == "(self, params, speed=2.0)"
    assert Below(params(), speed=3.0).lr == 3.0


def test_a_constructor_that_hands_all_on_shows_what_is_declared():
    class Through(Toy):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.made = True

    through, toy = inspect.signature(Through.__init__), inspect.signature(Toy.__init__)
    assert list(through.parameters) == list(toy.parameters)
    assert Through(params(), lr=0.5).made
    assert "eps" in inspect.signature(hfoptim.LoraFAOptimizer.__init__).parameters


def test_the_docstring_has_arguments_and_errors():
    text = Toy.__doc__
    assert text.startswith("A toy.\n\nIt steps:\n\n    p = p - lr u\n\nArgs:\n    params: parameters, named")
    for line in (
        "    lr (default 0.01, >= 0): learning rate.\n",
        "    betas ((0.9, 0.99), each in [0, 1)): decay rates.\n",
        "    size (None, > 0): a size.\n",
        "    share (0.5, in [0, 1]): a share.\n",
        "    count (3, in [1, 100)): how many.\n",
        "    kind ('one', 'one' or 'two'): which.\n",
        "    flag (None): whether.\n",
    ):
        assert line in text
    raises = text.partition("Raises:\n")[2].partition("\n\n")[0].splitlines()
    assert [line[:15] for line in raises] == ["    ValueError:", "    TypeError: ", "    ValueError:"]
    assert raises[2] == "    ValueError: the flag without a size."
    assert text.endswith("\n\nSource:\n    Nobody, nowhere.")
    assert all(f"`{name}`" in text for name in ENGINE_DEFAULTS)


def test_mistakes_in_declarations_are_named():
    with pytest.raises(TypeError, match=r"Bare\.lr has no annotation; write lr: float = hyper"):

        class Bare(RuleOptimizer):
            lr = hyper(1e-3, "learning rate")

    with pytest.raises(TypeError, match=r"Odd\.what: the annotation 'complex' says no kind of check; give one"):

        class Odd(RuleOptimizer):
            what: complex = hyper(1j, "no kind")


def test_type_checkers_know_the_engines_options():
    hints = inspect.get_annotations(RuleOptimizer)
    assert not set(hints) & set(ENGINE_DEFAULTS)  # at run time they are attributes of groups
    source = inspect.getsource(RuleOptimizer)
    block = source.partition("if TYPE_CHECKING:")[2].partition("names:")[0]
    assert re.findall(r"^        (\w+): .* = (.*)$", block, re.MULTILINE) == [
        (name, repr(value).replace("'", '"')) for name, value in ENGINE_DEFAULTS.items()
    ]


CALLS = """
from torch import nn
import hfoptim
params = nn.Linear(2, 2).parameters()
hfoptim.Lion(params, 1e-3, (0.9, 0.99), 0.1, caution=True, state_dtype="8bit")
hfoptim.AdamW(params, lr=1e-3, decouple_lr=True)
reveal_type(hfoptim.Lion(params).lr)
hfoptim.Lion(params, lr="x")
hfoptim.Lion(params, betas=0.9)
hfoptim.Lion(params, lrr=1e-3)
hfoptim.Lion(params, state_dtype="2bit")
hfoptim.AdamW(params, 1e-3, (0.9, 0.99), 1e-8, 0.1, True, False, True)
"""


@pytest.mark.slow
def test_type_checkers_check_calls(tmp_path):
    mypy = pytest.importorskip("mypy.api")
    # Not the configuration of this repository: its tests hand over what must be refused.
    settings = f"[mypy]\nmypy_path = {ROOT}\nfollow_imports = silent\nignore_missing_imports = True\n"
    (tmp_path / "mypy.ini").write_text(settings, encoding="utf-8")
    calls = tmp_path / "calls.py"
    calls.write_text(CALLS, encoding="utf-8")
    out, err, _ = mypy.run(["--config-file", str(tmp_path / "mypy.ini"), "--cache-dir", str(tmp_path), str(calls)])
    found = [line.partition("calls.py:")[2] for line in out.splitlines() if "calls.py:" in line]
    assert not err
    assert [int(line.partition(":")[0]) for line in found if ": error:" in line] == [8, 9, 10, 11, 12], out
    assert 'note: Revealed type is "float"' in found[0].replace("builtins.", "")


@pytest.mark.parametrize("options", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
def test_an_optimizer_without_weight_decay_steps_everywhere(options):
    class Signs(RuleOptimizer):
        """Steps of the gradient's sign."""

        rule = Rule(lambda grad, param, h: (grad.sign(),), ELEMENT)
        lr: float = hyper(0.5, "learning rate")

    param = torch.nn.Parameter(torch.zeros(3))
    param.grad = torch.tensor([2.0, 0.0, -3.0])
    Signs([param], **options).step()
    assert param.tolist() == [-0.5, 0.0, 0.5]


class Labelled(RuleOptimizer):
    """An optimizer with a label."""

    rule = lion
    lr: float = hyper(1e-4, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.99), "decay rates")
    weight_decay: float = hyper(0.0, "decay")
    label: str = hyper("none", "what it is called", kept=True)

    def check_added(self, group):
        if group["weight_decay"] > 1.0:
            raise ValueError("decays too much")


def test_an_argument_that_is_kept_lies_on_the_optimizer_and_its_copies():
    optimizer = Labelled([nn.Parameter(torch.ones(2))], label="mine")
    for each in (optimizer, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert each.label == "mine"
        assert "label" not in each.param_groups[0]
        assert "label" not in each.state_dict()["param_groups"][0]
    with pytest.raises(TypeError, match="label=3 is a int, expected text"):
        Labelled([nn.Parameter(torch.ones(2))], label=3)


def test_a_group_that_is_refused_is_not_there():
    optimizer = Labelled([nn.Parameter(torch.ones(2))])
    late = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="decays too much"):
        optimizer.add_param_group({"params": [late], "weight_decay": 2.0})
    optimizer.add_param_group({"params": [late]})
    assert len(optimizer.param_groups) == 2


def test_the_engine_knows_the_names_of_parameters():
    first, second, late = (nn.Parameter(torch.ones(2)) for _ in range(3))
    optimizer = Labelled([("first", first), ("second", second)])
    (group,) = optimizer.param_groups
    assert [optimizer.name_of(param, group) for param in (second, first)] == ["second", "first"]
    optimizer.add_param_group({"params": [("late", late)]})
    assert optimizer.name_of(late, optimizer.param_groups[1]) == "late"
    group["param_names"] = ["other", "second"]  # as a state_dict that is loaded does
    assert optimizer.name_of(first, group) == "other"
    assert copy.deepcopy(optimizer).name_of(first, group) == "other"
    group["params"] = [late, second]  # as FSDP puts other tensors in their place
    assert optimizer.name_of(late, group) == "other"
    plain = Labelled([first])
    assert plain.name_of(first, plain.param_groups[0]) is None
