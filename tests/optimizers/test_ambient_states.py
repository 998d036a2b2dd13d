"""`optimizer.step()` inside of autocast, inference mode, another default dtype or device: the step as it is outside.

The states of torch that a user may have switched on, over every name of the catalogue. What cannot be the same bit for
bit is said here, with the reason.
"""

from __future__ import annotations

import contextlib
import copy
import functools

import pytest
import torch
from harness import assert_same, feed, parameters, train, values
from tiers import is_without_sums, names_by_kind
from told import at_one_place
from torch import nn

import hfoptim
from hfoptim.engine import ambient, storage
from hfoptim.optimizers.shared import newton_schulz
from schedules import curves

# Of those that take gradients of every kind; test_sparse.py has the others.
NAMES = [
    *(name for name in map(str, hfoptim.list_optimizers()) if not hfoptim.get_optimizer_info(name).sparse_only),
    *("lookahead_adamw", "lookahead_muon", "sam_sgd", "sam_muon"),
]
SECOND_ORDER = [name for name in NAMES if hfoptim.get_optimizer_info(name).second_order]
LAYOUTS = ("matrix", "wide", "vector", "stack", "mlp.weight", "embed.weight")
STEPS = range(1, 5)
INSIDE = (1, 3)  # the first step, which makes the state, and one between two outside


@contextlib.contextmanager
def switched(switch, value, back):
    switch(value)
    try:
        yield
    finally:
        switch(back)


def full_precision():
    """Every switch of the precision of float32 products as it is at first."""
    torch.set_float32_matmul_precision("highest")
    if hasattr(torch.backends.mkldnn, "matmul"):
        torch.backends.mkldnn.matmul.fp32_precision = "none"


def mkldnn_precision(value):
    torch.backends.mkldnn.matmul.fp32_precision = value


@contextlib.contextmanager
def nested(*contexts):
    with contextlib.ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


STATES = {
    "autocast_bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast_float16": lambda: torch.autocast("cpu", torch.float16),
    "inference_mode": torch.inference_mode,
    "default_float64": lambda: switched(torch.set_default_dtype, torch.float64, torch.float32),
    "default_bfloat16": lambda: switched(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "default_device": lambda: switched(torch.set_default_device, "meta", None),
    "with_device": lambda: torch.device("meta"),
    "deterministic": lambda: switched(torch.use_deterministic_algorithms, True, False),
    "enable_grad": torch.enable_grad,
    "no_grad": torch.no_grad,
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "autocast_in_inference_mode": lambda: nested(torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)),
}


def make(name, params, **options):
    if name == "lbfgs":
        return hfoptim.get_optimizer_class(name)(list(params.values()))
    if name == "bsam":
        return at_one_place(hfoptim.BSAM)(list(params.items()), **options)
    return hfoptim.get_optimizer_class(name)(list(params.items()), **options)


def with_graph(params):
    """Gradients that can be differentiated."""
    for param in params.values():
        param.grad = None
    loss = sum((p.float().flatten(1) @ p.float().flatten(1).T).tanh().sum() for p in params.values() if p.ndim > 1)
    (loss + params["vector"].float().tanh().sum()).backward(create_graph=True)


def steps(name, state, dtype, options, inside=INSIDE):
    """Parameters and state after some steps, those of `inside` in a state of STATES. Gradients come from outside."""
    params = parameters(LAYOUTS, dtype)
    optimizer = make(name, params, **options)
    second = parameters(LAYOUTS, dtype, seed=1)
    for t in STEPS:
        feed(second, t)
        feed(params, t)
        if name in SECOND_ORDER:
            with_graph(params)

        def closure(first=(second, params)):
            for key, param in first[1].items():
                param.grad = first[0][key].grad
            return 1.0

        with STATES[state]() if state is not None and t in inside else contextlib.nullcontext():
            if name.startswith("sam"):
                optimizer.first_step()
                closure()
                optimizer.second_step()
            elif name == "lbfgs":
                optimizer.step(closure)
            else:
                optimizer.step(**({"loss": 100.0} if getattr(optimizer, "needs_loss", False) else {}))
    return values(params), optimizer.state_dict()


@functools.cache
def outside(name, dtype, options):
    return steps(name, None, dtype, dict(options))


def assert_as_outside(name, state, dtype, **options):
    found = steps(name, state, dtype, options)
    assert_same(found, outside(name, dtype, tuple(options.items())))
    # What was made in the state can be written to, and a checkpoint holds nothing odd.
    for kept in found[1]["state"].values():
        assert not any(isinstance(value, torch.Tensor) and value.is_inference() for value in kept.values())


@pytest.mark.parametrize("name", names_by_kind(NAMES))
@pytest.mark.parametrize("state", STATES)
def test_a_step_is_the_same_in_every_state(state, name):
    if name == "lbfgs":
        if "inference" in state:
            pytest.skip("torch's own class; see test_torchs_lbfgs_in_inference_mode")
        assert_as_outside(name, state, torch.float32)
        return
    assert_as_outside(name, state, torch.float32, foreach=True)
    if state in ("autocast_bfloat16", "inference_mode", "default_float64", "default_device"):
        assert_as_outside(name, state, torch.bfloat16, foreach=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "lbfgs"])
@pytest.mark.parametrize("state", STATES)
def test_a_step_is_the_same_in_every_state_compiled_and_coded(state, name):
    # No kernel is generated for an estimate from every 11th entry.
    every = {"slice_p": 1} if name == "prodigy_plus_schedule_free" else {}
    assert_as_outside(name, state, torch.float32, fused=True, **every)
    assert_as_outside(name, state, torch.bfloat16, fused=True, **every)
    assert_as_outside(name, state, torch.bfloat16, foreach=False)
    if name == "flashadamw":  # has 8 bits and 24-bit weights by itself, and takes no float16
        return
    assert_as_outside(name, state, torch.float16, foreach=True)
    if name != "prodigy":
        coded = {"state_dtype": "8bit", "state_rounding": "stochastic"}
        assert_as_outside(name, state, torch.bfloat16, stochastic_rounding=True, **coded)


@pytest.mark.parametrize("state", ["autocast_bfloat16", "inference_mode", "default_device"])
@pytest.mark.parametrize("name", ["adamw", "lamb", "prodigy"])
def test_a_compiled_step_is_the_same_in_the_states_that_reach_furthest(name, state):
    from hfoptim.engine.backends import compiled

    if compiled.missing():
        pytest.skip(f"needs {compiled.missing()}")
    assert_as_outside(name, state, torch.float32, fused=True)


def test_tables_made_at_a_first_step_in_a_state_serve_all_others():
    def coded(state):
        for table in (storage.codebook, storage.codebooks.midpoints, storage.codebooks.least_codes):
            table.cache_clear()
        params = {"weight": nn.Parameter(torch.linspace(-1, 1, 5000))}
        optimizer = hfoptim.AdamW(list(params.items()), lr=1e-2, state_dtype="8bit")
        for t in (1, 2):
            feed(params, t)
            with STATES[state]() if state and t == 1 else contextlib.nullcontext():
                optimizer.step()
        return values(params)

    want = coded(None)
    for state in STATES:
        assert_same(coded(state), want)


# -- autocast ----------------------------------------------------------------------------------------------------------


def test_the_guard_costs_nothing_where_nothing_is_switched_on():
    assert ambient.undisturbed() is ambient.undisturbed()
    with torch.autocast("cpu", torch.bfloat16):
        assert ambient.undisturbed() is not ambient._NOTHING_ON
        with ambient.undisturbed():
            assert not torch.is_autocast_enabled("cpu")
            assert ambient.undisturbed() is ambient._NOTHING_ON
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") is torch.bfloat16


def test_a_step_where_torch_has_no_accelerator_to_name(monkeypatch):
    # torch 2.6 built for CPUs alone raises where later ones return None.
    def raises():
        raise RuntimeError("Cannot access accelerator device when none is available.")

    ambient._device_types.cache_clear()
    monkeypatch.setattr(torch.accelerator, "current_accelerator", raises)
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    with torch.autocast("cpu", torch.bfloat16):
        hfoptim.Lion([param], lr=0.5).step()
    assert param.tolist() == [0.5, 0.5, 0.5]
    ambient._device_types.cache_clear()


def test_muon_stays_small_in_autocast():
    """Gradients of rank 2: bfloat16 products where float32's were counted on moved this by 3.9."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(64, 16, generator=generator)
    grads = [torch.randn(64, 2, generator=generator) @ torch.randn(2, 16, generator=generator) for _ in range(3)]
    ends = []
    for inside in (True, False):
        param = nn.Parameter(start.clone())
        optimizer = hfoptim.Muon([param], lr=1e-3, weight_decay=0.0)
        for grad in grads:
            param.grad = grad.clone()
            with torch.autocast("cpu", torch.bfloat16, enabled=inside):
                optimizer.step()
        ends.append(param.detach() - start)
    assert torch.equal(ends[0], ends[1])
    assert 5e-4 < ends[0].abs().max() < 2e-3  # torch.optim.Muon's 0.0012


class Seen:
    """A closure that notes what it was called in."""

    def __init__(self, params):
        self.params, self.noted = params, []

    def __call__(self):
        self.noted.append((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
        feed(self.params, len(self.noted))
        return torch.tensor(2.0)


@pytest.mark.parametrize("name", ["adamw", "muon", "adamw_schedule_free", "lookahead_adamw", "sam_sgd", "lbfgs"])
def test_a_closure_sees_the_users_autocast(name):
    params = parameters(LAYOUTS)
    closure = Seen(params)
    with torch.autocast("cpu", torch.bfloat16):
        assert make(name, params).step(closure).item() == 2.0
    assert closure.noted
    assert set(closure.noted) == {(True, True)}


def trained(name, around):
    """A small network's weights after five steps, with a context around everything, and autocast in the closure."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))
    optimizer = make(name, dict(model.named_parameters()))
    data = torch.randn(12, 6)
    with around:
        for _ in range(5):

            def closure():
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16):
                    loss = (model(data) - data).float().square().mean()
                    loss.backward()
                return loss

            if name.startswith("sam"):
                closure()
            optimizer.step(closure)
    return values(dict(model.named_parameters()))


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon", "lookahead_sgd", "sam_sgd"])
def test_a_forward_pass_after_a_step_sees_the_new_weights(name):
    """Autocast keeps what it has cast until it ends: without a word from the step, all passes would see old weights."""
    want = trained(name, contextlib.nullcontext())
    for enabled in (True, False):
        assert_same(trained(name, torch.autocast("cpu", torch.bfloat16, enabled=enabled)), want)


def test_gradient_release_is_guarded_as_the_step_is():
    def released(state):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16, bias=False), nn.Tanh(), nn.Linear(16, 6, bias=False))
        optimizer = hfoptim.Muon([{"params": list(model.parameters()), "use_muon": True}], lr=1e-2)
        hfoptim.prepare_for_gradient_release(model, optimizer)
        for _ in range(3):
            loss = model(torch.linspace(-1, 1, 6).repeat(2, 1)).square().mean()
            with STATES[state]() if state else contextlib.nullcontext():
                loss.backward()
                optimizer.step()
        return values(dict(model.named_parameters()))

    want = released(None)
    for state in ("default_device", "default_float64", "deterministic"):  # backward itself goes by autocast
        assert_same(released(state), want)


# -- inference mode ----------------------------------------------------------------------------------------------------


def test_parameters_made_in_inference_mode_are_refused():
    with torch.inference_mode():
        param = nn.Parameter(torch.ones(3), requires_grad=False)
        param.grad = torch.ones(3)
        optimizer = hfoptim.AdamW([("weight", param)])
        with pytest.raises(RuntimeError, match=r"'weight' was made in torch.inference_mode\(\)"):
            optimizer.step()
    with pytest.raises(RuntimeError, match=r"'weight' was made in torch.inference_mode\(\)"):
        optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "lookahead_sgd", "adamw_schedule_free"])
def test_a_state_dict_loaded_in_inference_mode_can_be_gone_on_from(name):
    runs = []
    for inside in (False, True):
        params = parameters(LAYOUTS)
        optimizer = make(name, params)
        train(optimizer, params, range(1, 3))
        saved = copy.deepcopy(optimizer.state_dict())
        again = make(name, params)
        with torch.inference_mode(inside):
            if inside:  # as torch.load makes it there
                saved = torch.utils._pytree.tree_map_only(torch.Tensor, torch.clone, saved)
                assert any(v.is_inference() for v in saved["state"][0].values())
            again.load_state_dict(saved)
        if inside:  # and where it was read there, and is loaded outside
            again.load_state_dict(saved)
        train(again, params, range(3, 9))
        runs.append((values(params), again.state_dict()))
    assert_same(*runs)


def test_weights_are_switched_for_evaluation_in_inference_mode():
    runs = []
    for inside in (False, True):
        params = parameters(LAYOUTS)
        optimizer = hfoptim.AdamWScheduleFree(list(params.items()))
        train(optimizer, params, range(1, 3))
        with torch.inference_mode(inside):
            optimizer.eval()
        state = copy.deepcopy(optimizer.state_dict())
        optimizer.load_state_dict(state)
        with torch.inference_mode(inside):
            optimizer.train()
        train(optimizer, params, range(3, 5))
        runs.append((values(params), optimizer.state_dict()))
    assert_same(*runs)


def test_gradients_are_accumulated_in_any_state():
    def accumulated(state):
        params = parameters(("matrix", "vector"))
        accumulator = hfoptim.GradientAccumulator(list(params.values()))
        for t in range(1, 5):
            feed(params, t)
            with STATES[state]() if state and t % 2 else contextlib.nullcontext():
                accumulator()
        with STATES[state]() if state else contextlib.nullcontext():
            accumulator.apply_to()
        return {name: param.grad for name, param in params.items()}

    want = accumulated(None)
    for state in STATES:
        found = accumulated(state)
        assert_same(found, want)
        assert not any(grad.is_inference() for grad in found.values())


def test_torchs_lbfgs_in_inference_mode():
    """It is torch's class. A closure cannot compute gradients in inference mode, and torch says so at the next step."""
    with pytest.raises(RuntimeError, match="inference tensor"):
        steps("lbfgs", "inference_mode", torch.float32, {})


# -- what a step does depend on ----------------------------------------------------------------------------------------

PRECISIONS = {
    "medium": lambda: switched(torch.set_float32_matmul_precision, "medium", "highest"),
    "high": lambda: switched(torch.set_float32_matmul_precision, "high", "highest"),
    "mkldnn": lambda: switched(mkldnn_precision, "bf16", "none"),
}
PRODUCTS = ("muon", "nmuon", "adamuon", "nadamuon")


@pytest.fixture(params=PRECISIONS)
def precision(request):
    if request.param == "mkldnn" and not hasattr(torch.backends.mkldnn, "matmul"):
        pytest.skip("torch < 2.9")
    yield PRECISIONS[request.param]
    full_precision()


@pytest.mark.parametrize(
    "name",
    names_by_kind(
        name for name in NAMES if not hfoptim.get_optimizer_info(name).hidden_matrices and name not in SECOND_ORDER
    ),
)
def test_only_products_of_matrices_go_by_the_precision_of_float32_products(name, precision):
    options = {} if name == "lbfgs" else {"foreach": True}
    with precision():
        found = steps(name, None, torch.float32, options)
    assert_same(found, outside(name, torch.float32, tuple(options.items())))


@pytest.mark.parametrize("name", PRODUCTS)
def test_coarser_float32_products_are_the_users_choice_and_stay_safe(name, precision, monkeypatch):
    """Then X X^T alone does not stand for X: the iteration goes over X itself, as in bfloat16."""
    want, _ = outside(name, torch.float32, (("foreach", True),))

    def refused(*args):
        raise AssertionError("by way of X X^T alone")

    monkeypatch.setattr(newton_schulz, "_by_gram", refused)
    with precision():
        assert not ambient.float32_products_are_exact(torch.device("cpu"))
        found, _ = steps(name, None, torch.float32, {"foreach": True})
    start = values(parameters(LAYOUTS))
    for key in LAYOUTS:
        moved, other = found[key] - start[key], want[key] - start[key]
        assert (moved - other).norm() < 0.1 * other.norm()


def test_newton_schulz_over_coarse_products():
    """Autocast stands for a processor that multiplies in bfloat16 where torch is told that it may."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(64, 2, generator=generator) @ torch.randn(2, 16, generator=generator)
    triples = newton_schulz.NS_COEFFICIENTS["original"] * 5
    with torch.autocast("cpu", torch.bfloat16), PRECISIONS["medium"]():
        found = newton_schulz.orthogonalized(matrix, triples, 1e-7, torch.float32)
    assert found.float().norm() < 2.0
    assert ambient.float32_products_are_exact(torch.device("cpu"))


# Their bases hold singular vectors of matrices of less than full rank: those of 0 are whatever rounding makes of them.
BASES = ("conda", "klshampoo", "klsoap", "soap", "splus")
# The first step goes by the signs of a gradient in a basis of its own: of entries that are nearly 0, by rounding's.
SIGNS = ("alice", "alice_0")


THREADED = [name for name in NAMES if name not in (*SECOND_ORDER, "lbfgs", *BASES, *SIGNS)]


@pytest.mark.parametrize("name", names_by_kind(THREADED))
def test_another_number_of_threads(name):
    """A run that goes on with another number of threads: the same bits without sums, rounding apart with them."""
    from hfoptim.engine.backends import compiled

    runners = [{"foreach": True}]
    if name in ("adamw", "lamb", "adafactor") and compiled.missing() is None:
        runners.append({"fused": True})
    for options in runners:
        runs = []
        for threads in (1, 2):
            torch.manual_seed(0)
            params = {"mlp.weight": nn.Parameter(torch.randn(97, 401)), "norm.bias": nn.Parameter(torch.randn(9))}
            start = values(params)
            optimizer = make(name, params, **options)
            with switched(torch.set_num_threads, threads, torch.get_num_threads()):
                for t in (1, 2):
                    feed(params, t)
                    if name.startswith("sam"):
                        optimizer.first_step()
                        optimizer.second_step()
                    else:
                        optimizer.step(**({"loss": 100.0} if getattr(optimizer, "needs_loss", False) else {}))
            runs.append(values(params))
        if is_without_sums(name):
            assert_same(*runs)
            continue
        for key, value in runs[0].items():
            assert (value - runs[1][key]).abs().max() <= 1e-3 * (value - start[key]).abs().max(), (name, options)


def test_noise_of_schedules_does_not_go_by_the_defaults():
    want = [curves._drawn.__wrapped__(kind, 3, 0.67, 1.0) for kind in ("uniform", "normal")]
    for state in ("default_float64", "default_bfloat16", "default_device", "with_device", "inference_mode"):
        with STATES[state]():
            assert [curves._drawn.__wrapped__(kind, 3, 0.67, 1.0) for kind in ("uniform", "normal")] == want
