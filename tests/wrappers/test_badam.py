"""BAdam: which block is trained when, that the others stay, resuming, copies, and what is refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from harness import assert_same, through_disk, values
from torch import nn

import hfoptim
from hfoptim import BAdam

BLOCKS = [[f"layers.{i}.weight", f"layers.{i}.bias"] for i in range(3)]
EMBEDDING, REST = ["embed_tokens.weight"], ["norm.weight", "norm.bias", "lm_head.weight", "lm_head.bias"]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(11, 6)
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])
        self.norm = nn.LayerNorm(6)
        self.lm_head = nn.Linear(6, 11)

    def forward(self, tokens):
        hidden = self.embed_tokens(tokens)
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer(hidden))
        return self.lm_head(self.norm(hidden))


def backward(model, t):
    tokens = torch.randint(0, 11, (8,), generator=torch.Generator().manual_seed(t))
    (model(tokens).sin().mean() + model(tokens).square().mean()).backward()


def run(model, optimizer, steps):
    for t in steps:
        optimizer.zero_grad()
        backward(model, t)
        optimizer.step()


def made(model, **options):
    given = {"switch_block_every": 3, **options}
    return BAdam(hfoptim.Adam(model.named_parameters(), lr=1e-2, weight_decay=0.1), **given)


@pytest.mark.parametrize(
    ("options", "order"),
    [
        ({}, BLOCKS[::-1]),
        ({"switch_mode": "ascending"}, BLOCKS),
        (
            {"switch_mode": "ascending", "include_embedding": True, "include_lm_head": True},
            [EMBEDDING, *BLOCKS, REST],
        ),
        ({"block_prefix_list": [["layers.1", "norm"], ["lm_head"], ["none"]]}, [REST[2:], [*BLOCKS[1], *REST[:2]]]),
        ({"active_modules": ["norm"]}, [[*block, *REST[:2]] for block in BLOCKS[::-1]]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_new_optimizer_steps_one_block_at_a_time(options, order):
    model, other = Model(), Model()
    optimizer = made(model, **options)
    for turn in range(len(order) + 1):
        names = order[turn % len(order)]
        assert [name for name, param in model.named_parameters() if param.requires_grad] == names
        fresh = hfoptim.Adam([p for n, p in other.named_parameters() if n in names], lr=1e-2, weight_decay=0.1)
        for t in range(3 * turn, 3 * turn + 3):
            run(model, optimizer, [t])
            other.zero_grad()
            backward(other, t)
            fresh.step()
            assert_same(values(dict(model.named_parameters())), values(dict(other.named_parameters())))
            assert len(optimizer.state) == (0 if t % 3 == 2 else len(names))


def test_each_round_has_an_order_of_its_own_with_every_block_in_it():
    model = Model()
    optimizer = made(model, switch_block_every=1, switch_mode="random", include_embedding=True, include_lm_head=True)
    rounds = []
    for _ in range(6):
        rounds.append([])
        for _ in range(5):
            rounds[-1].append(optimizer.active[0])
            run(model, optimizer, [1])
    assert all(sorted(each) == sorted(rounds[0]) and len({*each}) == 5 for each in rounds)
    assert len({tuple(each) for each in rounds}) > 2


@pytest.mark.parametrize("mode", ["descending", "random"])
@pytest.mark.parametrize("at", [4, 6])
def test_a_run_goes_on_bit_for_bit(mode, at):
    model, other = Model(), Model()
    whole, half = made(model, switch_mode=mode), made(other, switch_mode=mode)
    run(model, whole, range(14))
    run(other, half, range(at))
    again = Model()
    again.load_state_dict(other.state_dict())
    resumed = made(again, switch_mode=mode)
    resumed.load_state_dict(through_disk(half.state_dict()))
    run(again, resumed, range(at, 14))
    assert_same(values(dict(again.named_parameters())), values(dict(model.named_parameters())))
    assert_same(resumed.state_dict(), whole.state_dict())


@pytest.mark.parametrize("way", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_by_name_and_copied(way):
    model = Model()
    optimizer = hfoptim.create_optimizer_v2(model, "badam", lr=1e-2, badam_switch_every=2)
    assert isinstance(optimizer, BAdam)
    assert type(optimizer.optimizer) is hfoptim.Adam
    run(model, optimizer, range(3))
    twin, other = way((model, optimizer))
    run(model, optimizer, range(3, 9))
    run(twin, other, range(3, 9))
    assert_same(values(dict(twin.named_parameters())), values(dict(model.named_parameters())))


def test_what_is_frozen_stays_and_a_group_that_joins_takes_part():
    model = Model()
    model.layers[1].requires_grad_(False)
    optimizer = made(model, switch_block_every=1)
    start = values(dict(model.layers[1].named_parameters()))
    run(model, optimizer, range(5))
    assert_same(values(dict(model.layers[1].named_parameters())), start)
    later = nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [("layers.9.weight", later)]})
    assert optimizer.blocks[-1] == ["layers.9.weight"]
    assert optimizer.param_groups[1]["badam_step"] == 5
    assert not later.requires_grad


def test_what_cannot_be_is_refused():
    model = Model()
    with pytest.raises(ValueError, match="finds blocks by the names of parameters"):
        BAdam(hfoptim.Adam(model.parameters()))
    with pytest.raises(ValueError, match="none of the 2 trainable parameters is in a block"):
        BAdam(hfoptim.Adam(nn.Linear(2, 2).named_parameters())).step()
    with pytest.raises(ValueError, match="put other wrappers around it"):
        BAdam(hfoptim.EMA(hfoptim.Adam(model.named_parameters())))
    with pytest.raises(ValueError, match="badam_switch_mode='fixed' is unknown"):
        made(model, switch_mode="fixed")
    with pytest.raises(ValueError, match="badam_switch_every=0"):
        made(model, switch_block_every=0)
    for options in ({"include_embedding": 1}, {"block_prefix_list": "layers"}, {"active_modules": "norm"}):
        with pytest.raises(TypeError, match="badam_"):
            made(model, **options)
