"""Which checkpoint of a training is whole: a run that was killed leaves the last one unfinished.

transformers (4.57 and 5.x) writes the files of a checkpoint straight into its folder, in this order:

    config.json, generation_config.json
    model.safetensors, or shards and then model.safetensors.index.json, or adapter_model.safetensors and its config
    training_args.bin
    optimizer.pt, scheduler.pt, scaler.pt (float16 only), rng_state.pth (rng_state_<rank>.pth of every process)
    trainer_state.json

and takes the folder with the highest number for the last checkpoint, whatever is in it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from typing import Any

from hfoptim.trainer import private

logger = logging.getLogger(__name__)

STATE = "trainer_state.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# The first is plain, then come those of FSDP (files or folders), XLA and SageMaker.
OPTIMIZERS = ("optimizer.pt", "optimizer.bin", "optimizer_[0-9]*", "rank*-of-*-optimizer.pt", "optimizer.pt_*")
SHARDED_WEIGHTS = ("pytorch_model_fsdp*.bin", "pytorch_model_fsdp_[0-9]*", "rank*-of-*-pytorch_model.bin")
# What a Trainer that saves in a way of its own may call its weights; and what is not weights, or not all of them.
OWN_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt")
NO_WEIGHTS = (*OPTIMIZERS, "scheduler.pt", "scaler.pt", "rng_state*", "training_args.bin", "*-[0-9]*-of-[0-9]*")
# transformers puts it into a checkpoint made on SIGTERM, and takes it away when that is complete.
UNFINISHED = "checkpoint-is-incomplete.txt"


def last_whole_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """The newest checkpoint of a training from which it can be resumed, or None if there is none.

    Takes the place of `transformers.trainer_utils.get_last_checkpoint`. A checkpoint that lacks something, because the
    run was killed while it wrote it, is passed over with a warning that says what it lacks; nothing is deleted. What is
    looked at are names, lengths, the records at the beginning or end of files, and trainer_state.json: no weights are
    read. Checkpoints written without hfoptim count too.

    Args:
        folder: the training's `output_dir`, with folders named `checkpoint-<step>`.

    Returns:
        The path of the checkpoint's folder, or None.

    Raises:
        OSError: there is no such folder, or it cannot be read.
    """
    for path in reversed(checkpoints(folder)):
        lacks = missing_parts(path)
        if not lacks:
            return path
        logger.warning("%s is not a whole checkpoint and is passed over: %s", path, "; ".join(lacks))
    return None


def checkpoints(folder: str | os.PathLike[str]) -> list[str]:
    """The folders `checkpoint-<step>` in a folder, whole or not, by their step."""
    steps = {name: _step(name) for name in os.listdir(folder)}
    paths = [(step, os.path.join(folder, name)) for name, step in steps.items() if step is not None]
    return [path for _, path in sorted(paths) if os.path.isdir(path)]


def missing_parts(checkpoint: str | os.PathLike[str]) -> list[str]:
    """What a checkpoint lacks to be whole, in words; nothing if it is whole.

    Args:
        checkpoint: the checkpoint's folder.
    """
    names = sorted(os.listdir(checkpoint))
    lacks = [*_trainer_state(checkpoint), *_weights(checkpoint, names), *_training_state(checkpoint, names)]
    return [f"{UNFINISHED} says so", *lacks] if UNFINISHED in names else lacks


def attend(trainer: Any) -> None:
    """See to it that a checkpoint which a trainer is writing cannot pass for whole, and that no whole one is lost.

    - Where a run that was resumed further back writes a checkpoint over an older one, the old trainer_state.json would
      make a mixture of both look whole. So it goes first, as it is written last.
    - `save_total_limit` counts folders. Those of a killed run are deleted before whole ones, even where the file
      system gives no usable times and the order is by number.

    Args:
        trainer: the trainer, about to train.
    """
    private.intercept(trainer, "_save_checkpoint", _saving)


def _saving(trainer: Any, save: Callable[..., Any], name: str, model: Any, trial: Any) -> Any:
    current = private.checkpoint_folder(trainer, trial)
    if trainer.args.should_save:
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(current, STATE))

    def unfinished(path: str) -> bool:
        try:
            # Not the one just written: other processes may still be at it.
            return not os.path.samefile(path, current) and bool(missing_parts(path))
        except FileNotFoundError:  # another process has just deleted it
            return True

    with private.deletion_order(lambda paths: sorted(paths, key=lambda path: not unfinished(path))):
        return save(model, trial)


# -- the parts of a checkpoint ----------------------------------------------------------------------------------------


def _step(name: str | os.PathLike[str]) -> int | None:
    match = re.fullmatch(r"checkpoint-(\d+)", os.path.basename(os.path.normpath(name)))
    return int(match[1]) if match else None


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _trainer_state(checkpoint: str | os.PathLike[str]) -> list[str]:
    path = os.path.join(checkpoint, STATE)
    if not os.path.isfile(path):
        return [f"no {STATE}"]
    content = _read_json(path)
    if not isinstance(content, dict):
        return [f"{STATE} ends early"]
    step, wanted = content.get("global_step"), _step(checkpoint)
    return [f"{STATE} is of step {step}"] if wanted is not None and step != wanted else []


def _weights(checkpoint: str | os.PathLike[str], names: list[str]) -> list[str]:
    """What the weights lack; adapters, and the modules of a sentence-transformer, have folders of their own."""
    lacks: list[str] = []
    found = False
    inner = [name for name in names if os.path.isdir(os.path.join(checkpoint, name))]
    for part in ("", *inner):
        for name in os.listdir(os.path.join(checkpoint, part)):
            path, shown = os.path.join(checkpoint, part, name), os.path.join(part, name)
            if name in (*WEIGHTS, *ADAPTERS):
                found = True
                lacks += _cut(path, shown)
            elif name in INDEXES:
                found = True
                lacks += _shards(path, shown)
            if name in ADAPTERS and _read_json(os.path.join(checkpoint, part, "adapter_config.json")) is None:
                lacks.append(f"no whole {os.path.join(part, 'adapter_config.json')}")
    for name in (name for name in names if _matches(name, SHARDED_WEIGHTS)):
        found = True
        lacks += _cut(os.path.join(checkpoint, name), name)
    if "latest" in names:
        found = True
        lacks += _deepspeed(checkpoint)
    found = found or any(_matches(name, OWN_WEIGHTS) and not _matches(name, NO_WEIGHTS) for name in names)
    return lacks if found else [*lacks, f"no weights ({WEIGHTS[0]}, {INDEXES[0]}, {ADAPTERS[0]} or the like)"]


def _training_state(checkpoint: str | os.PathLike[str], names: list[str]) -> list[str]:
    """What optimizer, schedule and random numbers lack, unless only the model was to be saved."""
    optimizers = [name for name in names if _matches(name, OPTIMIZERS)]
    others = [name for name in names if name in ("scheduler.pt", "scaler.pt") or fnmatch(name, "rng_state*.pth")]
    told = _saved_arguments(os.path.join(checkpoint, "training_args.bin"))
    if told.get("save_only_model", not optimizers and not others):
        return []
    lacks = [each for name in (*optimizers, *others) for each in _cut(os.path.join(checkpoint, name), name)]
    if "latest" not in names:  # else DeepSpeed has both
        lacks += [] if optimizers else ["no optimizer.pt"]
        lacks += [] if "scheduler.pt" in names else ["no scheduler.pt"]
    ranks = [int(match[1]) for match in (re.fullmatch(r"rng_state_(\d+)\.pth", name) for name in names) if match]
    processes = told.get("num_processes", max(ranks, default=0) + 1)
    if told.get("save_on_each_node"):
        wanted = []  # those of other nodes may be on their disks
    elif ranks or processes > 1:
        wanted = [f"rng_state_{rank}.pth" for rank in range(processes)]
    else:
        wanted = ["rng_state.pth"]
    return lacks + [f"no {name}" for name in wanted if name not in names]


def _shards(index: str, shown: str) -> list[str]:
    """What the weights behind an index lack."""
    content = _read_json(index)
    if not isinstance(content, dict) or not isinstance(content.get("weight_map"), dict):
        return [f"{shown} ends early"]
    shards = sorted(set(content["weight_map"].values()))
    beside = {shard: os.path.join(os.path.dirname(index), shard) for shard in shards}
    return [
        what
        for shard, path in beside.items()
        for what in (_cut(path, shard) if os.path.isfile(path) else [f"no {shard}"])
    ]


def _deepspeed(checkpoint: str | os.PathLike[str]) -> list[str]:
    """DeepSpeed writes a folder for the step, and last of all its name into the file `latest`."""
    with open(os.path.join(checkpoint, "latest"), encoding="utf-8") as file:
        tag = file.read().strip()
    path = os.path.join(checkpoint, tag)
    if not tag or not os.path.isdir(path):
        return [f"no folder {tag!r}, which DeepSpeed's latest names"]
    states = [name for name in sorted(os.listdir(path)) if name.endswith(".pt")]
    lacks = [each for name in states for each in _cut(os.path.join(path, name), os.path.join(tag, name))]
    return lacks if states else [f"no states in {tag}"]


# -- files --------------------------------------------------------------------------------------------------------


def _cut(path: str, shown: str) -> list[str]:
    """Whether a file (of torch.save or safetensors) or a folder (of torch.distributed.checkpoint) ends early."""
    if os.path.isdir(path):
        # .metadata is written when all processes are done.
        return [] if os.path.isfile(os.path.join(path, ".metadata")) else [f"no {os.path.join(shown, '.metadata')}"]
    whole = _whole_safetensors if path.endswith(".safetensors") else _whole_torch_file
    return [] if whole(path) else [f"{shown} ends early ({os.path.getsize(path)} bytes)"]


def _whole_torch_file(path: str) -> bool:
    """torch.save writes a zip archive; its directory is at the end."""
    try:
        with zipfile.ZipFile(path):
            return True
    except zipfile.BadZipFile:
        return False


def _whole_safetensors(path: str) -> bool:
    """The header says where the last tensor ends: 8 bytes with its length, then JSON, then the tensors."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 + length:
            return False
        try:
            header = json.loads(file.read(length))
            end = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
        except (ValueError, TypeError, KeyError, AttributeError):
            return False
    return size == 8 + length + end


def _read_json(path: str) -> Any:
    """A file's content, None if it is not there or is not JSON to its end."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (FileNotFoundError, ValueError):
        return None


def _saved_arguments(path: str) -> dict[str, Any]:
    """What training_args.bin says of the run that wrote it, as far as it can be read.

    Only the pickle's words are read: loading it would run what it says, and need all that the arguments refer to.
    """
    wanted: dict[str, Callable[[Any, Any], Any]] = {
        "num_processes": lambda name, value: value if name.startswith("BININT") else None,
        **dict.fromkeys(("save_only_model", "save_on_each_node"), _flag),
    }
    told: dict[str, Any] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            words = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
        key = None
        for opcode, value, _ in pickletools.genops(words):
            if opcode.name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
                continue
            if key is not None and (found := wanted[key](opcode.name, value)) is not None:
                told[key] = found
            key = value if isinstance(value, str) and value in wanted else None
    except (OSError, zipfile.BadZipFile, StopIteration, ValueError):
        return {}
    return told


def _flag(name: str, value: Any) -> bool | None:
    return {"NEWTRUE": True, "NEWFALSE": False}.get(name)
