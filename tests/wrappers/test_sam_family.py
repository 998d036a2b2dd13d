"""GSAM, WSAM, LookSAM, FriendlySAM: their numbers, and what they add to SAM's contract."""

from __future__ import annotations

import copy
import pickle
import sys
from typing import Any

import peers
import pytest
import torch
from harness import assert_follows, assert_moved, assert_same, flattened, parameters, through_disk, values
from test_sam import loss_of

import hfoptim
from hfoptim import GSAM, SAM, WSAM, FriendlySAM, LookSAM

NAMES = ("scalar", "vector", "matrix", "conv")
CLASSES = {"gsam": GSAM, "wsam": WSAM, "looksam": LookSAM, "friendlysam": FriendlySAM}
BASES = {
    "torch.SGD": (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.1}),
    "hfoptim.AdamW": (hfoptim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
}
every_base = pytest.mark.parametrize(("cls", "options"), [pytest.param(*v, id=k) for k, v in BASES.items()])
every_class = pytest.mark.parametrize("name", CLASSES)


def closure_of(optimizer, params, t):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(params, t)
        loss.backward()
        return loss

    return closure


def run(optimizer, params, steps=range(1, 13)):
    """Steps by a closure that computes both gradients."""
    for t in steps:
        optimizer.step(closure_of(optimizer, params, t))


class Constant:
    """In place of the author's schedule of rho."""

    def step(self):
        return 0.1


class Model(torch.nn.Module):
    """Parameters as a module whose output is the loss, as GSAM's closure wants it."""

    def __init__(self, params):
        super().__init__()
        self.mine = params

    def forward(self, t):
        return loss_of(self.mine, t)


def peer(name, params, cls, options, adaptive, given):
    """pytorch_optimizer's, and a function that takes its steps."""
    theirs = peers.load(f"pytorch_optimizer.{'FriendlySAM' if name == 'friendlysam' else CLASSES[name].__name__}")
    own = list(params.values())
    if name == "gsam":
        model = Model(params)
        optimizer = theirs(own, cls(own, **options), model, Constant(), alpha=given, adaptive=adaptive)

        def step(t):
            optimizer.set_closure(lambda outputs, _: outputs, t, None)
            optimizer.step()

    elif name == "wsam":
        model = torch.nn.ParameterList(own)
        optimizer = theirs(model, own, cls, rho=0.1, adaptive=adaptive, **given, **options)

        def step(t):
            optimizer.step(closure_of(optimizer, params, t))

    else:
        optimizer = theirs(own, cls, rho=0.1, adaptive=adaptive, **given, **options)

        def step(t):
            closure = closure_of(optimizer, params, t)
            closure()
            optimizer.step(closure)

    return theirs, step


GIVEN: dict[str, list[tuple[dict[str, Any], Any]]] = {
    "gsam": [({"gsam_alpha": a}, a) for a in (0.4, 0.9)],
    "wsam": [
        ({"wsam_gamma": 0.9}, {"gamma": 0.9}),
        ({"wsam_gamma": 0.3, "wsam_decouple": False}, {"gamma": 0.3, "decouple": False}),
    ],
    "looksam": [({"looksam_k": 3, "looksam_alpha": 0.5}, {"k": 3, "alpha": 0.5})],
    "friendlysam": [({}, {}), ({"friendlysam_sigma": 0.5, "friendlysam_lambda": 0.6}, {"sigma": 0.5, "lmbda": 0.6})],
}


@pytest.mark.parametrize(
    ("name", "given", "of_peer"), [(name, *pair) for name, pairs in GIVEN.items() for pair in pairs], ids=str
)
@pytest.mark.parametrize("adaptive", [False, True])
@every_base
def test_follows_pytorch_optimizer(cls, options, adaptive, name, given, of_peer, monkeypatch):
    # Its norms and angles are LookSAM's where there is one tensor; those of the paper are of all parameters together.
    names = ("matrix",) if name == "looksam" else NAMES
    mine, other = parameters(names, torch.float64), parameters(names, torch.float64)
    start = values(mine)
    ours = CLASSES[name](list(mine.values()), cls, rho=0.1, adaptive=adaptive, **given, **options)
    theirs, step = peer(name, other, cls, options, adaptive, of_peer)

    def square_of_norm(groups, weight_adaptive=False):
        sized = [
            p.grad * p.abs() if weight_adaptive and g.get("adaptive") else p.grad for g in groups for p in g["params"]
        ]
        return torch.cat([s.detach().reshape(-1) for s in sized]).square().sum().reshape(1)

    monkeypatch.setattr(sys.modules[theirs.__module__], "get_global_gradient_norm", square_of_norm)  # float32 there
    rows = ([], [])
    for t in range(1, 33):
        run(ours, mine, [t])
        step(t)
        rows[0].append(flattened(mine))
        rows[1].append(flattened(other))
    assert_follows(*rows, start, 1e-10)
    assert_moved(mine, start)


def test_looksam_takes_angles_over_all_parameters():
    """Algorithm 1 of the paper, on one vector of all parameters."""
    params = parameters(NAMES, torch.float64)
    flat = flattened(params)
    optimizer = LookSAM(list(params.values()), torch.optim.SGD, lr=1e-2, rho=0.1, looksam_k=2, looksam_alpha=0.7)
    sizes = {name: param.shape for name, param in params.items()}

    def gradient(at, t):
        at = at.clone().requires_grad_()
        parts = at.split([shape.numel() for shape in sizes.values()])
        named = {name: part.reshape(shape) for part, (name, shape) in zip(parts, sizes.items(), strict=True)}
        return torch.autograd.grad(loss_of(named, t), at)[0]

    for t in range(4):
        run(optimizer, params, [t])
        g = gradient(flat, t)
        if t % 2 == 0:
            direction = gradient(flat + 0.1 * g / g.norm(), t)
            cosine = (g @ direction) / g.norm() / direction.norm()
            sharp = direction - direction.norm() * cosine * g / g.norm()
        else:
            direction = g + 0.7 * g.norm() / sharp.norm() * sharp
        flat = flat - 1e-2 * direction
        torch.testing.assert_close(flattened(params), flat, rtol=1e-6, atol=1e-8)  # |v| + 1e-8


def test_looksam_computes_the_second_gradient_every_k_steps():
    params, calls = parameters(NAMES), []
    optimizer = LookSAM(list(params.values()), "adamw", lr=1e-2, looksam_k=3)
    climbed = []
    for t in range(7):
        closure = closure_of(optimizer, params, t)
        climbed.append(optimizer.second_is_due)
        optimizer.step(lambda t=t, closure=closure: (calls.append(t), closure())[1])
    assert climbed == [True, False, False, True, False, False, True]
    assert calls == [0, 0, 1, 2, 3, 3, 4, 5, 6, 6]


def test_wsam_with_half_of_the_weight_is_sam():
    mine, other = parameters(NAMES, torch.float64), parameters(NAMES, torch.float64)
    run(WSAM(list(mine.values()), "adamw", lr=1e-2, wsam_gamma=0.5, wsam_decouple=False), mine)
    run(SAM(list(other.values()), "adamw", lr=1e-2), other)
    torch.testing.assert_close(flattened(mine), flattened(other), rtol=1e-10, atol=1e-12)


@every_class
def test_maximize_is_the_negative_loss(name):
    ends = []
    for sign in (-1.0, 1.0):
        params = parameters(NAMES, torch.float64)
        optimizer = CLASSES[name](list(params.values()), hfoptim.AdamW, lr=1e-2, maximize=sign < 0)
        for t in range(1, 6):

            def closure(optimizer=optimizer, params=params, t=t, sign=sign):
                optimizer.zero_grad()
                loss = sign * loss_of(params, t)
                loss.backward()
                return loss

            optimizer.step(closure)
        ends.append(flattened(params))
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-12)


@every_class
@pytest.mark.parametrize("how", ["state_dict", "pickle", "deepcopy"])
def test_resumed_from_the_middle_bit_for_bit(name, how):
    made = lambda params: CLASSES[name](list(params.items()), "adamw", lr=1e-2, rho=0.1)  # noqa: E731
    mine = parameters(NAMES)
    ours = made(mine)
    run(ours, mine, range(1, 6))
    assert not any(ours.kept[each] for each in ours.between)
    if how == "state_dict":
        other = parameters(NAMES)
        theirs = made(other)
        with torch.no_grad():
            for key, value in other.items():
                value.copy_(mine[key])
        theirs.load_state_dict(through_disk(ours.state_dict()))
    else:
        both = (ours, mine)
        theirs, other = pickle.loads(pickle.dumps(both)) if how == "pickle" else copy.deepcopy(both)
    run(ours, mine, range(6, 20))
    run(theirs, other, range(6, 20))
    assert_same(values(mine), values(other))
    assert_same(ours.state_dict(), theirs.state_dict())


@every_class
def test_a_closure_that_fails_leaves_nothing_behind(name):
    params = parameters(NAMES)
    start = values(params)
    optimizer = CLASSES[name](list(params.values()), "adamw", lr=1e-2)

    def closure():
        raise KeyboardInterrupt

    loss_of(params).backward()
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert_same(values(params), start)
    assert not any(optimizer.kept[each] for each in optimizer.between)
    run(optimizer, params, [1])
    assert_moved(params, start)


@every_class
def test_a_gradient_that_only_one_pass_has(name):
    params = parameters(("vector", "matrix", "scalar"))
    optimizer = CLASSES[name](list(params.values()), torch.optim.SGD, lr=1e-2)
    for first, second in ((("vector", "matrix"), ("matrix", "scalar")), (("matrix", "scalar"), ("vector", "matrix"))):
        optimizer.zero_grad()
        loss_of({key: params[key] for key in first}).backward()
        optimizer.first_step(zero_grad=True)
        loss_of({key: params[key] for key in second}).backward()
        optimizer.second_step()
    assert all(torch.isfinite(param).all() for param in params.values())


@every_class
def test_zero_gradients_and_bfloat16(name):
    for dtype in (torch.float32, torch.bfloat16):
        params = parameters(NAMES, dtype)
        optimizer = CLASSES[name](list(params.values()), torch.optim.SGD, lr=0.1)
        for _ in range(3):
            for param in params.values():
                param.grad = torch.zeros_like(param)

            def closure(params=params):
                for param in params.values():
                    param.grad = torch.zeros_like(param)
                return torch.zeros(())

            optimizer.step(closure)
        assert all(torch.isfinite(param).all() for param in params.values())


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("gsam", {"gsam_alpha": 1.5}, r"gsam_alpha=1.5 is out of range"),
        ("wsam", {"wsam_gamma": 1.0}, r"wsam_gamma=1.0 is out of range"),
        ("wsam", {"wsam_decouple": 1}, r"wsam_decouple=1 is a int, expected True or False"),
        ("looksam", {"looksam_k": 0}, r"looksam_k=0"),
        ("looksam", {"looksam_alpha": -1.0}, r"looksam_alpha=-1.0 is out of range"),
        ("friendlysam", {"friendlysam_sigma": -1.0}, r"friendlysam_sigma=-1.0 is out of range"),
        ("friendlysam", {"friendlysam_lambda": 1.5}, r"friendlysam_lambda=1.5 is out of range"),
    ],
)
def test_mistakes(name, options, words):
    with pytest.raises((ValueError, TypeError), match=words):
        CLASSES[name](list(parameters(NAMES).values()), "sgd", lr=1e-2, **options)


@every_class
def test_not_around_another_one(name):
    inner = SAM(list(parameters(NAMES).values()), "sgd", lr=1e-2)
    with pytest.raises(ValueError, match=r"cannot go around another SAM"):
        CLASSES[name](None, inner)


@every_class
def test_by_name(name):
    params = parameters(NAMES)
    optimizer = hfoptim.create_optimizer_v2(list(params.values()), f"{name}_adamw", lr=1e-2, rho=0.2)
    assert isinstance(optimizer, CLASSES[name])
    assert optimizer.param_groups[0]["rho"] == 0.2
    assert hfoptim.get_optimizer_info(f"{name}_adamw").needs_closure


@pytest.mark.parametrize("name", ["looksam", "friendlysam"])
def test_a_state_dict_without_its_tensors_is_refused(name):
    params = parameters(NAMES)
    optimizer = CLASSES[name](list(params.values()), "adamw", lr=1e-2)
    run(optimizer, params, [1, 2])
    state_dict = optimizer.state_dict()
    for entry in state_dict["state"].values():
        for lost in ("sharpness", "gradient_average"):
            entry.pop(lost, None)
    with pytest.raises(ValueError, match=r"flatten_optimizer_state_dict=False"):
        optimizer.load_state_dict(state_dict)
