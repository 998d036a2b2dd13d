"""Reading and checking options given as text: `optim_args`, `lr_scheduler_kwargs`.

    options : JSON object | {quoted word: value, ...} | pair ("," pair)*
    pair    : name "=" value
    value   : number | True | False | None | (value, ...) | [value, ...] | {quoted word: value, ...} | word
    word    : quoted or plain

Commas inside brackets and quotes do not separate, and `False` is False. (transformers' own reader cuts at every comma
and leaves every value a string.)
"""

from __future__ import annotations

import ast
import itertools
import json
import re
from collections.abc import Mapping
from typing import Any

from hfoptim.engine.checks import plain

WORDS = {"true": True, "false": False, "none": None, "null": None}
# Flags that may be a word instead.
OR_A_WORD = {"caution": "momentum", "scale_parameter": "relative"}
PAIRS = {"(": ")", "[": "]", "{": "}"}


def parse_options(given: str | Mapping[str, Any] | None, argument: str = "optim_args") -> dict[str, Any]:
    """Read the options that an argument of TrainingArguments holds.

    Args:
        given: a JSON object, the same in Python's spelling, `key=value,...`, a mapping (from a configuration file), or
            None for no options.
        argument (default "optim_args"): the argument, for messages.

    Returns:
        Option names and values. Lists are tuples.

    Raises:
        ValueError: it follows neither grammar, or names an option twice.
        TypeError: it is neither text nor a mapping.
    """
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return {str(key): _tuples(value) for key, value in given.items()}
    if not isinstance(given, str):
        raise TypeError(f"{argument} must be text or a mapping, got {given!r}")
    if given.lstrip().startswith("{"):
        return _from_braces(given, argument)
    options: dict[str, Any] = {}
    for part in _split(given, argument):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key.isidentifier() or not value:
            hint = _tuple_meant(given, list(options), argument) if not equals else ""
            raise ValueError(f"{argument}: {part.strip()!r} is not of the form name=value (in {given!r}){hint}")
        if key in options:
            raise ValueError(f"{argument}: {key!r} is given twice (in {given!r})")
        options[key] = read_value(value, argument)
    return options


def _tuple_meant(text: str, before: list[str], argument: str) -> str:
    """What to write for `betas=0.9,0.98`: the values that follow the last of the options read `before`, in brackets."""
    if not before:
        return ""
    parts = [part.strip() for part in _split(text, argument)]
    values = [parts[len(before) - 1].partition("=")[2].strip()]
    values += itertools.takewhile(lambda part: "=" not in part, parts[len(before) :])
    return f"; several values of one option go in brackets: {before[-1]}=({','.join(values)})"


def read_value(text: str, argument: str = "optim_args") -> Any:
    """Read one value: a number, True, False, None, a tuple, list or dict of values, or else a word.

    Args:
        text: the value as written; `true`, `null` and the like count in any case.
        argument (default "optim_args"): where it stands, for messages.

    Returns:
        The value. A list is returned as a tuple.

    Raises:
        ValueError: the text is neither a literal nor a plain word, or names a key of a dict twice.
    """
    text = text.strip()
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    if text.lower().lstrip("+-") in ("inf", "nan"):
        return float(text)
    try:
        read = ast.parse(text, mode="eval")
        value = ast.literal_eval(read)
    except (ValueError, SyntaxError):
        if re.fullmatch(r"[\w.:/+-]+", text):
            return text
        raise ValueError(f"{argument}: cannot read the value {text!r}") from None
    for node in ast.walk(read):
        keys = [ast.unparse(key) for key in node.keys if key] if isinstance(node, ast.Dict) else []
        if len(keys) > len(set(keys)):
            raise ValueError(f"{argument}: {max(keys, key=keys.count)} is given twice (in {text!r})")
    return _tuples(value)


def fit(option: str, value: Any, default: Any) -> Any:
    """Bring a value to the kind of its default: text is read, and a flag must be a flag.

    Args:
        option: the option's name, for the message.
        value: as given. Text comes from YAML too, whose reader takes `1e-3` for text.
        default: the optimizer's own value.

    Returns:
        The value to pass to the optimizer.

    Raises:
        ValueError: the value is of another kind than the default.
    """
    if isinstance(value, str) and (not isinstance(default, str) or option in OR_A_WORD):
        read = plain(value)
        value = read_value(read) if isinstance(read, str) else read
    flag = isinstance(default, bool) or option in OR_A_WORD
    if flag and not isinstance(value, bool) and value != OR_A_WORD.get(option):
        raise ValueError(f"{option} must be True or False, got {value!r}")
    number = isinstance(default, (int, float)) and not isinstance(default, bool)
    if number and (value is None or isinstance(value, (str, tuple, bool))):
        raise ValueError(f"{option} must be a number, got {value!r}")
    return value


def _from_braces(text: str, argument: str) -> dict[str, Any]:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = {key for key, _ in items if [k for k, _ in items].count(key) > 1}
        if twice:
            raise ValueError(f"{argument}: {sorted(twice)[0]!r} is given twice (in {text!r})")
        return dict(items)

    try:
        return {key: _tuples(value) for key, value in json.loads(text, object_pairs_hook=pairs).items()}
    except json.JSONDecodeError as error:
        # In Python's spelling, as the help of transformers has it: {'num_cycles': 1}.
        try:
            literal = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError):
            literal = None
        if not isinstance(literal, dict):
            raise ValueError(f"{argument} starts with {{ but is not JSON: {error} (in {text!r})") from error
    return {str(key): value for key, value in read_value(text, argument).items()}


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples(entry) for key, entry in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _split(text: str, argument: str) -> list[str]:
    """The parts between commas that are not inside brackets or quotes."""
    parts, start, closing, quote = [], 0, [], ""
    for position, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in PAIRS:
            closing.append(PAIRS[char])
        elif closing and char == closing[-1]:
            closing.pop()
        elif char in ")]}":
            raise ValueError(f"{argument}: unexpected {char!r} (in {text!r})")
        elif char == "," and not closing:
            parts.append(text[start:position])
            start = position + 1
    if quote or closing:
        raise ValueError(f"{argument}: {quote or closing[-1]!r} is missing (in {text!r})")
    parts.append(text[start:])
    return [part for part in parts if part.strip()]
