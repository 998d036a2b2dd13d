"""Numbers in the classes that configurations and sweeps bring, which ``torch.load(weights_only=True)`` refuses."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch


class Listed(Sequence[Any]):
    """A sequence that is neither list nor tuple, as an OmegaConf ListConfig is."""

    def __init__(self, entries: Any) -> None:
        self.entries = list(entries)

    def __getitem__(self, index: Any) -> Any:
        return self.entries[index]

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.entries)


def _numpy(number: float) -> Any:
    return np.int64(number) if isinstance(number, int) else np.float64(number)


def _tensor(number: float) -> Any:
    return torch.tensor(number, dtype=torch.int64 if isinstance(number, int) else torch.float64)


# What a number becomes, and what a sequence of them becomes.
FORMS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "numpy": (_numpy, Listed),
    "tensor": (_tensor, list),
    "text": (repr, Listed),
    "list": (lambda number: number, Listed),
}
every_form = pytest.mark.parametrize("form", FORMS)


def given_as(form: str, value: Any) -> Any:
    """A value with its numbers, and the sequences that they are in, in another form; anything else as it is."""
    number, sequence = FORMS[form]
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, list | tuple) and all(isinstance(each, int | float | list | tuple) for each in value):
        return sequence([given_as(form, each) for each in value])
    return value


def saved_and_read(state: Any) -> Any:
    """A state dict after ``torch.save`` and ``torch.load(weights_only=True)``."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_plain(value: Any) -> None:
    """Fail unless a state dict holds nothing but Python's own values and tensors."""
    if isinstance(value, dict):
        for key, each in value.items():
            assert type(key) in (str, int), key
            assert_plain(each)
    elif type(value) in (list, tuple):
        for each in value:
            assert_plain(each)
    else:
        assert type(value) in (bool, int, float, str, type(None), torch.Tensor), (type(value), value)
