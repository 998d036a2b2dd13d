"""The table of the engine's options, and what follows from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import hfoptim
from hfoptim.engine.optimizer import EngineOptimizer
from hfoptim.engine.options import ENGINE_DEFAULTS, OF_THE_RUN, OPTIONS, table_row

ROOT = Path(__file__).resolve().parent.parent
# A row of a table of options: name, default, meaning.
ROW = re.compile(r"^\| `(\w+)` \| `([^`]*)` \| (.*) \|$", re.MULTILINE)


def test_all_values_are_taken_and_others_are_not() -> None:
    for name, option in OPTIONS.items():
        assert option.default in option.values
        for value in option.values:
            assert option.checked(name, value) is value
        with pytest.raises((TypeError, ValueError), match=f"{name}='no such value'"):
            option.checked(name, "no such value")
        with pytest.raises((TypeError, ValueError), match=name):
            option.checked(name, 0 if option.numbers else 1)
    assert OPTIONS["master_weights"].checked("master_weights", "16") == 16


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_of_the_run_is_not_read_from_a_checkpoint(name: str) -> None:
    param = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    other = next(value for value in OPTIONS[name].values if value != OPTIONS[name].default)
    saved = hfoptim.Lion([param], **{name: other}).state_dict()
    loading = hfoptim.Lion([param])
    loading.load_state_dict(saved)
    expected = ENGINE_DEFAULTS[name] if name in OF_THE_RUN else other
    assert loading.param_groups[0][name] == expected
    decays = {"cautious_weight_decay", "corrected_weight_decay"}
    of_gradient = {"gradient_centralization", "adaptive_clip", "orthograd"}
    assert ({*OPTIONS} - OF_THE_RUN) == {"maximize", "caution", *decays, *of_gradient, "hyperball"}


def test_caution_of_the_momentum_is_refused_where_it_is_not_known() -> None:
    param = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="Lion takes caution=True"):
        hfoptim.Lion([param], caution="momentum")
    with pytest.raises(ValueError, match="Lion takes caution=True"):
        hfoptim.Lion([{"params": [param], "caution": "momentum"}])


def test_the_documents_have_the_tables_rows() -> None:
    rows = {match[1]: match[0] for match in ROW.finditer((ROOT / "docs" / "memory.md").read_text())}
    assert len(rows) == 5
    assert rows == {name: table_row(name) for name in rows}


def test_the_page_of_options_names_every_one_and_its_default() -> None:
    page = (ROOT / "docs" / "options.md").read_text()
    found = {match[1]: match[2] for match in ROW.finditer(page)}
    assert found == {name: ROW.fullmatch(table_row(name))[2] for name in OPTIONS}  # type: ignore[index]


def test_the_docstring_describes_every_option() -> None:
    text = " ".join((EngineOptimizer.__doc__ or "").split())
    for option in OPTIONS.values():
        assert f"{option.doc}." in text
