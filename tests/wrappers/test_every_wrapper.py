"""What holds for wrappers alike: checkpoints, copies, closures, names, options, and weights of few bits."""

from __future__ import annotations

import copy
import pickle

import peers
import pytest
import torch
from harness import assert_same, feed, flattened, parameters, through_disk, values
from torch import nn

import hfoptim
from hfoptim import EMA, GPA, TRAC, EMANesterov, GrokFast, Lookahead, Mechanic, ScheduleFree
from hfoptim.wrappers import around

NAMES = ("vector", "matrix", "conv")
# With options under which few steps move the weights.
WRAPPERS = {
    "schedule_free": (ScheduleFree, {}),
    "gpa": (GPA, {"eval_interp_coeff": 0.8}),
    "mechanic": (Mechanic, {"s_init": 0.1}),
    "trac": (TRAC, {"s_init": 0.1}),
    "grokfast": (GrokFast, {}),
    "ema_nesterov": (EMANesterov, {"lookahead_ema": 0.8, "lookahead_stepsize": 2.0}),
}
every_wrapper = pytest.mark.parametrize(("wrapper", "options"), WRAPPERS.values(), ids=WRAPPERS)
INNER = {
    "torch.AdamW": lambda params: torch.optim.AdamW(params, lr=1e-2),
    "hfoptim.Lion": lambda params: hfoptim.Lion(params, lr=1e-3, weight_decay=0.1),
}


def run(optimizer, params, steps):
    for t in steps:
        feed(params, t)
        optimizer.step()


MODES = [(name, False) for name in WRAPPERS] + [(name, True) for name in ("schedule_free", "gpa", "ema_nesterov")]


@pytest.mark.parametrize(("prefix", "evaluating"), MODES)
@pytest.mark.parametrize("make", INNER.values(), ids=INNER)
def test_goes_on_to_the_bit_from_a_checkpoint(prefix, make, evaluating):
    (wrapper, options), mine = WRAPPERS[prefix], parameters(NAMES)
    ours = wrapper(make(list(mine.values())), **options)
    run(ours, mine, range(1, 6))
    if evaluating:
        ours.eval()
    other = {name: nn.Parameter(param.detach().clone()) for name, param in mine.items()}
    theirs = wrapper(make(list(other.values())))
    theirs.load_state_dict(through_disk(ours.state_dict()))
    for optimizer in (ours, theirs) if evaluating else ():
        optimizer.train()
    run(ours, mine, range(6, 12))
    run(theirs, other, range(6, 12))
    assert_same(values(mine), values(other))
    assert_same(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("prefix", WRAPPERS)
@pytest.mark.parametrize("way", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_by_name_and_copied(prefix, way):
    params = parameters(NAMES)
    model = nn.Module()
    for name, param in params.items():
        model.register_parameter(name, param)
    wrapper, _ = WRAPPERS[prefix]
    optimizer = hfoptim.create_optimizer_v2(model, f"{prefix}_lion", lr=1e-2)
    assert isinstance(optimizer, wrapper)
    run(optimizer, params, range(1, 6))
    other, twins = way((optimizer, params))
    run(optimizer, params, range(6, 9))
    run(other, twins, range(6, 9))
    assert_same(values(params), values(twins))


def ranger(params):
    info = hfoptim.get_optimizer_info("ranger")
    return info.opt_class(list(params.values()), **info.defaults, lr=1e-2, weight_decay=0.1)


def together(ours, theirs, mine, other):
    """How far 30 steps go, and how far apart two optimizers are after them."""
    start = values(mine)
    for t in range(1, 31):
        feed(mine, t, follow=other)
        feed(other, t)
        ours.step()
        theirs.step()
    way = (flattened(mine) - torch.cat([start[name].flatten() for name in mine])).abs().max()
    return way, (flattened(mine) - flattened(other)).abs().max()


def test_ranger_follows_pytorch_optimizer():
    names = ("vector", "matrix", "conv")
    mine, other = parameters(names, torch.float64), parameters(names, torch.float64)
    # Without this option it climbs in its first steps.
    theirs = peers.load("pytorch_optimizer.Ranger")(
        other.values(), lr=1e-2, weight_decay=0.1, degenerated_to_sgd=True, foreach=False
    )
    way, apart = together(ranger(mine), theirs, mine, other)
    assert apart < 1e-12 * way


def test_ranger21_follows_pytorch_optimizer():
    names = ("vector", "matrix", "conv")
    mine, other = parameters(names, torch.float64), parameters(names, torch.float64)
    theirs = peers.load("pytorch_optimizer.Ranger21")(
        other.values(), num_iterations=1000, lr=1e-2, weight_decay=0.1, disable_lr_scheduler=True, foreach=False
    )
    info = hfoptim.get_optimizer_info("ranger21")
    ours = info.opt_class(list(mine.values()), **info.defaults, lr=1e-2, weight_decay=0.1)
    way, apart = together(ours, theirs, mine, other)
    assert way > 1e-2
    assert apart < 1e-10 * way


def test_a_wrapper_around_a_wrapper_is_whole_in_copies():
    params = parameters(NAMES)
    cls = around(EMA, around(Lookahead, hfoptim.Lion))
    optimizer = cls(list(params.values()), lr=1e-2, ema_decay=0.5, lookahead_k=2)
    run(optimizer, params, range(1, 5))
    other, twins = pickle.loads(pickle.dumps((optimizer, params)))
    assert type(other) is cls
    run(optimizer, params, range(5, 9))
    run(other, twins, range(5, 9))
    optimizer.eval()
    other.eval()
    assert_same(values(params), values(twins))


def test_ranger_is_a_name_in_any_spelling():
    assert hfoptim.get_optimizer_info("Ranger").name == "ranger"
    optimizer = hfoptim.create_optimizer_v2(nn.Linear(3, 3), "Ranger", lr=1e-2, lookahead_k=3)
    group = optimizer.param_groups[0]
    assert (group["lookahead_k"], group["betas"], group["gradient_centralization"]) == (3, (0.95, 0.999), True)


@every_wrapper
def test_a_closure_gives_the_gradients(wrapper, options):
    mine, other = parameters(NAMES), parameters(NAMES)
    ours, theirs = (wrapper(torch.optim.SGD(p.values(), lr=1e-2), **options) for p in (mine, other))
    for t in range(1, 6):
        feed(mine, t)
        ours.step()
        loss = theirs.step(lambda t=t: (feed(other, t), torch.tensor(2.0))[1])
        assert loss == 2.0
    assert_same(values(mine), values(other))


@every_wrapper
def test_a_loss_reaches_the_inner_optimizer(wrapper, options):
    params = parameters(NAMES)
    optimizer = wrapper(hfoptim.AliG(params.values()), **options)
    before = values(params)
    for _ in range(3):
        optimizer.step(lambda: (feed(params, 1), torch.tensor(2.0))[1])
    with pytest.raises(AssertionError):
        assert_same(values(params), before)


@pytest.mark.parametrize("prefix", ["schedule_free", "mechanic", "ema_nesterov"])
@pytest.mark.parametrize(
    "make",
    [
        lambda params: torch.optim.SGD(params, lr=0.1),
        lambda params: hfoptim.Lion(params, lr=0.1, stochastic_rounding=True),
    ],
)
def test_what_would_be_lost_in_few_bits_is_refused(prefix, make):
    wrapper, options = WRAPPERS[prefix]
    params = parameters(NAMES, torch.bfloat16)
    optimizer = wrapper(make(list(params.values())), **options)
    feed(params, 1)
    with pytest.raises(ValueError, match="kahan_sum or master_weights"):
        optimizer.step()


@pytest.mark.parametrize(
    ("wrapper", "options", "match"),
    [
        (ScheduleFree, {"momentum": 0.0}, "schedule_free_momentum=0"),
        (ScheduleFree, {"momentum": 1.0}, "schedule_free_momentum=1"),
        (ScheduleFree, {"r": -1.0}, "schedule_free_r=-1"),
        (GPA, {"train_interp_coeff": 0.0}, "gpa_train_interp_coeff=0"),
        (GPA, {"eval_interp_coeff": 1.5}, "gpa_eval_interp_coeff=1.5"),
        (Mechanic, {"betas": (0.9, 1.0)}, r"mechanic_betas\[1\]=1.0"),
        (Mechanic, {"s_decay": -1.0}, "mechanic_decay=-1"),
        (TRAC, {"betas": 0.9}, "trac_betas=0.9"),
        (TRAC, {"eps": -1.0}, "trac_eps=-1"),
        (GrokFast, {"alpha": 1.5}, "grokfast_alpha=1.5"),
        (GrokFast, {"lamb": -1.0}, "grokfast_lamb=-1"),
        (GrokFast, {"filter_type": "median"}, "grokfast_filter_type='median'"),
        (GrokFast, {"window_size": 0}, "grokfast_window_size=0"),
        (EMANesterov, {"lookahead_stepsize": -1.0}, "ema_nesterov_stepsize=-1"),
        (EMANesterov, {"lookahead_ema": 1.0}, "ema_nesterov_decay=1"),
        (EMANesterov, {"use_scheduled_lookahead_stepsize": 1}, "ema_nesterov_scheduled=1"),
        (EMANesterov, {"rest_step": -1}, "ema_nesterov_rest=-1"),
    ],
)
def test_bad_options(wrapper, options, match):
    with pytest.raises((TypeError, ValueError), match=match):
        wrapper(torch.optim.SGD(parameters(NAMES).values(), lr=0.1), **options)
