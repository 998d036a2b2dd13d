"""Ragged batches of tokens and a tiny language model, for the tests of gradient accumulation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hfoptim.training.accumulator import GradientAccumulator


def make_model(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 11)).to(dtype)


def ragged_batch(lengths: list[int], seed: int) -> tuple[Tensor, Tensor]:
    """Token ids and labels of some sequences; labels past a sequence's length are ignored (-100)."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 11, (len(lengths), 7), generator=generator)
    labels = tokens.clone()
    for row, length in enumerate(lengths):
        labels[row, length:] = -100
    return tokens, labels


def token_loss(model: nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten(), ignore_index=-100)


def tokens_in(labels: Tensor) -> int:
    return int((labels != -100).sum())


def state_of(accumulator: GradientAccumulator) -> dict[str, object]:
    """Everything the accumulator knows, so that two of them can be compared bit for bit."""
    state = accumulator.state_dict()
    state["sums"] = [None if s is None else (s.dtype, s.tolist()) for s in state["sums"]]
    return state
