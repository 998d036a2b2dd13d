"""Run state and inputs of a step: the engine sums, keeps, saves and hands out what an optimizer declares."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import pickle
import pkgutil
from pathlib import Path

import pytest
import torch
from harness import assert_moved, assert_same, feed, parameters, through_disk, train, values
from of_loss_and_distance import AliG, DoG, LossScaled
from ranks import run_ranks

import hfoptim
from hfoptim import optimizers
from hfoptim.engine import RuleOptimizer, run_state
from hfoptim.training.gradient_release import prepare_for_gradient_release

LAYOUTS = ("scalar", "vector", "matrix", "conv")
NAMES = {DoG: ("distance", "grad_sum", "k"), AliG: ("average",)}
MODULES = [
    importlib.import_module(found.name) for found in pkgutil.walk_packages(optimizers.__path__, "hfoptim.optimizers.")
]


def loss_of(params, t):
    flat = torch.cat([p.reshape(-1) for p in params.values()])
    return (flat - torch.linspace(-1, 1, flat.numel(), dtype=flat.dtype) * (1 + t % 3)).square().sum()


def steps(optimizer, params, ts):
    """Steps with the gradient of `loss_of`, which is told, too."""
    for t in ts:
        optimizer.zero_grad()
        loss = loss_of(params, t)
        loss.backward()
        optimizer.step(loss=loss)


def numbers(optimizer):
    return [[group[name] for name in NAMES[type(optimizer)]] for group in optimizer.param_groups]


# -- no optimizer goes behind the engine's back ------------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_no_optimizer_overrides_the_step_or_knows_of_ranks(module):
    classes = [c for _, c in inspect.getmembers(module, inspect.isclass) if issubclass(c, RuleOptimizer)]
    for cls in classes:
        above = cls.__mro__[: cls.__mro__.index(RuleOptimizer)]
        # torch puts a function around `step` into each class that an optimizer is made of.
        overridden = {
            (c.__name__, name)
            for c in above
            for name, own in vars(c).items()
            if name in FINAL and inspect.unwrap(own) is not inspect.unwrap(getattr(RuleOptimizer, name))
        }
        assert not overridden
    tree = ast.parse(inspect.getsource(module))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            imported.add(f"{node.value.id}.{node.attr}")
    assert not [name for name in imported if name.startswith(("torch.distributed", "hfoptim.engine.distributed"))]


# What is the engine's alone.
FINAL = {"step", "_step", "_run", "_collect", "_begin", "_scalars"}


# -- a distance over all tensors ---------------------------------------------------------------------------------------


def dog_by_hand(params, gradients, lr=1.0, reps_rel=1e-3):
    start = {name: p.clone() for name, p in params.items()}

    def norm_sq(tensors):
        return sum(t.square().sum() for t in tensors)

    distance, total = reps_rel * (1 + norm_sq(start.values()).sqrt()), 0.0
    for grads in gradients:
        gone = norm_sq(params[name] - start[name] for name in params).sqrt()
        distance, total = torch.maximum(distance, gone), total + norm_sq(grads.values())
        params = {name: p - lr * distance / total.sqrt() * grads[name] for name, p in params.items()}
    return params, float(distance), float(total)


@pytest.mark.parametrize("foreach", [False, True])
def test_a_distance_is_found_over_all_tensors_and_groups(foreach):
    params = parameters(LAYOUTS, torch.float64)
    first, *rest = params.values()
    optimizer = DoG([{"params": [first]}, {"params": rest}], foreach=foreach, lr=0.5)
    start, gradients = values(params), []
    for t in range(1, 11):
        feed(params, t)
        gradients.append({name: p.grad.clone() for name, p in params.items()})
        optimizer.step()
    wanted, distance, total = dog_by_hand(start, gradients, lr=0.5)
    for name, param in params.items():
        torch.testing.assert_close(param.detach(), wanted[name], rtol=1e-12, atol=1e-14)
    assert numbers(optimizer) == [pytest.approx([distance, total, 10], rel=1e-12)] * 2
    assert [type(value) for value in numbers(optimizer)[0]] == [float, float, int]


@pytest.mark.parametrize("cls", [DoG, AliG])
def test_a_step_reads_nothing_back_from_the_device(cls):
    # A tensor on "meta" has no value to read: that would raise.
    params = {name: torch.nn.Parameter(p.detach().to("meta")) for name, p in parameters(("matrix", "vector")).items()}
    optimizer = cls(list(params.values()), foreach=True)
    for _ in range(3):
        for param in params.values():
            param.grad = torch.empty_like(param)
        optimizer.step(loss=torch.empty((), device="meta"))
    for value in numbers(optimizer)[0]:
        assert value == 3 if isinstance(value, int) else value.device.type == "meta" and value.shape == ()


@pytest.mark.parametrize("cls", [DoG, AliG])
def test_tensors_on_a_device_and_numbers_on_the_host_are_the_same(cls, monkeypatch):
    mine, other = parameters(LAYOUTS, torch.float64), parameters(LAYOUTS, torch.float64)
    host, device = cls(list(mine.values())), cls(list(other.values()))
    steps(host, mine, range(1, 8))
    with monkeypatch.context() as patch:
        patch.setattr(run_state, "HOST", ())
        steps(device, other, range(1, 8))
    for name in mine:
        torch.testing.assert_close(mine[name], other[name], rtol=1e-12, atol=0.0)
    for a, b in zip(numbers(host)[0], numbers(device)[0], strict=True):
        assert float(b) == pytest.approx(a, rel=1e-12)
    assert isinstance(device.param_groups[0][NAMES[cls][0]], torch.Tensor)
    # A checkpoint goes from one to the other.
    resumed = cls(list(mine.values()))
    resumed.load_state_dict(through_disk(device.state_dict()))
    steps(resumed, mine, range(8, 9))
    assert isinstance(numbers(resumed)[0][0], float)


@pytest.mark.parametrize("cls", [DoG, AliG])
def test_run_state_is_saved_copied_and_pickled(cls):
    whole, resumed = parameters(LAYOUTS), parameters(LAYOUTS, seed=1)
    optimizer, again = cls(list(whole.items())), cls(list(resumed.items()))
    steps(optimizer, whole, range(1, 5))
    saved, weights = through_disk(optimizer.state_dict()), values(whole)
    assert set(NAMES[cls]) <= saved["param_groups"][0].keys()
    again.load_state_dict(saved)
    with torch.no_grad():
        for name, param in resumed.items():
            param.copy_(weights[name])
    twins = copy.deepcopy((whole, optimizer)), pickle.loads(pickle.dumps((whole, optimizer)))
    for params, each in ((whole, optimizer), (resumed, again), *twins):
        steps(each, params, range(5, 9))
    for params, each in ((resumed, again), *twins):
        assert_same(values(params), values(whole))
        assert numbers(each) == numbers(optimizer)


def test_buckets_are_found_again_while_the_run_state_moves():
    params = parameters(LAYOUTS)
    optimizer = DoG(list(params.values()))
    steps(optimizer, params, range(1, 2))
    kept, before = optimizer._last_step, numbers(optimizer)
    steps(optimizer, params, range(2, 4))
    assert optimizer._last_step is kept
    assert numbers(optimizer) != before


def test_groups_share_one_and_a_later_one_joins_in():
    params = parameters(LAYOUTS)
    optimizer = DoG([params["matrix"]])
    train(optimizer, params, range(1, 4), only=("matrix",))
    optimizer.add_param_group({"params": [params["vector"]]})
    assert numbers(optimizer)[0] == numbers(optimizer)[1]
    assert optimizer.param_groups[1]["k"] == 3
    with pytest.raises(ValueError, match=r"reps_rel=0\.5 in one group and 0\.001 in another: DoG makes one estimate"):
        optimizer.add_param_group({"params": [params["conv"]], "reps_rel": 0.5})


def test_without_a_gradient_it_stays_as_it_was():
    params = parameters(LAYOUTS)
    optimizer = DoG(list(params.values()))
    optimizer.step()
    assert numbers(optimizer) == [[0.0, 0.0, 0]]


def test_numbers_of_a_wrong_kind_are_refused():
    params = list(parameters(("matrix",)).values())
    with pytest.raises(ValueError, match=r"k=2\.5 is not a whole number"):
        DoG([{"params": params, "k": 2.5}])
    with pytest.raises(TypeError, match="DoG has no option 'kk'"):
        DoG(params, kk=1)


# -- the loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["argument", "closure", "told", "in parts", "number"])
def test_the_loss_reaches_the_step(how):
    params = parameters(LAYOUTS, torch.float64)
    optimizer = AliG(list(params.values()), lr=10.0, eps=1e-3)
    loss = loss_of(params, 1)
    start = values(params)

    def closure():
        optimizer.zero_grad()
        again = loss_of(params, 1)
        again.backward()
        return again

    if how == "closure":
        assert torch.equal(optimizer.step(closure), loss)
    elif how == "in parts":
        for _ in range(4):
            part = loss_of(params, 1) / 4
            part.backward()
            optimizer.add_loss(part)
        optimizer.step()
    else:
        loss.backward()
        if how == "told":
            optimizer.add_loss(loss)
        optimizer.step(loss={"argument": loss, "number": loss.item(), "told": None}[how])
    grads = {name: p.grad for name, p in params.items()}
    size = loss.detach() / (sum(g.square().sum() for g in grads.values()) + 1e-3)
    for name, param in params.items():
        torch.testing.assert_close(param.detach(), start[name] - size * grads[name], rtol=1e-12, atol=1e-14)
    assert optimizer.param_groups[0]["average"] == pytest.approx(0.1 * loss.item())
    with pytest.raises(RuntimeError, match=r"step of AliG depends on the loss, .* step\(loss=loss"):
        optimizer.step()  # one loss is for one step


def test_a_step_that_only_makes_state_leaves_no_loss_for_the_next():
    param = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = AliG([param], lr=0.0)
    param.grad = torch.zeros_like(param)
    optimizer.step(loss=5.0)
    assert optimizer.state[param]["step"] == 0.0
    with pytest.raises(RuntimeError, match="depends on the loss, which it was not told"):
        optimizer.step()


def test_the_loss_may_reach_per_step_alone():
    param = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = LossScaled([param], lr=0.5)
    param.grad = torch.ones_like(param)
    optimizer.step(loss=0.25)
    assert_same(param.detach(), torch.full((2,), 0.875, dtype=torch.float64))


@pytest.mark.parametrize(("cls", "options"), [(hfoptim.Momo, {"lr": 1.0, "lb": -9.0}), (hfoptim.AliG, {})], ids=str)
def test_to_maximize_is_to_minimize_the_negated_loss(cls, options):
    up, down = parameters(LAYOUTS), parameters(LAYOUTS)
    one = cls(list(up.values()), maximize=True, **options)
    other = cls(list(down.values()), **options)
    for t in range(1, 6):
        feed(up, t)
        feed(down, t)
        for param in down.values():
            param.grad.neg_()
        one.step(loss=-10.0 / t)
        other.step(loss=10.0 / t)
    assert_same(up, down)
    assert_moved(up, parameters(LAYOUTS))


def test_optimizers_without_need_for_it_take_the_loss_all_the_same():
    params, other = parameters(LAYOUTS), parameters(LAYOUTS)
    for each, given in ((params, {"loss": 1.0}), (other, {})):
        optimizer = hfoptim.AdamW(list(each.values()))
        feed(each, 1)
        optimizer.step(**given)
    assert_same(values(params), values(other))


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (torch.ones(3), ValueError, r"loss has the shape \(3,\), expected one number"),
        ("low", TypeError, "loss='low' is a str"),
        (True, TypeError, "loss=True is a bool"),
    ],
    ids=str,
)
def test_what_is_no_loss_is_refused(loss, error, message):
    params = parameters(("matrix",))
    optimizer = AliG(list(params.values()))
    feed(params, 1)
    with pytest.raises(error, match=message):
        optimizer.step(loss=loss)


def test_wrappers_hand_the_closures_loss_on():
    def run(make, params):
        optimizer = make(params)

        def closure():
            optimizer.zero_grad()
            loss = loss_of(params, 1)
            loss.backward()
            return loss

        optimizer.step(closure)
        return values(params)

    plain = run(lambda p: AliG(list(p.values())), parameters(LAYOUTS))
    around = run(lambda p: hfoptim.Lookahead(AliG(list(p.values())), k=5), parameters(LAYOUTS))
    together = run(lambda p: hfoptim.CombinedOptimizer([AliG(list(p.values()))]), parameters(LAYOUTS))
    assert_same(around, plain)
    assert_same(together, plain)
    sharp = run(lambda p: hfoptim.SAM(None, AliG(list(p.values())), rho=1e-9), parameters(LAYOUTS))
    for name in plain:
        torch.testing.assert_close(sharp[name], plain[name], rtol=1e-4, atol=1e-5)


def test_grad_scaler_is_refused():
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = AliG([param])
    scaler = torch.amp.GradScaler("cpu")
    loss = param.square().sum()
    scaler.scale(loss).backward()
    optimizer.add_loss(loss)
    with pytest.raises(RuntimeError, match="GradScaler leaves out steps whose gradients overflow"):
        scaler.step(optimizer)


@pytest.mark.parametrize(
    ("cls", "why"), [(DoG, "something from all gradients first"), (LossScaled, "needs the loss"), (AliG, "first")]
)
def test_gradient_release_is_refused(cls, why):
    model = torch.nn.Linear(3, 2)
    with pytest.raises(ValueError, match=f"{cls.__name__} does not work with gradient release: .*{why}"):
        prepare_for_gradient_release(model, cls(model.parameters()))


# -- two processes -----------------------------------------------------------------------------------------------------


def test_two_processes_take_the_steps_of_one(tmp_path):
    tests = Path(__file__).resolve().parents[1]
    store = str(tmp_path / "store")
    worker, paths = tests / "run_state_worker.py", [tests / "optimizers"]
    said = run_ranks(worker, store, "{rank}", ranks=2, output=tmp_path, timeout=240, paths=paths)
    assert all("sharded ddp" in each for each in said)
