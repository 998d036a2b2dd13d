"""Large tensors of rules with reductions take their eager steps piece by piece: the same numbers, little memory."""

import pytest
import torch
from cases import ENTRIES
from harness import feed, parameters

from hfoptim.engine import RuleOptimizer
from hfoptim.engine.backends import eager_tiled

LAYOUTS = ("vector", "matrix", "row", "column", "conv", "transposed", "large", "stack", "conv_wide")
VARIANTS = [
    (entry, name)
    for entry in ENTRIES
    if issubclass(entry.cls, RuleOptimizer)
    for name in entry.variants
    if not entry.variants[name].options.get("state_dtype")
]


def steps(entry, name, dtype, runner):
    params = parameters(LAYOUTS, dtype)
    optimizer = entry.cls(list(params.items()), **entry.variants[name].options, foreach=runner == "foreach")
    for t in range(1, 5):
        feed(params, t)
        optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("runner", ["loop", "foreach"])
@pytest.mark.parametrize(("entry", "name"), VARIANTS, ids=lambda x: getattr(x, "name", x))
def test_pieces_make_no_difference(entry, name, runner, monkeypatch):
    whole, one = steps(entry, name, torch.float64, runner)
    monkeypatch.setattr(eager_tiled, "LARGE", 1)
    monkeypatch.setattr(eager_tiled, "PIECE", 100)
    pieces, other = steps(entry, name, torch.float64, runner)
    for key, param in whole.items():
        torch.testing.assert_close(pieces[key], param, rtol=1e-12, atol=1e-14)
        for part, value in one.state[param].items():
            torch.testing.assert_close(other.state[pieces[key]][part], value, rtol=1e-11, atol=1e-14)


def test_the_rules_with_reductions_do_go_piece_by_piece(monkeypatch):
    monkeypatch.setattr(eager_tiled, "LARGE", 1)
    taken = set()
    run = eager_tiled._Step.run

    def counted(self):
        taken.add(self.plan.rule.name)
        run(self)

    monkeypatch.setattr(eager_tiled._Step, "run", counted)
    for entry, name in VARIANTS:
        if entry.name in ("lamb", "lars", "novograd", "adafactor", "adam_mini"):
            steps(entry, name, torch.float32, "loop")
    assert {"lamb", "adafactor_matrix", "adafactor_vector"} <= taken
    assert len(taken) >= 6
