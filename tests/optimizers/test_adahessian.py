"""AdaHessian's estimate of the Hessian: where it comes from, when, and what it leaves alone."""

from __future__ import annotations

import copy
import pickle

import peers
import pytest
import torch
from harness import assert_follows, assert_moved, assert_same, flattened, parameters, set_lr, through_disk, values

import hfoptim
from hfoptim.optimizers.shared import hutchinson

# torch warns that gradients with a graph hold each other; zero_grad() lets go of them.
pytestmark = pytest.mark.filterwarnings("ignore:Using backward")
NAMES = ("scalar", "vector", "matrix", "conv", "transposed", "channels_last")


def loss_of(params, t=0):
    """A loss whose Hessian is full and depends on the place."""
    flat = torch.cat([p.reshape(-1) for p in params.values()])
    shift = torch.linspace(-1, 1, flat.numel(), dtype=flat.dtype) * (1 + t % 3)
    return 0.25 * ((flat - shift) ** 4).mean() + (flat * flat.roll(1)).square().mean() + flat.square().mean()


def step(optimizer, params, t, lr=None):
    set_lr(optimizer, t, lr)
    optimizer.zero_grad()
    loss_of(params, t).backward(create_graph=True)
    optimizer.step()


@pytest.fixture
def draws(monkeypatch):
    """The same random vectors for timm and for us: the n-th one of ours is the n-th one of timm's."""
    state = {"ours": 0, "theirs": 0}

    def vector(who, shape):
        state[who] += 1
        return torch.randint(0, 2, tuple(shape), generator=torch.Generator().manual_seed(state[who]))

    real = torch.randint
    monkeypatch.setattr(
        hutchinson, "rademacher", lambda p, generator: vector("ours", p.shape).to(p.dtype).mul(2).sub(1)
    )

    def randint(low, high, size, generator=None, device=None):
        if generator is not None and device is not None:  # timm's call
            return vector("theirs", size)
        return real(low, high, size, generator=generator)

    monkeypatch.setattr(torch, "randint", randint)
    return state


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.2, "betas": (0.8, 0.9), "eps": 1e-4},
        {"hessian_power": 0.5, "n_samples": 3},
        {"update_each": 3, "n_samples": 2},
        {"avg_conv_kernel": True},
    ],
    ids=str,
)
def test_follows_timm_with_the_same_random_vectors(options, draws):
    mine, other = parameters(NAMES, torch.float64), parameters(NAMES, torch.float64)
    start = values(mine)
    ours = hfoptim.Adahessian(list(mine.values()), lr=1e-2, **options)
    theirs = peers.load("timm.optim.adahessian.Adahessian")(list(other.values()), lr=1e-2, **options)
    rows = ([], [])
    for t in range(1, 33):
        step(ours, mine, t, 1e-2)
        step(theirs, other, t, 1e-2)
        rows[0].append(flattened(mine))
        rows[1].append(flattened(other))
        for name, param in mine.items():
            torch.testing.assert_close(ours.state[param]["hessian"], other[name].hess, rtol=1e-9, atol=1e-12)
    assert draws["ours"] == draws["theirs"] > 0
    assert_follows(*rows, start, 1e-10)
    assert_moved(mine, start)


def test_follows_timm_where_the_random_vectors_do_not_matter():
    # A Hessian without entries off its diagonal is estimated exactly by any of them.
    def loss(params):
        return sum((p**4).sum() + (p * torch.arange(p.numel()).reshape(p.shape)).square().sum() for p in params)

    mine, other = parameters(NAMES, torch.float64), parameters(NAMES, torch.float64)
    start = values(mine)
    ours = hfoptim.Adahessian(list(mine.values()), lr=1e-2, n_samples=2)
    theirs = peers.load("timm.optim.adahessian.Adahessian")(list(other.values()), lr=1e-2, n_samples=2)
    rows = ([], [])
    for t in range(1, 33):
        for optimizer, params, row in ((ours, mine, rows[0]), (theirs, other, rows[1])):
            set_lr(optimizer, t, 1e-2)
            optimizer.zero_grad()
            loss(params.values()).backward(create_graph=True)
            optimizer.step()
            row.append(flattened(params))
        for param in mine.values():
            weight = torch.arange(param.numel()).reshape(param.shape)
            before = ours.state[param]["hessian"]
            assert before.shape == param.shape
            assert (before > weight.double() ** 2).all()
    assert_follows(*rows, start, 1e-10)


def test_many_samples_come_close_to_the_diagonal_of_the_hessian():
    params = parameters(("matrix",), torch.float64)
    param = params["matrix"]
    optimizer = hfoptim.Adahessian([param], n_samples=1000)
    hessian = torch.autograd.functional.hessian(lambda p: loss_of({"p": p}), param.detach())
    diagonal = hessian.reshape(15, 15).diagonal().reshape(param.shape)
    off = hessian.reshape(15, 15).square().sum(1).reshape(param.shape) - diagonal**2
    step(optimizer, params, 0)
    assert ((optimizer.state[param]["hessian"] - diagonal).abs() < 5 * (off / 1000).sqrt()).all()


@pytest.mark.parametrize("options", [{}, {"update_each": 3, "n_samples": 2}], ids=str)
def test_resuming_repeats_the_random_vectors(options):
    whole = parameters(NAMES)
    optimizer = hfoptim.Adahessian(list(whole.items()), lr=1e-2, **options)
    for t in range(1, 5):
        step(optimizer, whole, t, 1e-2)
    optimizer.zero_grad()
    saved, weights = through_disk(optimizer.state_dict()), values(whole)
    torch.manual_seed(123)  # the global generator has no part in it
    resumed = parameters(NAMES, seed=1)
    again = hfoptim.Adahessian(list(resumed.items()), lr=1e-2, **options)
    with torch.no_grad():
        for name, param in resumed.items():
            param.copy_(weights[name])
    again.load_state_dict(saved)
    twin_params, twin = pickle.loads(pickle.dumps((whole, optimizer)))
    for run, params in ((optimizer, whole), (again, resumed), (twin, twin_params)):
        for t in range(5, 10):
            step(run, params, t, 1e-2)
    assert_same(values(resumed), values(whole))
    assert_same(values(twin_params), values(whole))


def test_random_vectors_are_new_at_every_step_and_for_every_parameter(monkeypatch):
    seen = []
    draw = hutchinson.rademacher

    def watched(param, generator):
        seen.append(draw(param, generator))
        return seen[-1]

    monkeypatch.setattr(hutchinson, "rademacher", watched)
    params = {name: torch.nn.Parameter(torch.ones(64)) for name in "ab"}
    optimizer = hfoptim.Adahessian(list(params.values()), lr=1e-3, n_samples=2)
    before = torch.get_rng_state()
    for t in range(3):
        step(optimizer, params, t)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(seen) == 12
    assert len({tuple(v.tolist()) for v in seen}) == 12
    assert all(set(v.tolist()) == {1.0, -1.0} for v in seen)


@pytest.mark.parametrize("stepped", [0, 4])
def test_a_checkpoint_of_timm_loads_and_goes_on_identically(stepped, draws):
    mine, other = parameters(NAMES, torch.float64, seed=1), parameters(NAMES, torch.float64)
    theirs = peers.load("timm.optim.adahessian.Adahessian")(list(other.values()), lr=1e-2, hessian_power=0.7)
    for t in range(1, 1 + stepped):
        step(theirs, other, t)
    theirs.zero_grad()
    ours = hfoptim.Adahessian(list(mine.values()))
    ours.load_state_dict(through_disk(theirs.state_dict()))
    assert ours.param_groups[0]["hessian_power"] == 0.7
    with torch.no_grad():
        for name, param in mine.items():
            param.copy_(other[name])
    draws["ours"] = draws["theirs"]
    start, rows = values(mine), ([], [])
    for t in range(5, 15):
        step(ours, mine, t)
        step(theirs, other, t)
        rows[0].append(flattened(mine))
        rows[1].append(flattened(other))
    assert_follows(*rows, start, 1e-10)


def test_a_checkpoint_of_timm_is_refused_where_its_missing_hessian_would_be_needed():
    params = parameters(("matrix",))
    theirs = peers.load("timm.optim.adahessian.Adahessian")(list(params.values()), lr=1e-2)
    ours = hfoptim.Adahessian(list(parameters(("matrix",)).values()), update_each=2)
    step(theirs, params, 1)
    with pytest.raises(ValueError, match=r"no Hessian, and with update_each=2 none is estimated at step 2"):
        ours.load_state_dict(theirs.state_dict())
    step(theirs, params, 2)
    ours.load_state_dict(theirs.state_dict())


def test_gradients_are_left_as_they_were():
    params = parameters(NAMES)
    optimizer = hfoptim.Adahessian(list(params.values()), lr=1e-2)
    loss_of(params).backward(create_graph=True)
    before = {name: (p.grad, p.grad.detach().clone(), p.grad._version) for name, p in params.items()}
    optimizer.step()
    for name, (grad, copied, version) in before.items():
        assert params[name].grad is grad
        assert torch.equal(grad.detach(), copied)
        assert grad._version == version
        assert not any(s.requires_grad for s in optimizer.state[params[name]].values())
    optimizer.zero_grad()
    assert all(p.grad is None for p in params.values())


def test_the_closure_may_make_the_gradients():
    params = parameters(NAMES)
    start = values(params)
    optimizer = hfoptim.Adahessian(list(params.values()), lr=1e-2)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(params)
        loss.backward(create_graph=True)
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert loss.item() == pytest.approx(loss_of(start).item())
    assert_moved(params, start)


def test_gradients_without_a_graph_are_refused_before_anything_changed():
    params = parameters(NAMES)
    start = values(params)
    optimizer = hfoptim.Adahessian(list(params.values()), lr=1e-2)
    loss_of(params).backward()
    with pytest.raises(RuntimeError, match=r"none of them has a graph; call loss\.backward\(create_graph=True\)"):
        optimizer.step()
    assert_same(values(params), start)
    assert not any(optimizer.state.values())


def test_where_the_gradient_is_constant_the_hessian_is_zero():
    curved, linear = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    absent = torch.nn.Parameter(torch.ones(3))
    optimizer = hfoptim.Adahessian([curved, linear, absent], lr=1e-2, eps=1.0)
    ((curved**2).sum() * 2.0 + (linear * 3.0).sum()).backward(create_graph=True)
    optimizer.step()
    assert_same(optimizer.state[curved]["hessian"], torch.full((3,), 4.0))
    assert_same(optimizer.state[linear]["hessian"], torch.zeros(3))
    torch.testing.assert_close(linear.detach(), torch.full((3,), 1 - 1e-2 * 3.0))
    assert not optimizer.state.get(absent)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_parameters_have_a_float32_estimate(dtype):
    param = torch.nn.Parameter(torch.ones(8, dtype=dtype))
    optimizer = hfoptim.Adahessian([param], lr=1e-2, n_samples=3)
    (param.float() ** 2).sum().backward(create_graph=True)
    optimizer.step()
    assert optimizer.state[param]["hessian"].dtype is torch.float32
    torch.testing.assert_close(optimizer.state[param]["hessian"], torch.full((8,), 2.0))


def test_a_parameter_that_joins_late_is_estimated_at_once():
    params = parameters(("vector", "matrix"))
    optimizer = hfoptim.Adahessian(list(params.values()), lr=1e-2, update_each=3)
    step(optimizer, {"matrix": params["matrix"]}, 1)
    step(optimizer, params, 2)
    assert optimizer.state[params["vector"]]["hessian"].any()
    held = optimizer.state[params["matrix"]]["hessian"].clone()
    step(optimizer, params, 3)
    assert_same(optimizer.state[params["matrix"]]["hessian"], held)
    step(optimizer, params, 4)
    assert not torch.equal(optimizer.state[params["matrix"]]["hessian"], held)


def test_timms_training_loops_see_that_it_needs_a_graph():
    params = parameters(("vector", "matrix"))
    optimizer = hfoptim.create_optimizer_v2(list(params.values()), "adahessian", lr=1e-2)
    assert optimizer.is_second_order is True
    assert hfoptim.get_optimizer_info("adahessian").second_order
    around = hfoptim.Lookahead(optimizer, k=2)
    assert around.is_second_order is True
    plain_params, plain = copy.deepcopy((params, optimizer))
    step(around, params, 1)
    step(plain, plain_params, 1)
    assert_same(values(params), values(plain_params))
