"""The whole comparison: make the text and the model, run what is missing, keep the results, show them."""

from __future__ import annotations

import contextlib
import logging
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from hfoptim.compare import report
from hfoptim.compare.config import PRESETS, CompareConfig, CompareError, parse_optimizers
from hfoptim.compare.data import MAX_HELD_OUT_TOKENS, Blocks, fingerprint, load_corpus, make_blocks
from hfoptim.compare.model import load_model, small_gpt2, train_tokenizer
from hfoptim.compare.results import FAILED, FILE, Results, RunRecord, check_unchanged, environment

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHECKPOINTS = "checkpoints"


def compare(
    config: CompareConfig, output_dir: str | Path, *, resume: bool = False, console: Console | None = None
) -> Results:
    """Train the same model on the same text with several optimizers and several learning rates each.

    Args:
        config: What to compare.
        output_dir: Folder for `results.json`, `loss_curves.png` and, while it runs, the checkpoints. It must be new
            or empty, unless a comparison is resumed.
        resume: Go on with the comparison in `output_dir`; its finished runs are kept.
        console: Where progress, table and notes go. None: standard output.

    Returns:
        The results, as they are in the folder.

    Raises:
        CompareError: The folder, the dataset or the model cannot be used as asked.
    """
    console = console or Console()
    folder = Path(output_dir)
    earlier = Results.load(folder) if resume else None
    if earlier is None:
        check_folder(folder)
    elif earlier.config != config:
        raise _mismatch(folder, earlier.config, config)
    with quiet():
        models, train_blocks, held_out_blocks, facts = prepare(config)
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        surroundings = environment(str(device))
        if earlier is None:
            results = Results(folder, config, surroundings, facts["data"], facts["model"])
            try:
                folder.mkdir(parents=True, exist_ok=True)
                results.save()
            except OSError as error:
                raise CompareError(f"--output-dir {folder} cannot be written: {error}") from error
        else:
            check_unchanged(earlier, surroundings, facts["data"])
            results = earlier
        _say(console, *report.heading(results))
        _run_missing(results, models, train_blocks, held_out_blocks, console)
    console.print(report.table(results))
    picture = f"picture: {folder / report.PICTURE}" if report.draw(results) else report.PICTURE_HINT
    _say(console, *report.notes(results), f"results: {folder / FILE}", picture)
    return results


def resumed_config(output_dir: str | Path, options: Mapping[str, Any]) -> CompareConfig:
    """The configuration of the comparison in a folder, checked against the options given anew.

    Args:
        output_dir: The folder.
        options: Options of `CompareConfig.from_options`; None stands for not given.

    Raises:
        CompareError: There is no comparison in the folder, or a given option is not the one it was begun with.
    """
    folder = Path(output_dir)
    stored = Results.load(folder).config
    given = {name: value for name, value in options.items() if value is not None}
    if "optimizers" in given and (names := parse_optimizers(given["optimizers"])) != stored.optimizers:
        # Told apart first: the learning rates of other optimizers would be refused with a less helpful message.
        raise _mismatch(folder, stored, replace(stored, optimizers=names))
    config = CompareConfig.from_options(**{**{name: getattr(stored, name) for name in options}, **given})
    if config != stored:
        raise _mismatch(folder, stored, config)
    return stored


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything: what is there may be dear to someone.

    Raises:
        CompareError: It is not empty, or no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise CompareError(f"--output-dir {folder} is a file")
    if folder.is_dir() and any(folder.iterdir()):
        hint = "; to go on with the comparison in it, add --resume" if (folder / FILE).exists() else ""
        raise CompareError(f"--output-dir {folder} is not empty; name a new folder{hint}")


def prepare(
    config: CompareConfig,
) -> tuple[Callable[[int], PreTrainedModel], Blocks, Blocks, dict[str, dict[str, Any]]]:
    """Make what all runs share.

    Returns:
        What makes the initial model of a seed, the training and the held-out blocks, and the facts for the record.

    Raises:
        CompareError: The dataset or the model cannot be used, or the text is too short.
    """
    corpus = load_corpus(config)
    if not corpus.train or not corpus.held_out:
        raise CompareError(f"{corpus.name}: too little text to hold out a tenth of it; give a larger --dataset")
    if config.model is None:
        tokenizer = train_tokenizer(corpus.train)
        name = "a small GPT-2"
    else:
        _, tokenizer = load_model(config, config.seeds[0])
        name = Path(config.model).name if Path(config.model).exists() else config.model

    @lru_cache(maxsize=1)
    def initial(seed: int) -> PreTrainedModel:
        if config.model is None:
            return small_gpt2(len(tokenizer), config.seq_len, tokenizer.eos_token_id, seed)
        return load_model(config, seed)[0]

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    end, length = tokenizer.eos_token_id, config.seq_len
    train = make_blocks(corpus.train, encode, end, length, config.steps * config.batch_size)
    held_out = make_blocks(corpus.held_out, encode, end, length, max(1, MAX_HELD_OUT_TOKENS // length))
    if len(train) < config.batch_size or len(held_out) < 1:
        raise CompareError(
            f"{corpus.name}: the text gives {len(train)} training and {len(held_out)} held-out sequences of {length} "
            f"tokens; at least {config.batch_size} (--batch-size) and 1 are needed: lower --seq-len or --batch-size"
        )
    data = {
        "name": corpus.name,
        "train_tokens": train.numel(),
        "held_out_tokens": held_out.numel(),
        "fingerprint": fingerprint(train, held_out),
    }
    parameters = sum(param.numel() for param in initial(config.seeds[0]).parameters())
    facts = {"data": data, "model": {"name": name, "parameters": parameters, "vocabulary": len(tokenizer)}}
    return initial, Blocks(train), Blocks(held_out), facts


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' own messages and bars out of the output; errors still come through."""
    import datasets
    from transformers.utils import logging as transformers_logging

    ours = logging.getLogger("hfoptim")
    verbosity, level = transformers_logging.get_verbosity(), ours.level
    datasets_verbosity = datasets.logging.get_verbosity()
    datasets_bars = not datasets.are_progress_bars_disabled()
    transformers_bars = transformers_logging.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(torch|transformers|accelerate|datasets)\b")
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        datasets.logging.set_verbosity_error()
        datasets.disable_progress_bars()
        ours.setLevel(logging.ERROR)
        try:
            yield
        finally:
            transformers_logging.set_verbosity(verbosity)
            datasets.logging.set_verbosity(datasets_verbosity)
            ours.setLevel(level)
            if transformers_bars:
                transformers_logging.enable_progress_bar()
            if datasets_bars:
                datasets.enable_progress_bars()


def _run_missing(
    results: Results,
    models: Callable[[int], PreTrainedModel],
    train_blocks: Blocks,
    held_out_blocks: Blocks,
    console: Console,
) -> None:
    from hfoptim.compare.runs import train

    checkpoints, total = results.folder / CHECKPOINTS, results.config.runs
    done = sum(run.status != FAILED for run in results.runs)
    with report.Display(console, done, total, results.config.steps, len(results.config.seeds)) as display:
        for optimizer, lr, seed in _one_by_one(results):
            display.start(optimizer, lr, seed)
            folder = checkpoints / f"{optimizer}-{lr:g}-{seed}"
            try:
                blocks = train_blocks, held_out_blocks
                run = train(optimizer, lr, seed, results.config, models(seed), *blocks, folder, display.step)
            except Exception as error:  # one optimizer that cannot train this model must not cost the others' runs
                run = RunRecord(optimizer, lr, seed, PRESETS.get(optimizer, {}), FAILED, error=_story(error))
            results.add(run)
            display.finish(run)
    with contextlib.suppress(OSError):
        os.rmdir(checkpoints)


def _one_by_one(results: Results) -> Iterator[tuple[str, float, int]]:
    """The runs still to be made, each once: which rates other seeds run with, the first ones tell."""
    tried: set[tuple[str, float, int]] = set()
    while missing := [key for key in results.missing() if key not in tried]:
        tried.add(missing[0])
        yield missing[0]


def _say(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _story(error: Exception) -> str:
    return "".join(traceback.format_exception(error)).strip()


def _mismatch(folder: Path, stored: CompareConfig, asked: CompareConfig) -> CompareError:
    return CompareError(
        f"--resume: the comparison in {folder} was begun with other options ({'; '.join(stored.differences(asked))}); "
        f"leave them out, or start again in another --output-dir"
    )
