"""Large tensors of rules with reductions take their eager steps piece by piece: the same numbers, little memory."""

import pytest
import torch
from cases import ENTRIES
from harness import feed, parameters
from tiers import variants

import hfoptim
from hfoptim.engine import TENSOR
from hfoptim.engine.backends import eager_tiled

LAYOUTS = ("vector", "row", "conv", "transposed", "stack", "conv_wide", "matrix", "column", "large")
# In `make test` without the largest, which is stepped in 366 pieces.
RUNS = [
    pytest.param("loop", LAYOUTS[:6], id="loop"),
    pytest.param("loop", LAYOUTS, id="loop-large", marks=pytest.mark.slow),
    pytest.param("foreach", LAYOUTS, id="foreach-large", marks=pytest.mark.slow),
]


def steps(entry, variant, dtype, runner, layouts=LAYOUTS):
    params = parameters(layouts, dtype)
    optimizer = entry.cls(list(params.items()), **variant.options, foreach=runner == "foreach")
    for t in range(1, 5):
        feed(params, t)
        optimizer.step()
    return params, optimizer


def reduces(entry, variant):
    """Whether a variant has rules that need reductions over a tensor."""
    optimizer = entry.cls(list(parameters(("matrix", "vector")).items()), **variant.options)
    return any(optimizer.rule_for(p, g).scope is TENSOR for g in optimizer.param_groups for p in g["params"])


# Others are stepped as they are.
@pytest.mark.parametrize(("runner", "layouts"), RUNS)
@pytest.mark.parametrize(("entry", "variant"), [each for each in variants() if reduces(*each.values)])
def test_pieces_make_no_difference(entry, variant, runner, layouts, monkeypatch):
    whole, one = steps(entry, variant, torch.float64, runner, layouts)
    monkeypatch.setattr(eager_tiled, "LARGE", 1)
    monkeypatch.setattr(eager_tiled, "PIECE", 100)
    pieces, other = steps(entry, variant, torch.float64, runner, layouts)
    for key, param in whole.items():
        torch.testing.assert_close(pieces[key], param, rtol=1e-12, atol=1e-14)
        for part, value in one.state[param].items():
            torch.testing.assert_close(other.state[pieces[key]][part], value, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize(("cls", "options"), [(hfoptim.Lamb, {}), (hfoptim.LDoG, {"reps_rel": 1e-2})])
def test_pieces_have_what_rounding_took_of_them(cls, options, monkeypatch):
    """Lamb's rule reads the rounded weights, LDoG's the weights with Kahan's term."""

    def weights():
        params = parameters(LAYOUTS[:6], torch.bfloat16)
        optimizer = cls(list(params.items()), foreach=False, **options)
        for t in range(1, 9):
            feed(params, t)
            optimizer.step()
        return {name: p.detach().float() + optimizer.state[p]["kahan_comp"].float() for name, p in params.items()}

    whole = weights()
    monkeypatch.setattr(eager_tiled, "LARGE", 1)
    monkeypatch.setattr(eager_tiled, "PIECE", 100)
    for name, pieces in weights().items():
        torch.testing.assert_close(pieces, whole[name], rtol=1e-4, atol=1e-5)


def test_the_rules_with_reductions_do_go_piece_by_piece(monkeypatch):
    monkeypatch.setattr(eager_tiled, "LARGE", 1)
    taken = set()
    run = eager_tiled._Step.run

    def counted(self):
        taken.add(self.plan.rule.name)
        run(self)

    monkeypatch.setattr(eager_tiled._Step, "run", counted)
    for entry in ENTRIES:
        for variant in entry.variants.values():
            if reduces(entry, variant):
                steps(entry, variant, torch.float32, "loop")
    assert {"lamb", "adafactor_matrix", "adafactor_vector"} <= taken
    assert len(taken) >= 6
