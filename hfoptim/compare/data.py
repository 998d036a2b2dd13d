"""The text of a comparison: where it comes from, how a part is held out, how it becomes blocks of tokens."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from hfoptim.compare.config import CompareConfig, CompareError

if TYPE_CHECKING:
    import datasets

HELD_OUT_SHARE = 0.1
# An evaluation costs a third of a training pass over the same tokens; more than this adds time, not certainty.
MAX_HELD_OUT_TOKENS = 32_768
# Upper bound of the characters that one token of natural text takes; decides how much of a big dataset is read.
CHARACTERS_PER_TOKEN = 12
HELD_OUT_SPLITS = ("validation", "valid", "dev", "eval", "test")
FILE_FORMATS = {".txt": "text", ".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True)
class Corpus:
    """Documents to train on and documents to evaluate on; no text is in both.

    Args:
        name: What the reports call it.
        train: Training documents.
        held_out: Held-out documents.
    """

    name: str
    train: list[str]
    held_out: list[str]


class Blocks(Dataset[dict[str, torch.Tensor]]):
    """Token blocks of equal length as a dataset for Trainer; the labels are the tokens, the model shifts them.

    Args:
        tokens: int64 tensor of shape (blocks, seq_len).
    """

    def __init__(self, tokens: torch.Tensor) -> None:
        self.tokens = tokens
        # The first token of a block is never predicted. For GPT-2 and others the Trainer counts it all the same when
        # it divides by the number of labels, and every loss comes out too low by one part in seq_len.
        self.labels = tokens.clone()
        self.labels[:, :1] = -100

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.labels[index]}


def load_corpus(config: CompareConfig) -> Corpus:
    """Load the dataset that a configuration names.

    Raises:
        CompareError: The dataset cannot be loaded, has no clear text column or too little text.
    """
    if config.dataset is None:
        documents = language_reference()
        return Corpus("Python language reference", *split_documents(documents))
    # More than one epoch of the run is never needed, and a web-sized dataset must not be read to its end.
    budget = CHARACTERS_PER_TOKEN * (config.steps * config.batch_size * config.seq_len + MAX_HELD_OUT_TOKENS)
    parts = _load_dataset(config.dataset, config.dataset_config)
    name = Path(config.dataset).name if Path(config.dataset).exists() else config.dataset
    train_name = "train" if "train" in parts else next(iter(parts))
    train = _read(parts[train_name], config.text_column, budget)
    held_out_name = next((split for split in HELD_OUT_SPLITS if split in parts and split != train_name), None)
    if held_out_name is not None:
        held_out = _read(parts[held_out_name], config.text_column, CHARACTERS_PER_TOKEN * MAX_HELD_OUT_TOKENS)
        return Corpus(name, *_disjoint(train, held_out))
    if Path(config.dataset).suffix.lower() == ".txt":
        return Corpus(name, *split_tail(train))
    return Corpus(name, *split_documents(train))


def language_reference() -> list[str]:
    """The topics of Python's built-in help, which are chapters of its language reference, without repetitions.

    Topics quote each other at length (`try` is a part of `compound`). A paragraph stays only in the longest topic that
    holds it, so that no held-out paragraph was seen in training.

    Raises:
        CompareError: This Python came without them.
    """
    try:
        from pydoc_data import topics as module
    except ImportError as error:
        raise CompareError("this Python came without the text of its language reference: give a --dataset") from error
    topics: dict[str, str] = module.topics
    seen: set[str] = set()
    documents = []
    for _, text in sorted(topics.items(), key=lambda item: (-len(item[1]), item[0])):
        kept = []
        for paragraph in _paragraphs(text):
            key = _normalised(paragraph)
            if key not in seen:
                seen.add(key)
                kept.append(paragraph)
        # What is left of a topic that was quoted elsewhere is a heading or a cross-reference.
        if sum(map(len, kept)) >= 200:
            documents.append("\n\n".join(kept))
    return documents


def split_documents(documents: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hold out whole documents, about a tenth of the text, chosen by a hash of their content.

    The choice depends on nothing but the texts, so that it is the same for every seed and every order. Where all
    documents are too long for that, the shortest one is held out; a single document is cut before its last tenth.
    """
    if len(documents) == 1:
        return split_tail(_paragraphs(documents[0]))
    total = sum(map(len, documents))
    held_out: set[int] = set()
    size = 0
    for index in sorted(range(len(documents)), key=lambda i: _digest(documents[i])):
        length = len(documents[index])
        # A document much longer than what is wanted would leave less to train on; it stays in training.
        if size + length <= 1.25 * HELD_OUT_SHARE * total:
            held_out.add(index)
            size += length
        if size >= HELD_OUT_SHARE * total:
            break
    if documents and not held_out:
        held_out.add(min(range(len(documents)), key=lambda i: (len(documents[i]), _digest(documents[i]))))
    train = [text for index, text in enumerate(documents) if index not in held_out]
    return _disjoint(train, [documents[index] for index in sorted(held_out)])


def split_tail(paragraphs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hold out the end of one continuous text, about a tenth of it."""
    remaining = (1 - HELD_OUT_SHARE) * sum(map(len, paragraphs))
    cut = 0
    while cut < len(paragraphs) - 1 and remaining > 0:
        remaining -= len(paragraphs[cut])
        cut += 1
    return _disjoint(paragraphs[:cut], paragraphs[cut:])


def make_blocks(
    documents: Iterable[str], encode: Callable[[str], list[int]], end: int, seq_len: int, max_blocks: int
) -> torch.Tensor:
    """Tokenize documents, join them with an end token and cut them into blocks.

    Args:
        documents: The texts.
        encode: Text to token ids.
        end: Id of the token put after every document.
        seq_len: Tokens per block.
        max_blocks: Stop when there are this many.

    Returns:
        int64 tensor of shape (blocks, seq_len); a rest shorter than a block is dropped.
    """
    ids: list[int] = []
    for text in documents:
        ids.extend(encode(text))
        ids.append(end)
        if len(ids) >= seq_len * max_blocks:
            break
    count = min(len(ids) // seq_len, max_blocks)
    return torch.tensor(ids[: count * seq_len], dtype=torch.int64).reshape(count, seq_len)


def fingerprint(*tensors: torch.Tensor) -> str:
    """SHA-256 of integer tensors: tells whether two comparisons saw the same tokens."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def find_text_column(columns: dict[str, bool], asked: str | None) -> str:
    """The column with the text.

    Args:
        columns: Column name to whether it holds strings.
        asked: The user's choice, or None.

    Raises:
        CompareError: `asked` is no column of text, or without it several columns would do, or none.
    """
    texts = [name for name, is_text in columns.items() if is_text]
    if asked is not None:
        if asked not in texts:
            raise CompareError(f"--text-column {asked!r} is no column of text; those are: {', '.join(texts) or 'none'}")
        return asked
    if "text" in texts:
        return "text"
    if len(texts) == 1:
        return texts[0]
    if not texts:
        raise CompareError(f"the dataset has no column of text; its columns are: {', '.join(columns)}")
    raise CompareError(f"several columns hold text ({', '.join(texts)}): choose one with --text-column")


def _load_dataset(name: str, dataset_config: str | None) -> dict[str, datasets.Dataset]:
    import datasets

    path = Path(name)
    try:
        if path.is_file():
            if path.suffix.lower() not in FILE_FORMATS:
                raise CompareError(f"--dataset {name}: the file type must be one of {', '.join(FILE_FORMATS)}")
            extra: dict[str, Any] = {"sample_by": "paragraph"} if path.suffix.lower() == ".txt" else {}
            loaded = datasets.load_dataset(FILE_FORMATS[path.suffix.lower()], data_files=str(path), **extra)
        elif path.is_dir() and any((path / marker).exists() for marker in ("state.json", "dataset_dict.json")):
            loaded = datasets.load_from_disk(str(path))
        elif path.is_dir() and sorted(path.rglob("*.txt")):
            files = [str(file) for file in sorted(path.rglob("*.txt"))]
            loaded = datasets.load_dataset("text", data_files=files, sample_by="document")
        else:
            loaded = datasets.load_dataset(str(path) if path.is_dir() else name, dataset_config)
    except CompareError:
        raise
    except Exception as error:  # load_dataset fails with a dozen unrelated types: files, network, parsers, ...
        raise CompareError(f"--dataset {name} cannot be loaded: {type(error).__name__}: {error}") from error
    if isinstance(loaded, datasets.Dataset):
        return {"train": loaded}
    return dict(loaded)


def _read(dataset: datasets.Dataset, text_column: str | None, budget: int) -> list[str]:
    columns = {
        name: getattr(feature, "dtype", None) in ("string", "large_string")
        for name, feature in dataset.features.items()
    }
    column = find_text_column(columns, text_column)
    texts: list[str] = []
    for row in dataset.select_columns([column]):
        text = row[column]
        if text and not text.isspace():
            texts.append(text)
            budget -= len(text)
        if budget <= 0:
            break
    return texts


def _disjoint(train: Sequence[str], held_out: Sequence[str]) -> tuple[list[str], list[str]]:
    """Drop from training every text that is also held out."""
    keys = {_normalised(text) for text in held_out}
    return [text for text in train if _normalised(text) not in keys], list(held_out)


def _paragraphs(text: str) -> list[str]:
    return [part.strip("\n") for part in re.split(r"\n[ \t]*\n", text) if part.strip()]


def _normalised(text: str) -> str:
    return " ".join(text.split())


def _digest(text: str) -> str:
    return hashlib.sha256(_normalised(text).encode()).hexdigest()
