"""What the examples share: a text that comes with Python, cut into sequences of bytes, and a tiny GPT-2."""

import pydoc_data.topics
from collections.abc import Callable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

LENGTH = 64  # bytes in a sequence; the end of each chapter is shorter
IGNORED = -100  # labels that the loss leaves out


def load_texts() -> list[str]:
    """Python's language reference, by chapters."""
    return list(pydoc_data.topics.topics.values())


def load_sequences(change: Callable[[str], str] = str) -> list[dict[str, Tensor]]:
    """Python's language reference, changed or as it is, as sequences of at most 64 bytes."""
    sequences = []
    for chapter in map(change, load_texts()):
        data = torch.tensor(list(chapter.encode()), dtype=torch.int64)
        for tokens in data.split(LENGTH):
            if len(tokens) > 1:
                labels = tokens.clone()
                labels[0] = IGNORED  # nothing predicts the first byte, so it must not be counted as a token
                sequences.append({"input_ids": tokens, "labels": labels})
    return sequences


def collate(sequences: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One batch: the sequences padded to the longest of them."""
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad([s["input_ids"] for s in sequences], batch_first=True),
        "labels": pad([s["labels"] for s in sequences], batch_first=True, padding_value=IGNORED),
    }


def count_tokens(batch: dict[str, Tensor]) -> Tensor:
    """Number of tokens that the batch's loss is the mean of."""
    return (batch["labels"] != IGNORED).sum()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose 256 tokens are the bytes, for trainers that want one; the byte 0 pads and ends."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: place for place, letter in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=alphabet[0], eos_token=alphabet[0])


def tiny_gpt2() -> GPT2LMHeadModel:
    """A GPT-2 of 0.1 M parameters that reads bytes."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=256, n_positions=LENGTH, n_embd=64, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None
    )
    return GPT2LMHeadModel(config)


def report(optimizer: torch.optim.Optimizer, losses: list[float]) -> None:
    """Prints the optimizer that ran, and the first and last of the losses."""
    optimizer = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps optimizers
    print(f"{type(optimizer).__module__}.{type(optimizer).__name__}: loss {losses[0]:.3f} -> {losses[-1]:.3f}")
