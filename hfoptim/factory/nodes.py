"""Nodes of configurations as plain Python: of OmegaConf, Hydra, MMEngine, YAML and JSON, none of which is required."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hfoptim.engine.checks import closest

# What Hydra's `instantiate` reads beside `_target_`, and is of no use where parameters are at hand.
_OF_HYDRA = ("_partial_", "_convert_", "_recursive_")


def read_config(config: Any) -> dict[str, Any]:
    """A configuration as a plain dict: a mapping, a path of a YAML or JSON file, or YAML as text.

    Raises:
        TypeError: it is none of these, or holds no mapping.
        ImportError: it is YAML, and PyYAML is not installed.
        OSError: the file cannot be read.
        ValueError: it is neither YAML nor JSON.
    """
    if isinstance(config, (str, os.PathLike)):
        text, kind = str(config), Path(config).suffix.lower() if "\n" not in str(config) else ""
        if isinstance(config, os.PathLike) or kind in (".yaml", ".yml", ".json"):
            text = Path(config).read_text(encoding="utf-8")
        config = _parsed(text, kind)
    return plain_node("the configuration", config)


def _parsed(text: str, kind: str) -> Any:
    if kind == ".json":
        return json.loads(text)
    try:
        import yaml
    except ImportError as error:
        raise ImportError("a configuration in YAML needs PyYAML: pip install pyyaml") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"the configuration is no YAML: {error}") from error


def plain_node(what: str, node: Any, keep: Collection[str] = ()) -> dict[str, Any]:
    """A node as a dict, with dicts and lists of Python's own in it.

    Args:
        what: what it is, for the message.
        node: a mapping of whatever class.
        keep (default ()): keys whose values stay as they are.

    Raises:
        TypeError: it is no mapping.
    """
    if not _is_mapping(node):
        raise TypeError(f"{what} is {node!r}, a {type(node).__name__}, expected a mapping such as dict(type='AdamW')")
    return {str(key): node[key] if key in keep else _plain(node[key]) for key in node.keys()}  # noqa: SIM118


def _is_mapping(node: Any) -> bool:
    # MMEngine's Config is none, but has what one needs.
    return isinstance(node, Mapping) or (
        not isinstance(node, type) and hasattr(node, "keys") and hasattr(node, "__getitem__")
    )


def _plain(value: Any) -> Any:
    if _is_mapping(value):
        return {key: _plain(value[key]) for key in value.keys()}  # noqa: SIM118
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return list(map(_plain, value)) if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else value


def check_keys(what: str, node: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise a ValueError, with the closest keys, for one that is not known."""
    for key in node:
        if key not in known:
            raise ValueError(f"{what} has no entry {key!r}; {closest(key, known)}")


def take_target(what: str, node: dict[str, Any]) -> Any:
    """Take Hydra's `_target_` and its other keys out of a node, and return what it names.

    Raises:
        ValueError: nothing is there, or `_args_` are given.
        TypeError: it is no path.
    """
    path = node.pop("_target_")
    if not isinstance(path, str):
        raise TypeError(
            f"{what}: _target_={path!r} is a {type(path).__name__}, expected a path such as 'hfoptim.AdamW'"
        )
    for key in _OF_HYDRA:
        node.pop(key, None)
    if node.pop("_args_", None):
        raise ValueError(f"{what}: _args_ are not taken; give all of them by name")
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{what}: there is no {path!r}: {error}") from error
