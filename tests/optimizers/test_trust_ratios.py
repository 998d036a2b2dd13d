"""What only LAMB, LARS and NovoGrad have: steps that go by norms of tensors."""

from __future__ import annotations

import peers
import pytest
import torch
from harness import assert_same, feed, parameters, through_disk, train, values

import hfoptim

NAMES = ("matrix", "vector", "conv")


def moved(params, start):
    return {name: start[name] - param.detach() for name, param in params.items()}


def test_a_step_of_lamb_is_as_long_as_lr_times_the_parameter():
    params = parameters(NAMES, torch.float64)
    optimizer = hfoptim.Lamb(list(params.items()), lr=0.01, weight_decay=0.1)
    for t in range(1, 5):
        start = values(params)
        feed(params, t)
        optimizer.step()
        for name, step in moved(params, start).items():
            torch.testing.assert_close(step.norm(), 0.01 * start[name].norm())


def test_a_step_of_lars_is_a_share_of_the_parameter():
    params = parameters(NAMES, torch.float64)
    optimizer = hfoptim.Lars(list(params.items()), lr=0.5, trust_coeff=0.02, eps=0.0, always_adapt=True)
    start = values(params)
    feed(params, 1)
    optimizer.step()
    for name, step in moved(params, start).items():
        torch.testing.assert_close(step, 0.5 * 0.02 * start[name].norm() * params[name].grad / params[name].grad.norm())


def test_larc_takes_no_longer_a_step_than_plain_descent():
    params = parameters(NAMES, torch.float64)
    optimizer = hfoptim.Lars(list(params.items()), lr=0.5, trust_coeff=1e3, trust_clip=True, always_adapt=True)
    start = values(params)
    feed(params, 1)
    optimizer.step()
    for name, step in moved(params, start).items():
        torch.testing.assert_close(step, 0.5 * params[name].grad)


def test_parameters_without_decay_are_not_adapted_unless_asked_for():
    for make, plain in (
        (
            lambda p, **o: hfoptim.Lamb(p, lr=0.01, weight_decay=0.0, max_grad_norm=None, **o),
            lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-6),
        ),
        (lambda p, **o: hfoptim.Lars(p, lr=0.01, momentum=0.9, **o), lambda p: torch.optim.SGD(p, 0.01, 0.9)),
    ):
        mine, other, adapted = (parameters(NAMES, torch.float64) for _ in range(3))
        train(make(list(mine.items())), mine, range(1, 5))
        train(plain(list(other.values())), other, range(1, 5))
        train(make(list(adapted.items()), always_adapt=True), adapted, range(1, 5))
        for name in NAMES:
            torch.testing.assert_close(mine[name], other[name], rtol=1e-10, atol=1e-12)
            assert not torch.allclose(mine[name], adapted[name])


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("clip", [False, True])
def test_where_a_norm_is_zero_the_ratio_is_one(clip, foreach):
    start = torch.tensor([1.0, -2.0], dtype=torch.float64)
    for cls, unit in ((hfoptim.Lamb, 1.0), (hfoptim.Lars, 3.0)):
        options = {"eps": 1e-12, "always_adapt": True, "trust_clip": clip, "foreach": foreach}
        at_zero, at_rest = (torch.nn.Parameter(p) for p in (torch.zeros_like(start), start.clone()))
        optimizer = cls([at_zero, at_rest], lr=0.1, weight_decay=0.0, **options)
        at_zero.grad, at_rest.grad = torch.full_like(start, 3.0), torch.zeros_like(start)
        for group in optimizer.param_groups:
            group |= {"max_grad_norm": None} if cls is hfoptim.Lamb else {}
        optimizer.step()
        torch.testing.assert_close(at_zero.detach(), torch.full_like(start, -0.1 * unit))
        assert_same(at_rest.detach(), start)


def test_larc_survives_the_first_learning_rate_of_a_warmup():
    params = parameters(NAMES)
    optimizer = hfoptim.Lars(list(params.items()), lr=0.0, momentum=0.9, weight_decay=0.1, trust_clip=True)
    start = values(params)
    train(optimizer, params, range(1, 3))
    assert_same(values(params), start)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    train(optimizer, params, range(3, 5))
    assert all(param.isfinite().all() and not torch.equal(param, start[name]) for name, param in params.items())


def test_lamb_clips_by_the_norm_of_all_gradients_in_all_groups_and_dtypes():
    def run(max_grad_norm, scale):
        params = parameters(NAMES, torch.float64)
        params["vector"] = torch.nn.Parameter(params["vector"].detach().to(torch.bfloat16))
        # A step from a beta of 0 and a large eps grows with the gradient.
        options = {"betas": (0.0, 0.5), "eps": 10.0, "weight_decay": 0.0, "max_grad_norm": max_grad_norm}
        optimizer = hfoptim.Lamb([{"params": [(n, p)], "foreach": n != "conv"} for n, p in params.items()], **options)
        feed(params, 1)
        norm = sum(float(p.grad.double().square().sum()) for p in params.values()) ** 0.5
        for param in params.values():
            param.grad = param.grad * (scale / norm if scale else 1.0)
        optimizer.step()
        return {name: optimizer.state[param]["exp_avg"].double() for name, param in params.items()}

    clipped, scaled, large = run(0.5, None), run(None, 0.5), run(1e6, None)
    for name in NAMES:
        torch.testing.assert_close(clipped[name], scaled[name], rtol=1e-2 if name == "vector" else 1e-6, atol=0.0)
        torch.testing.assert_close(large[name], run(None, None)[name])
        assert not torch.allclose(large[name], clipped[name])


def test_novograd_does_not_see_the_size_of_the_gradients():
    runs = [parameters(NAMES, torch.float64) for _ in range(2)]
    for params, size in zip(runs, (1.0, 1e4), strict=True):
        optimizer = hfoptim.NvNovoGrad(list(params.items()), lr=0.01, eps=0.0, weight_decay=0.1)
        for t in range(1, 6):
            feed(params, t, follow=runs[0])
            for param in params.values():
                param.grad = size * param.grad
            optimizer.step()
    for name in NAMES:
        torch.testing.assert_close(runs[0][name], runs[1][name], rtol=1e-3, atol=1e-4)


def test_novograds_second_moment_starts_with_the_first_gradient_that_is_not_zero():
    params = parameters(NAMES, torch.float64)
    start = values(params)
    optimizer = hfoptim.NvNovoGrad(list(params.items()), betas=(0.9, 0.5))
    for t in range(1, 4):
        feed(params, t)
        for param in params.values():
            param.grad = param.grad * (t > 2)
        optimizer.step()
        if t < 3:
            assert_same(values(params), start)
    for param in params.values():
        torch.testing.assert_close(optimizer.state[param]["exp_avg_sq"], param.grad.square().sum())


@pytest.mark.parametrize(("name", "cls"), [("lamb", hfoptim.Lamb), ("nvnovograd", hfoptim.NvNovoGrad)])
def test_a_checkpoint_of_timm_says_where_it_decays(name, cls):
    params = parameters(NAMES)
    try:
        of_timm = peers.load(f"timm.optim.{name}.{cls.__name__}")
    except peers.MissingPeer as missing:
        pytest.skip(str(missing))
    theirs = of_timm(list(params.values()), decoupled_decay=True)
    train(theirs, params, range(1, 3))
    ours = cls(list(params.values()))
    ours.load_state_dict(through_disk(theirs.state_dict()))
    assert ours.param_groups[0]["decoupled_decay"] is True
    # Without a decoupled decay there is none to correct.
    theirs = of_timm(list(params.values()), corrected_weight_decay=True)
    train(theirs, params, range(1, 3))
    with pytest.raises(ValueError, match="corrected_weight_decay=True needs decoupled weight decay"):
        cls(list(params.values())).load_state_dict(through_disk(theirs.state_dict()))


def test_limits_of_zero_are_refused():
    params = list(parameters(NAMES).values())
    with pytest.raises(ValueError, match="max_grad_norm=0 would erase"):
        hfoptim.Lamb(params, max_grad_norm=0.0)
    with pytest.raises(ValueError, match="trust_coeff=0 would stop"):
        hfoptim.Lars(params, trust_coeff=0.0)
    with pytest.raises(ValueError, match=r"nesterov=True needs momentum > 0.*momentum=0\.0"):
        hfoptim.Lars(params, nesterov=True)
