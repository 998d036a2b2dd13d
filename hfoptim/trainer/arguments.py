"""TrainingArguments in the making, while hfoptim's names are enabled: text is read, options are checked."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hfoptim import registry
from hfoptim.trainer import build, release, second_pass
from hfoptim.trainer.options import WORDS, parse_options

logger = logging.getLogger(__name__)

_MARK = "_hfoptim_argument"


@contextmanager
def checking() -> Iterator[None]:
    """Mark the errors raised inside as mistakes in what the user wrote, see `is_mistake`."""
    try:
        yield
    except (ImportError, TypeError, ValueError) as error:
        setattr(error, _MARK, True)
        logger.debug("an argument is refused", exc_info=True)
        raise


def is_mistake(error: BaseException) -> bool:
    """Whether an error is about an argument, and its message says all: the way through the program explains nothing."""
    return getattr(error, _MARK, False)


def read_text(args: Any) -> None:
    """Read what the command line leaves as text and transformers does not read. Called before its own checks.

    - `resume_from_checkpoint`: `True` and `False` in any case are the flags, unless there is such a folder. (The field
      is for a path, so `--resume_from_checkpoint True` is the string, which `Trainer.train` takes for a folder.)
    - `lr_scheduler_kwargs`: the form of `optim_args`, `pct_start=0.3,div_factor=10`, or JSON.

    Args:
        args: TrainingArguments whose fields are set; changed in place.

    Raises:
        ValueError: `lr_scheduler_kwargs` follows no grammar, or names an option twice.
    """
    resume = args.resume_from_checkpoint
    if isinstance(resume, str) and resume.strip().lower() in WORDS and not os.path.exists(resume):
        args.resume_from_checkpoint = WORDS[resume.strip().lower()]
    options = args.lr_scheduler_kwargs
    if isinstance(options, str):
        with checking():
            read = parse_options(options, "lr_scheduler_kwargs")
        try:
            json.loads(options)
        except json.JSONDecodeError:
            args.lr_scheduler_kwargs = read
        else:  # transformers reads it, and has a rule of its own for text inside
            args.lr_scheduler_kwargs = options.strip()


def check(args: Any, optimizer: str | None, schedule: str | None) -> None:
    """Check the options when the arguments are made: a script that loads data first would fail much later.

    Args:
        args: the TrainingArguments, after transformers' own checks.
        optimizer, schedule: the canonical names of ours that they ask for; None for transformers' own.

    Raises:
        TypeError, ValueError: an option that is not there, or a value that is wrong.
    """
    resolved = None
    with checking():
        if optimizer is not None:
            resolved = build.Choice.from_arguments(optimizer, args).resolve(args)
            build.check_no_idle_schedule(resolved, args)
            release.check_options(resolved.kwargs, args)
            second_pass.check_arguments(resolved.made, args)
        if schedule is not None:
            build.prepare_schedule_arguments(schedule, args, resolved)
    if optimizer is None and args.should_log:
        _say_whose(str(getattr(args.optim, "value", args.optim)))


_said: set[str] = set()


def _say_whose(name: str) -> None:
    """Say once of a name that it means transformers' optimizer, where there is one here that answers to it."""
    if name in _said:
        return
    try:
        ours = registry.canonical_name(name)
    except ValueError:
        return
    _said.add(name)
    logger.warning("optim=%r is transformers' own optimizer; hfoptim's is optim='hfoptim_%s'", name, ours)
