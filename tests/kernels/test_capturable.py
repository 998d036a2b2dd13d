"""`capturable=True`, torch's option for steps that a CUDA graph repeats: no name drops it in silence.

Whether an optimizer is the first of its kind makes no difference here, so every name is tried.
"""

from __future__ import annotations

import pytest
import torch

import hfoptim

NAMES = hfoptim.list_optimizers()
# torch's own class, which has no such option: not even False is taken.
OF_TORCH = frozenset(["lbfgs"])


def named():
    return [("layer.weight", torch.nn.Parameter(torch.zeros(4, 4))), ("layer.bias", torch.nn.Parameter(torch.zeros(4)))]


def refusal(make):
    """What is said where an optimizer is made; None if it is made."""
    try:
        make()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def test_every_name_refuses_it_and_says_what_to_write():
    wrong = {}
    for name in NAMES:
        how = "option 'capturable'" if name in OF_TORCH else "capturable=True is not possible here"
        said = refusal(lambda name=name: hfoptim.create_optimizer_v2(named(), name, capturable=True))
        if said is None or not (said.startswith("ValueError") and how in said and "take fused=True" in said):
            wrong[name] = said
    assert not wrong
    assert len(NAMES) >= 230


@pytest.mark.filterwarnings("ignore:none of the .* parameters is called lora_A:UserWarning")
def test_no_class_takes_it_from_a_group_and_all_take_false():
    wrong = {}
    for name in sorted({*NAMES} - OF_TORCH):
        made = hfoptim.get_optimizer_class(name)
        said = refusal(lambda made=made: made([{"params": named(), "capturable": True}]))
        if said is None or "capturable=True is not possible here" not in said:
            wrong[name] = said
        for where in ({"capturable": False}, {}):
            groups = [{"params": named(), **({} if where else {"capturable": False})}]
            if (said := refusal(lambda made=made, groups=groups, where=where: made(groups, **where))) is not None:
                wrong[name] = said
    assert not wrong
