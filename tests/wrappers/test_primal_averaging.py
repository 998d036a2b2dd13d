"""ScheduleFree and GPA: their numbers, their two modes, and what they cannot go around."""

from __future__ import annotations

from collections import defaultdict

import peers
import pytest
import torch
from harness import assert_moved, assert_same, feed, flattened, parameters, through_disk, values
from torch import nn

import hfoptim
from hfoptim import EMA, GPA, CombinedOptimizer, ScheduleFree
from hfoptim.engine import run_state

NAMES = ("vector", "matrix", "conv")
STEPS = range(1, 51)
INNER = {
    "RMSprop": lambda params: torch.optim.RMSprop(params, lr=1e-2),
    "SGD": lambda params: torch.optim.SGD(params, lr=1e-2, momentum=0.9, weight_decay=0.1),
    "hfoptim.AdamW": lambda params: hfoptim.AdamW(params, lr=1e-2, weight_decay=0.1),
}
every_inner = pytest.mark.parametrize("make", INNER.values(), ids=INNER)


def theirs_around(inner, **options):
    """schedulefree's wrapper, with its z apart from the inner state, which torch's optimizers want empty at first."""
    peer = peers.load("schedulefree.ScheduleFreeWrapper")

    class Apart(peer):
        state = property(lambda self: self.of_its_own)
        of_its_own = defaultdict(dict)

    made = Apart(inner, **options)
    made.train()
    return made


def follows(ours, theirs, mine, other, steps=STEPS, step=lambda t: None):
    start = values(mine)
    for t in steps:
        step(t)
        feed(mine, t, follow=other)
        feed(other, t)
        ours.step()
        theirs.step()
    for switch in (None, "eval", "train"):
        if switch:
            getattr(ours, switch)()
            getattr(theirs, switch)()
        way = (flattened(mine) - torch.cat([start[name].flatten() for name in mine])).abs().max()
        assert (flattened(mine) - flattened(other)).abs().max() < 1e-12 * way, switch
    assert_moved(mine, start)


@every_inner
@pytest.mark.parametrize(
    "options", [{}, {"weight_decay_at_y": 0.1, "momentum": 0.7, "r": 1.0, "weight_lr_power": 1.0}], ids=str
)
def test_follows_schedulefree(make, options):
    mine, other = parameters(NAMES, torch.float64), parameters(NAMES, torch.float64)
    ours = ScheduleFree(make(list(mine.values())), **options)
    theirs = theirs_around(make(list(other.values())), **options)
    peak = ours.param_groups[0]["lr"]

    def warm_up(t):
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["lr"] = peak * min(1.0, t / 10)

    follows(ours, theirs, mine, other, step=warm_up)


class ByThePaper:
    """Primal averaging as its paper has it: x and z are kept, y is made of them."""

    def __init__(self, make, params, mu_x, mu_y):
        self.y, self.mu_x, self.mu_y = params, mu_x, mu_y
        self.x, self.z = ([nn.Parameter(param.detach().clone()) for param in params] for _ in range(2))
        self.inner = make(self.z)

    def show(self, weights):
        for y, value in zip(self.y, weights, strict=True):
            y.detach().copy_(value)

    def step(self):
        for y, z in zip(self.y, self.z, strict=True):
            z.grad = y.grad
        self.inner.step()
        for x, z in zip(self.x, self.z, strict=True):
            x.detach().mul_(self.mu_x).add_(z.detach(), alpha=1.0 - self.mu_x)
        self.train()

    def eval(self):
        self.show([x.detach() for x in self.x])

    def train(self):
        mu = self.mu_y
        self.show([mu * x.detach() + (1.0 - mu) * z.detach() for x, z in zip(self.x, self.z, strict=True)])


@every_inner
@pytest.mark.parametrize(("train", "keep"), [(0.7, 0.9967), (1.0, 0.8)])
def test_gpa_is_that_of_the_paper(make, train, keep):
    mine, other = parameters(NAMES, torch.float64), parameters(NAMES, torch.float64)
    ours = GPA(make(list(mine.values())), train, keep)
    follows(ours, ByThePaper(make, list(other.values()), keep, train), mine, other)


def test_a_step_that_fails_leaves_the_weights():
    params = parameters(NAMES)
    optimizer = ScheduleFree(hfoptim.Lion(params.values(), lr=1e-2))
    for t in (1, 2):
        feed(params, t)
        optimizer.step()
    before = values(params)
    optimizer.optimizer.step = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    assert_same(values(params), before)
    assert optimizer.param_groups[0]["schedule_free_step"] == 2


@pytest.mark.parametrize("options", [{}, {"master_weights": 16}], ids=str)
def test_weights_in_bfloat16_keep_what_rounding_left(options):
    params = parameters(NAMES, torch.bfloat16)
    whole = {name: nn.Parameter(param.detach().float()) for name, param in params.items()}
    both = [ScheduleFree(hfoptim.Lion(some.values(), lr=1e-4, **options)) for some in (params, whole)]
    for t in range(1, 21):
        feed(params, t)
        for name, param in whole.items():
            param.grad = params[name].grad.float()
        for optimizer in both:
            optimizer.step()
    # 20 steps of 1e-4 are below the spacing around 1, which is 1/128.
    for name, param in params.items():
        assert (both[0].exact(param) - whole[name].detach()).abs().max() < 1e-4


def test_a_step_in_evaluation_mode_is_refused():
    params = parameters(NAMES)
    optimizer = ScheduleFree(hfoptim.Lion(params.values(), lr=1e-2))
    optimizer.eval()
    with pytest.raises(RuntimeError, match=r"call optimizer.train\(\)"):
        optimizer.step()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda params: torch.optim.LBFGS(params), "LBFGS evaluates the model anew"),
        (lambda params: hfoptim.Adahessian(params), "graph of the gradients"),
        (lambda params: hfoptim.AdamWScheduleFree(params), "AdamWScheduleFree has an evaluation mode"),
        (lambda params: EMA(torch.optim.SGD(params, lr=0.1)), "EMA has an evaluation mode"),
        (lambda params: GPA(torch.optim.SGD(params, lr=0.1)), "another GPA"),
    ],
)
def test_goes_around_nothing_that_it_would_disturb(make, match):
    with pytest.raises(ValueError, match=match):
        ScheduleFree(make(list(parameters(NAMES).values())))


@pytest.mark.parametrize("wrapper", [EMA, ScheduleFree])
def test_goes_around_several_as_one_where_none_of_them_has_two_modes(wrapper):
    matrix, vector = parameters(("matrix",)), parameters(("vector",))
    first = torch.optim.SGD(matrix.values(), lr=0.1)
    params = {**matrix, **vector}
    optimizer = wrapper(CombinedOptimizer([first, torch.optim.SGD(vector.values(), lr=0.1)]))
    feed(params, 1)
    optimizer.step()
    with pytest.raises(ValueError, match="SGDScheduleFree has an evaluation mode"):
        wrapper(CombinedOptimizer([first, hfoptim.SGDScheduleFree(vector.values())]))


def test_a_step_size_found_on_a_device_is_not_waited_for():
    params = [nn.Parameter(torch.empty(3, 4, device="meta")) for _ in range(2)]
    optimizer = ScheduleFree(hfoptim.Prodigy(params))
    for _ in range(3):
        for param in params:
            param.grad = torch.empty_like(param)
        optimizer.step()
    (group,) = optimizer.param_groups
    for name in ("schedule_free_lr_max", "schedule_free_weight_sum"):
        assert group[name].device.type == "meta"
        assert group[name].shape == ()


def test_a_step_size_found_on_a_device_gives_the_same_weights(monkeypatch):
    mine, other = parameters(NAMES, torch.float64), parameters(NAMES, torch.float64)
    host, device = (ScheduleFree(hfoptim.Prodigy(params.values(), d0=1e-2)) for params in (mine, other))
    start = values(mine)
    for t in range(1, 21):
        feed(mine, t)
        feed(other, t, follow=mine)
        host.step()
        with monkeypatch.context() as patch:
            patch.setattr(run_state, "HOST", ())
            device.step()
    torch.testing.assert_close(flattened(mine), flattened(other), rtol=1e-11, atol=1e-12)
    assert_moved(mine, start)
    assert isinstance(device.param_groups[0]["schedule_free_weight_sum"], torch.Tensor)
    resumed = ScheduleFree(hfoptim.Prodigy(mine.values()))
    resumed.load_state_dict(through_disk(device.state_dict()))
    resumed.step()
    assert isinstance(resumed.param_groups[0]["schedule_free_weight_sum"], float)
