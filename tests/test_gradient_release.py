"""Gradient release: steps inside of backward are the ordinary ones, one gradient is alive, the rest is refused."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from pathlib import Path

import pytest
import torch
from harness import assert_follows, assert_same, feed, flattened, parameters, set_lr, through_disk, values
from ranks import run_ranks
from tiers import every_kind_of_variant
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import hfoptim
from hfoptim import prepare_for_gradient_release, remove_gradient_release
from hfoptim.engine import ELEMENT

STEPS = 20
# Left out here: what differs from the others in memory alone, and takes its time.
LEFT_OUT = ("one", "row", "column", "conv", "channels_last", "mixed", "gaps", "expanded", "large")


def holder(params):
    """A model of these parameters."""
    return nn.ParameterList(params.values())


def loss_of(params, t, only=None):
    """A loss whose gradients are `feed`'s."""
    feed(params, t, only=only)
    grads = {name: param.grad for name, param in params.items() if param.grad is not None}
    for param in params.values():
        param.grad = None
    return sum((params[name] * grad).sum() for name, grad in grads.items())


def groups_of(optimizer):
    own = ("params", "gradient_release")
    return [{key: value for key, value in group.items() if key not in own} for group in optimizer.param_groups]


def states_of(optimizer, params):
    return {name: dict(optimizer.state[param]) for name, param in params.items() if param in optimizer.state}


def needs_all_gradients(optimizer):
    """Whether something is computed from all gradients before the first parameter moves."""
    if optimizer.curvature is not None or optimizer.needs_loss or optimizer.run_state.totals:
        return True
    if optimizer.calls_closure_twice:
        return True
    if isinstance(
        optimizer, hfoptim.SophiaG
    ):  # its entry estimates from the gradients of the step, which are gone then
        return True
    return any(optimizer.rule_for(p, group).probe for group in optimizer.param_groups for p in group["params"])


# -- the same steps --------------------------------------------------------------------------------------------------


@every_kind_of_variant
def test_steps_are_the_ordinary_ones_for_every_optimizer_that_can(entry, variant):
    if entry.name == "sophiag":
        pytest.skip("its entry estimates the Hessian from the gradients of the step, which are gone then")
    layouts = [name for name in variant.layouts if name.rpartition(".")[2] not in LEFT_OUT]
    mine, other = parameters(layouts), parameters(layouts)
    start = values(other)

    def build(params, **options):
        return entry.cls(list(params.items()), **variant.options, **options)

    ours, theirs = build(mine, gradient_release=True), build(other)
    if needs_all_gradients(theirs):
        with pytest.raises(ValueError, match=f"{type(ours).__name__} does not work with gradient release"):
            prepare_for_gradient_release(holder(mine), ours)
        return
    model = holder(mine)
    prepare_for_gradient_release(model, ours)
    rows = ([], [])
    for t in range(1, STEPS + 1):
        if t == STEPS // 2:  # goes on from a checkpoint
            remove_gradient_release(model)
            saved, ours = through_disk(ours.state_dict()), build(mine)
            ours.load_state_dict(saved)
            prepare_for_gradient_release(model, ours)
        only = layouts[::2] if t % 4 == 0 else None
        for optimizer, params, row in zip((ours, theirs), (mine, other), rows, strict=True):
            set_lr(optimizer, t, variant.lr)
            loss_of(params, t, only).backward()
            assert optimizer is theirs or all(param.grad is None for param in params.values())
            optimizer.step()
            optimizer.zero_grad()
            row.append(flattened(params))
    assert_same(groups_of(ours), groups_of(theirs))
    scopes = [theirs.rule_for(p, g).scope for g in theirs.param_groups for p in g["params"]]
    if all(scope is ELEMENT for scope in scopes) and not variant.options.get("caution"):
        assert_same(values(mine), values(other))
        assert_same(states_of(ours, mine), states_of(theirs, other))
    else:  # stacks of matrices are multiplied in another order
        assert_follows(*rows, start, 1e-4)


PRECISIONS = [
    {"kahan_sum": True},
    {"stochastic_rounding": True},
    {"master_weights": 8},
    {"state_dtype": "8bit"},
    {"state_dtype": "bfloat16"},
    {"state_dtype": "4bit", "stochastic_rounding": True},
]


@pytest.mark.parametrize("options", PRECISIONS, ids=str)
def test_low_precision_is_the_same_bit_for_bit(options):
    mine, other = (parameters(("large", "matrix", "vector"), torch.bfloat16) for _ in range(2))
    ours = hfoptim.AdamW(mine.values(), lr=1e-2, **options)
    theirs = hfoptim.AdamW(other.values(), lr=1e-2, **options)
    model = holder(mine)
    prepare_for_gradient_release(model, ours)
    for t in range(1, 6):
        for optimizer, params in ((ours, mine), (theirs, other)):
            loss_of(params, t).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert_same(values(mine), values(other))
    assert_same(states_of(ours, mine), states_of(theirs, other))


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": False}], ids=str)
def test_the_other_runners_step_alike(options):
    mine, other = (parameters(("large", "matrix", "vector")) for _ in range(2))
    start = values(mine)
    if options.get("fused"):
        from hfoptim.engine.backends import compiled

        if compiled.missing():
            pytest.skip(compiled.missing())
    ours, theirs = (hfoptim.AdamW(p.values(), lr=1e-2, weight_decay=0.1, **options) for p in (mine, other))
    model = holder(mine)
    prepare_for_gradient_release(model, ours)
    rows = ([], [])
    for t in range(1, STEPS + 1):
        for optimizer, params, row in zip((ours, theirs), (mine, other), rows, strict=True):
            loss_of(params, t).backward()
            optimizer.step()
            optimizer.zero_grad()
            row.append(flattened(params))
    assert_follows(*rows, start, 1e-5)
    if not options.get("fused"):
        assert_same(values(mine), values(other))


def test_the_runner_is_chosen_by_the_whole_model(monkeypatch):
    from hfoptim.engine import backends

    seen = []
    choose = backends.choose
    monkeypatch.setattr(backends, "choose", lambda g, device, size: seen.append(size) or choose(g, device, size))
    model, optimizer = released()
    model(torch.randint(7, (2, 3))).sum().backward()
    whole = sum(backends.size_of(p) for group in optimizer.param_groups for p in group["params"])
    assert seen == [whole] * 2  # one per group


class Network(nn.Module):
    """An embedding that is the head too, a layer used twice, one that is never used."""

    def __init__(self, deep=4):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(7, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(deep))
        self.norm = nn.LayerNorm(8)
        self.unused = nn.Linear(8, 8)
        self.head = nn.Linear(8, 7)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in (*self.layers, self.layers[0]):
            x = x + self.norm(layer(x)).tanh()
        return self.head(x)


def grouped(model, **options):
    vectors = [p for p in model.parameters() if p.ndim < 2 and p.requires_grad]
    matrices = [p for p in model.parameters() if p.ndim >= 2 and p.requires_grad]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "lr": 1e-3}]
    return hfoptim.AdamW(groups, lr=1e-2, **options)


def released(**options):
    model = Network()
    optimizer = grouped(model, gradient_release=True, **options)
    prepare_for_gradient_release(model, optimizer)
    return model, optimizer


def test_groups_tied_frozen_and_unused_parameters_and_a_schedule():
    runs = []
    for release in (False, True):
        model = Network()
        model.layers[1].requires_grad_(False)
        optimizer = grouped(model)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        if release:
            prepare_for_gradient_release(model, optimizer)
        generator = torch.Generator().manual_seed(1)
        for _ in range(STEPS):
            tokens = torch.randint(7, (3, 5), generator=generator)
            nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        runs.append((model.state_dict(), optimizer))
    assert_same(runs[1][0], runs[0][0])
    assert_same(runs[1][1].state_dict()["state"], runs[0][1].state_dict()["state"])
    assert runs[1][1].param_groups[1]["lr"] == runs[0][1].param_groups[1]["lr"] < 1e-3


def test_a_closure_takes_the_step():
    model, optimizer = released()
    plain = Network()
    ordinary = grouped(plain)
    tokens = torch.arange(6).view(2, 3)
    for each, stepping in ((model, optimizer), (plain, ordinary)):

        def closure(each=each, stepping=stepping):
            stepping.zero_grad()
            loss = each(tokens).square().mean()
            loss.backward()
            return loss

        assert stepping.step(closure) > stepping.step(closure)
    assert_same(model.state_dict(), plain.state_dict())


# -- memory ----------------------------------------------------------------------------------------------------------


def test_one_gradient_is_alive_at_a_time():
    model = Network(deep=12)
    optimizer = grouped(model)
    alive, most = [], []

    def watch(param):  # runs before the step
        alive.append(weakref.ref(param.grad))
        most.append(sum(p.grad is not None for p in model.parameters()))
        most.append(sum(ref() is not None for ref in alive))

    for param in model.parameters():
        param.register_post_accumulate_grad_hook(watch)
    with pytest.raises(ValueError, match="hooks already"):
        prepare_for_gradient_release(model, optimizer)
    prepare_for_gradient_release(model, optimizer, ignore_existing_hooks=True)
    for _ in range(3):
        model(torch.arange(6).view(2, 3)).square().mean().backward()
        assert not any(ref() is not None for ref in alive)
        optimizer.step()
    assert len(alive) == 3 * len([p for name, p in model.named_parameters() if "unused" not in name])
    assert set(most) == {1}


def test_model_and_optimizer_go_without_the_garbage_collector():
    gc.collect()
    gc.disable()
    try:
        model, optimizer = released()
        model(torch.arange(3)).sum().backward()
        refs = [weakref.ref(model), weakref.ref(optimizer), *map(weakref.ref, model.parameters())]
        del model, optimizer
        assert [ref() for ref in refs] == [None] * len(refs)
    finally:
        gc.enable()


# -- on, off, copies -------------------------------------------------------------------------------------------------


def test_removed_the_optimizer_steps_by_itself_again():
    model, optimizer = released()
    tokens = torch.arange(3)
    model(tokens).sum().backward()
    optimizer.step()
    remove_gradient_release(model)
    before = values(dict(model.named_parameters()))
    model(tokens).sum().backward()
    assert_same(values(dict(model.named_parameters())), before)
    optimizer.step()
    assert not torch.equal(model.embed.weight, before["embed.weight"])
    with pytest.warns(UserWarning, match="nothing to remove"):
        remove_gradient_release(model)
    prepare_for_gradient_release(model, optimizer)


def test_two_optimizers_share_a_model():
    model = Network()
    vectors = [p for p in model.parameters() if p.ndim < 2]
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    optimizers = hfoptim.Lion(matrices, lr=1e-3), hfoptim.SGD(vectors, lr=1e-3)
    for optimizer in optimizers:
        prepare_for_gradient_release(model, optimizer)
    for _ in range(2):
        model(torch.arange(3)).sum().backward()
        assert all(p.grad is None for p in model.parameters())
        for optimizer in optimizers:
            optimizer.step()
    remove_gradient_release(model)
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_parameters_of_no_optimizer_keep_their_gradients():
    model = Network()
    optimizer = hfoptim.SGD(model.layers.parameters(), lr=1e-3)
    prepare_for_gradient_release(model, optimizer)
    model(torch.arange(3)).sum().backward()
    assert model.head.bias.grad is not None
    assert model.layers[0].weight.grad is None
    optimizer.step()


def test_copies_are_not_released():
    model, optimizer = released()
    twin = copy.deepcopy(model)
    pickle.loads(pickle.dumps(model))
    twin(torch.arange(3)).sum().backward()
    assert twin.head.bias.grad is not None
    other = pickle.loads(pickle.dumps(optimizer))
    assert other.release is None
    model(torch.arange(3)).sum().backward()
    optimizer.step()


def test_state_can_be_made_by_torch_distributed_checkpoint():
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    model, optimizer = released()
    get_optimizer_state_dict(model, optimizer)
    assert optimizer.state[model.embed.weight]["step"] == 0
    for _ in range(2):
        model(torch.arange(3)).sum().backward()
        optimizer.step()
    other, again = released()
    set_optimizer_state_dict(other, again, copy.deepcopy(get_optimizer_state_dict(model, optimizer)))
    other.load_state_dict(model.state_dict())
    for each, stepping in ((model, optimizer), (other, again)):
        each(torch.arange(3)).sum().backward()
        stepping.step()
    assert_same(other.state_dict(), model.state_dict())


# -- what cannot work ------------------------------------------------------------------------------------------------


def test_optimizers_that_are_not_of_the_engine_are_refused():
    model = Network()
    inner = hfoptim.AdamW(model.parameters())
    for optimizer, why in (
        (torch.optim.SGD(model.parameters(), lr=0.1), "SGD does not .* not an optimizer of hfoptim"),
        (torch.optim.LBFGS(model.parameters()), "LBFGS does not"),
        (hfoptim.Lookahead(inner), "Lookahead does not .* goes around another"),
        (hfoptim.SAM(model.parameters(), hfoptim.SGD, lr=0.1), "SAM does not .* goes around another"),
        (hfoptim.Lamb(model.parameters()), "Lamb does not .* sums over all gradients"),
    ):
        with pytest.raises(ValueError, match=why):
            prepare_for_gradient_release(model, optimizer)
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_the_model_and_the_optimizer_must_belong_together():
    model, optimizer = released()
    with pytest.raises(ValueError, match="released already"):
        prepare_for_gradient_release(model, optimizer)
    with pytest.raises(ValueError, match=r"2 of \d+ parameters of AdamW are not the model's"):
        prepare_for_gradient_release(
            nn.ModuleList([model.layers, model.embed, model.norm, model.unused]),
            grouped(nn.ModuleList([model.layers, nn.Linear(2, 2)])),
        )


def test_a_step_before_the_model_was_prepared_is_refused():
    model = Network()
    optimizer = grouped(model, gradient_release=True)
    optimizer.step()
    before = copy.deepcopy(model.state_dict())
    model(torch.arange(3)).sum().backward()
    with pytest.raises(RuntimeError, match=r"call prepare_for_gradient_release\(model, optimizer\)"):
        optimizer.step()
    assert_same(model.state_dict(), before)


def test_a_second_backward_before_the_step_is_refused():
    model, optimizer = released()
    tokens = torch.arange(3)
    model(tokens).sum().backward()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=r"second gradient before optimizer\.step\(\).*accumulation"):
        model(tokens).sum().backward()
    assert_same(model.state_dict(), before)
    optimizer.zero_grad()
    optimizer.step()
    model(tokens).sum().backward()
    optimizer.step()


def test_gradients_that_come_back_are_refused():
    model, optimizer = released()
    model(torch.arange(3)).sum().backward()
    model.embed.weight.grad = torch.ones_like(model.embed.weight)
    with pytest.raises(RuntimeError, match="has a gradient again after gradient release"):
        optimizer.step()


def test_a_parameter_unfrozen_later_is_not_forgotten():
    model = Network()
    model.layers[2].requires_grad_(False)
    optimizer = hfoptim.AdamW(model.parameters())
    prepare_for_gradient_release(model, optimizer)
    model.layers[2].requires_grad_(True)
    model(torch.arange(3)).sum().backward()
    with pytest.raises(RuntimeError, match="gradient that is not released: it was frozen"):
        optimizer.step()


def test_gradient_accumulator_is_refused():
    model, optimizer = released()
    accumulator = hfoptim.GradientAccumulator(model)
    model(torch.arange(3)).sum().backward()
    with pytest.raises(RuntimeError, match=r"remove_gradient_release\(model\)"):
        accumulator()
    optimizer.step()


@pytest.mark.parametrize("unscale", [False, True])
def test_grad_scaler_is_refused(unscale):
    model, optimizer = released()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.arange(3)).sum()).backward()
    if unscale:
        scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="GradScaler"):
        scaler.step(optimizer)
    torch.amp.GradScaler("cpu", enabled=False).step(optimizer)


# torch warns of the graph, too: once in a process, in which other tests may have come first.
@pytest.mark.filterwarnings("ignore:Using backward")
def test_gradients_with_a_graph_and_sparse_ones_are_refused():
    model, optimizer = released()
    with pytest.raises(RuntimeError, match="create_graph"):
        model(torch.arange(3)).sum().backward(create_graph=True)
    del optimizer
    embedding = nn.Embedding(3, 4, sparse=True)
    optimizer = hfoptim.Lion(embedding.parameters(), lr=0.1)
    prepare_for_gradient_release(embedding, optimizer)
    with pytest.raises(TypeError, match="sparse"):
        embedding(torch.arange(2)).sum().backward()


def test_an_optimizer_that_is_gone_is_noticed():
    model, optimizer = released()
    del optimizer
    with pytest.raises(RuntimeError, match=r"the optimizer of prepare_for_gradient_release.* is gone"):
        model(torch.arange(3)).sum().backward()
    remove_gradient_release(model)
    model(torch.arange(3)).sum().backward()


def test_reentrant_checkpoints_that_share_weights_are_refused():
    from torch.utils.checkpoint import checkpoint

    model, optimizer = released()
    x = torch.ones(2, 8, requires_grad=True)
    loss = checkpoint(model.norm, checkpoint(model.norm, x, use_reentrant=True), use_reentrant=True).square().sum()
    with pytest.raises(RuntimeError, match=r"second gradient before.*reentrant checkpoints"):
        loss.backward()
    optimizer.zero_grad()
    optimizer.step()
    checkpoint(model.norm, checkpoint(model.norm, x, use_reentrant=False), use_reentrant=False).sum().backward()


def test_schedule_free_does_not_move_in_evaluation_mode():
    params = parameters(("matrix", "vector"))
    optimizer, model = hfoptim.AdamWScheduleFree(params.values()), holder(params)
    prepare_for_gradient_release(model, optimizer)
    loss_of(params, 1).backward()
    optimizer.step()
    optimizer.eval()
    before = values(params)
    with pytest.raises(RuntimeError, match="evaluation mode"):
        loss_of(params, 2).backward()
    assert_same(values(params), before)
    assert optimizer.param_groups[0]["k"] == 1


def test_autocast_does_not_reach_the_step():
    runs = []
    for on in (False, True):
        params = parameters(("matrix", "wide"))
        optimizer, model = hfoptim.Muon(list(params.items()), lr=1e-2, ns_dtype="float32"), holder(params)
        prepare_for_gradient_release(model, optimizer)
        for t in range(1, 4):
            loss = loss_of(params, t)
            with torch.autocast("cpu", torch.bfloat16, enabled=on):
                loss.backward()
            optimizer.step()
        runs.append(values(params))
    assert_same(*runs)


# -- several processes -----------------------------------------------------------------------------------------------


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_ddp_is_refused(process_group):
    model = Network()
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = grouped(model)
    with pytest.raises(ValueError, match="DistributedDataParallel averages gradients"):
        prepare_for_gradient_release(wrapped, optimizer)
    prepare_for_gradient_release(model, optimizer)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="DistributedDataParallel averages gradients"):
        wrapped(torch.arange(3)).sum().backward()
    assert_same(model.state_dict(), before)
    remove_gradient_release(model)
    # One that wraps another model, or is no longer used, does not matter.
    del wrapped
    keep = DistributedDataParallel(Network())
    prepare_for_gradient_release(model, optimizer)
    model(torch.arange(3)).sum().backward()
    del keep


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
def test_fsdp2_steps_are_the_ordinary_ones(process_group):
    from torch.distributed.fsdp import fully_shard

    runs = []
    for release in (False, True):
        model = Network()
        for layer in model.layers:
            fully_shard(layer)
        fully_shard(model)
        optimizer = grouped(model)
        if release:
            prepare_for_gradient_release(model, optimizer)
        for t in range(3):
            model(torch.arange(6).view(2, 3) % (t + 3)).square().mean().backward()
            assert not release or all(p.grad is None for p in model.parameters())
            optimizer.step()
            optimizer.zero_grad()
        runs.append({name: param.full_tensor() for name, param in model.state_dict().items()})
    assert_same(runs[1], runs[0])


def test_fsdp2_on_two_processes(tmp_path):
    """See release_worker.py."""
    worker = Path(__file__).with_name("release_worker.py")
    run_ranks(worker, str(tmp_path), "{rank}", ranks=2, output=tmp_path, timeout=120)
