"""BAdam: one block of layers is trained at a time, with any optimizer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.optim import Optimizer

from hfoptim.engine import storage, unwrap
from hfoptim.engine.checks import flag, integer, strings
from hfoptim.wrappers.wrapper import Wrapper

MODES = ("descending", "ascending", "random")
# A row of blocks: everything up to the first number in a name.
_NUMBERED = re.compile(r"^((?:.*?\.)?\d+)\.")
_EMBEDDING = re.compile(r"(^|[._])(\w*embed\w*|wte|wpe)([._]|$)")


class BAdam(Wrapper):
    """Block coordinate descent: for so many steps one block of layers is trained, then the next, each with new state.

    With k = `switch_block_every`, of the blocks 1, ..., n in an order, at step t, counted from 0:

        the active block is that of number floor(t / k) modulo n in the order
        p = the inner optimizer's step, for the parameters p of the active block; all others stay
        where t + 1 is a multiple of k, the inner optimizer's state is dropped

    So there is state, and there are gradients, of one block at a time: parameters of others have `requires_grad=False`.
    A block is what has the same name up to its first number, `model.layers.3`; embeddings, and all that is neither,
    such as a head and norms outside of layers, are trained only if `include_embedding` and `include_lm_head` say so.
    Other blocks are given as `block_prefix_list`. The order is that of the names ("ascending"), the other way round
    ("descending") or drawn anew for each round ("random"), from the round's number.

    By name `badam` goes around AdamW, and `badam_lion` around Lion; the options are `badam_switch_every`,
    `badam_switch_mode`, `badam_blocks`, `badam_include_embedding`, `badam_include_lm_head` and `badam_active_modules`,
    the same in all groups. Steps are counted in `badam_step`, so a resumed run goes on in its block. It needs names of
    parameters, and one process: DistributedDataParallel and FSDP fix at the start what needs a gradient. With
    reentrant gradient checkpoints a frozen embedding needs `model.enable_input_require_grads()`. What is frozen when it
    is made is in no block. After training, `model.requires_grad_(True)` undoes what it has frozen.

    Args:
        optimizer: any torch optimizer over named parameters.
        switch_block_every (default 50): steps of a block, k.
        switch_mode ("descending"): the order, "descending", "ascending" or "random".
        block_prefix_list (None): for each block the texts of which a parameter's name has one; None: by the names.
        include_embedding (False): embeddings are a block, the first.
        include_lm_head (False): what is in no layer and no embedding is a block, the last.
        active_modules (()): parts of names of parameters that are in every block.

    Raises:
        TypeError: no optimizer, or an option of the wrong type.
        ValueError: an option out of range, parameters without names, or a wrapper as inner optimizer. From `step`:
            there is no block.
        RuntimeError: from `step`, there are several processes.

    Source:
        Luo, Yu and Li, BAdam: A Memory Efficient Full Parameter Optimization Method for Large Language Models, arXiv
        2404.02827; Ledzy/BAdam, the authors' `BlockOptimizer`, whose first block has one step less. There a 16-bit
        block is trained on a copy in float32; here the inner optimizer keeps what rounding takes (hfoptim's do), until
        the block ends.
    """

    by_name = {
        "badam_switch_every": 50,
        "badam_switch_mode": "descending",
        "badam_blocks": None,
        "badam_include_embedding": False,
        "badam_include_lm_head": False,
        "badam_active_modules": (),
    }
    counters = {"badam_step": 0}
    # Those that were trainable at the start, by their numbers among the parameters of all groups.
    _trained: tuple[int, ...] = ()

    def __init__(
        self,
        optimizer: Optimizer,
        switch_block_every: int = 50,
        switch_mode: str = "descending",
        block_prefix_list: Sequence[Sequence[str]] | None = None,
        include_embedding: bool = False,
        include_lm_head: bool = False,
        active_modules: Sequence[str] = (),
    ) -> None:
        given = (switch_block_every, switch_mode, block_prefix_list, include_embedding, include_lm_head, active_modules)
        super().__init__(optimizer, dict(zip(self.by_name, given, strict=True)))

    def reads_state(self, own: Mapping[str, Any]) -> bool:
        return True

    def check_inner(self, optimizer: Optimizer) -> None:
        if unwrap(optimizer, Wrapper) is not None:
            raise ValueError("BAdam drops the state of its inner optimizer; put other wrappers around it, not inside")
        if not all("param_names" in group for group in optimizer.param_groups):
            raise ValueError("BAdam finds blocks by the names of parameters; give the optimizer named_parameters()")

    def check_group(self, group: dict[str, Any]) -> None:
        group["badam_switch_every"] = integer("badam_switch_every", group["badam_switch_every"], 1)
        group["badam_step"] = integer("badam_step", group["badam_step"], 0)
        if group["badam_switch_mode"] not in MODES:
            raise ValueError(
                f"badam_switch_mode={group['badam_switch_mode']!r} is unknown, expected one of {', '.join(MODES)}"
            )
        for name in ("badam_include_embedding", "badam_include_lm_head"):
            flag(name, group[name])
        group["badam_active_modules"] = tuple(strings("badam_active_modules", group["badam_active_modules"]))
        blocks = group["badam_blocks"]
        if blocks is not None:
            if isinstance(blocks, str) or not isinstance(blocks, Sequence) or not blocks:
                raise TypeError(f"badam_blocks={blocks!r}, expected a list of blocks, each a list of parts of names")
            group["badam_blocks"] = tuple(tuple(strings("badam_blocks", block)) for block in blocks)

    def begin(self) -> None:
        self._take_on(0)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        known = len(self._named())
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if "param_names" not in group:
            self.param_groups.pop()
            raise ValueError("BAdam finds blocks by the names of parameters; give the group's as (name, parameter)")
        group["badam_step"] = self.param_groups[0]["badam_step"]
        self._take_on(known)

    def _take_on(self, known: int) -> None:
        """Let the parameters beyond those that are known take part."""
        named = enumerate(self._named())
        self._trained += tuple(number for number, (_, param) in named if number >= known and param.requires_grad)
        self._activate()

    def _named(self) -> list[tuple[str, Tensor]]:
        groups = self.param_groups
        return [pair for each in groups for pair in zip(each["param_names"], each["params"], strict=True)]

    def _trainable(self) -> list[tuple[str, Tensor]]:
        named = self._named()
        return [named[number] for number in self._trained]

    @property
    def blocks(self) -> list[list[str]]:
        """The names of each block's parameters, without those that are in every block."""
        group, names = self.param_groups[0], [name for name, _ in self._trainable()]
        if group["badam_blocks"] is not None:
            found = [[n for n in names if any(part in n for part in block)] for block in group["badam_blocks"]]
            return [block for block in found if block]
        layers: dict[str, list[str]] = {}
        embedding: list[str] = []
        rest: list[str] = []
        for name in names:
            numbered = _NUMBERED.match(name)
            if numbered:
                layers.setdefault(numbered[1], []).append(name)
            else:
                (embedding if _EMBEDDING.search(name) else rest).append(name)
        first = [embedding] if group["badam_include_embedding"] and embedding else []
        last = [rest] if group["badam_include_lm_head"] and rest else []
        return [*first, *layers.values(), *last]

    @property
    def active(self) -> list[str]:
        """The names of the parameters that are trained now."""
        group, blocks = self.param_groups[0], self.blocks
        number, place = divmod(group["badam_step"] // group["badam_switch_every"], len(blocks))
        mode = group["badam_switch_mode"]
        if mode == "random":
            bits = storage.random_bits(len(blocks), storage.row_seed(number + 1, 0), 0, torch.device("cpu"))
            place = int(bits.argsort(stable=True)[place])
        elif mode == "descending":
            place = len(blocks) - 1 - place
        always = group["badam_active_modules"]
        names = [name for name, _ in self._trainable()]
        return [name for name in names if name in blocks[place] or any(part in name for part in always)]

    def _refuse_no_blocks(self) -> None:
        if not self.blocks:
            raise ValueError(
                f"none of the {len(self._trained)} trainable parameters is in a block: BAdam takes what has a number "
                f"in its name for a layer; give block_prefix_list, such as [['encoder'], ['decoder']]"
            )

    def _activate(self) -> None:
        """Let the active block need gradients, and nothing else."""
        self.refuse_differing()
        if not self.blocks:  # said at the first step: its options may be tried without a model
            return
        active = {*self.active}
        for name, param in self._trainable():
            param.requires_grad_(name in active)
            if name not in active:
                param.grad = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step of the inner optimizer; after each k-th one, go on to the next block.

        Args:
            closure: handed to the inner optimizer.

        Returns:
            What the inner optimizer returns.
        """
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise RuntimeError(
                "BAdam changes from step to step which parameters need gradients, and DistributedDataParallel and FSDP "
                "have fixed it; train in one process, or with LoRA or GaLore in several"
            )
        self.complete_groups()
        if self.param_groups[0]["badam_step"] % self.param_groups[0]["badam_switch_every"] == 0:
            self._refuse_no_blocks()
        loss = self._inner.step(closure)
        if self.only_made_state("badam_step"):
            return loss
        for group in self.param_groups:
            group["badam_step"] += 1
        if self.param_groups[0]["badam_step"] % self.param_groups[0]["badam_switch_every"] == 0:
            self.state.clear()
            self._activate()
        return loss

    def _load(self, state_dict: dict[str, Any]) -> None:
        super()._load(state_dict)
        self._activate()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_trained": self._trained}
