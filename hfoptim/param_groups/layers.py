"""How deep in a model each parameter is: its rows of blocks, read from the tree of modules. Knows no optimizer."""

from __future__ import annotations

import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from hfoptim.engine.parameter_names import bare_names_of, unwrapped
from hfoptim.param_groups.group_matcher import GroupMatcher, matched_layers, own_matcher

# Rows of these are inside of a block, not blocks.
_NO_BLOCKS = re.compile(r"(^|_)(experts?|heads?)$")
# What feeds blocks, where others are beside it.
_FEEDS = re.compile(r"embed|(^|_)stem($|_)|feature_extractor|(^|_)frontend($|_)")
_ON_TOP = re.compile(r"(^|\.)logit_\w+$")
_ATTENTION = re.compile(r"att(entio)?n", re.IGNORECASE)
_NUMBERED = re.compile(r"(.*?)_?\d+")
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)

_HOW_TO_SAY_IT = (
    "say which layer a parameter is of with group_matcher, such as {'stem': '^embed', 'blocks': r'^layers\\.(\\d+)'} "
    "as timm's models have it, or a function from a name to a number; or leave layer_decay out and scale the learning "
    "rate by names, param_options={'layers.0.*': {'lr_scale': 0.5}}"
)


class Place(NamedTuple):
    """Where a parameter is.

    Args:
        depth: 0 before the blocks, 1.. in them, one more after them.
        above: the number of layers above it, 0 at the top.
    """

    depth: int
    above: int


@dataclass
class _Stack:
    """Layers one on top of the other.

    Args:
        layers: the ids of the parameters of every layer, from the bottom up.
        at: where in the model its first parameter is.
        below: the ids of parameters known to be below.
        members: where the layers come from a row of modules: the number of the first and last layer of each.
        lone: of one module in a `Sequential`, which is a block where it is a stage beside others that have more.
    """

    layers: list[set[int]]
    at: int
    below: set[int] = field(default_factory=set)
    members: list[tuple[int, int]] = field(default_factory=list)
    lone: bool = False

    @property
    def height(self) -> int:
        return len(self.layers)

    @property
    def params(self) -> set[int]:
        return self.below.union(*self.layers)


def layer_places(
    model: nn.Module, heads: Iterable[str] = (), group_matcher: GroupMatcher | None = None
) -> dict[str, Place]:
    """Where every parameter of a model is, frozen ones too.

    A stack of blocks is a row of modules of like structure: in a list or a `Sequential`, or one of each stage of a
    model with several (`layers.0.blocks.1`, `layer1.0`), counted through. What is inside of a block is of its layer,
    experts and heads too. Every stack with a trained parameter counts for itself: an encoder and a decoder, two towers.
    What is not in a block is below the stacks of its part of the model where it is registered before them, or has
    "embed" in its name; else, as the head is, on top. A part that none but a frozen stack is in moves nothing.

    Args:
        model: the model. Where a module of it has timm's method `group_matcher`, that says it for this module.
        heads (default ()): names of parameters on top, whatever else is known of them.
        group_matcher (None): says it for the whole model, see `matched_layers`.

    A model without such rows is one layer, with a warning unless it is one module.

    Raises:
        ValueError: there are stacks that may be one after the other or beside each other, and the message says how to
            say it. Or a matcher is none.
        TypeError: a matcher is none.
    """
    names = {id(param): name for name, param in model.named_parameters()}
    if group_matcher is None:
        group_matcher = own_matcher(unwrapped(model))
    if group_matcher is not None:
        short = bare_names_of(model)
        layers = matched_layers([short[name] for name in names.values()], group_matcher)
        top = max(layers.values(), default=0)
        return {name: Place(layers[short[name]], top - layers[short[name]]) for name in names.values()}
    return _Survey(model, names, set(heads)).places()


class _Survey:
    """The stacks of one model.

    Args:
        model: the model.
        names: the names of its parameters by their ids, in their order.
        heads: names of parameters on top.
    """

    def __init__(self, model: nn.Module, names: Mapping[int, str], heads: set[str]) -> None:
        self.model, self.names = model, names
        self.position = {key: position for position, key in enumerate(names)}
        self.heads = {key for key, name in names.items() if name in heads}
        self.trained = {id(param) for param in model.parameters() if param.requires_grad}

    def places(self) -> dict[str, Place]:
        stacks = self._stacks_that_count()
        if not stacks:
            self._warn_of_one_layer()
            return dict.fromkeys(self.names.values(), Place(0, 0))
        around = self._around(self.model, stacks, {})
        depths: dict[int, int] = {}
        for stack in stacks:
            for number, layer in enumerate([stack.below, *stack.layers]):
                depths.update(dict.fromkeys(layer - self.heads, number))
        on_top, of_frozen = set(), set()
        for key in self.names.keys() - depths.keys():
            own = around[key]
            if not any(stack.params & self.trained for stack in own):
                of_frozen.add(key)
            if self._is_below(key, own):
                depths[key] = 0
            else:
                depths[key] = max(stack.height for stack in own) + 1
                on_top.add(key)
        over = bool(on_top - of_frozen)
        tops = {key: max(stack.height for stack in around[key]) + over for key in self.names}
        return {name: Place(depths[key], max(tops[key] - depths[key], 0)) for key, name in self.names.items()}

    def _is_below(self, key: int, stacks: list[_Stack]) -> bool:
        """Whether a parameter outside of blocks is below the stacks of its part of the model."""
        name = self.names[key]
        if key in self.heads or _ON_TOP.search(name):
            return False
        return "embed" in name or self.position[key] < min(stack.at for stack in stacks)

    def _around(
        self, module: nn.Module, stacks: list[_Stack], found: dict[int, list[_Stack]]
    ) -> dict[int, list[_Stack]]:
        """For every parameter the stacks of the smallest part of the model that has any; trained ones, if there are."""
        for child in module.children():
            self._around(child, stacks, found)
        own = self._params(module)
        inside = [stack for stack in stacks if stack.params & own]
        inside = [stack for stack in inside if stack.params & self.trained] or inside
        if inside:
            for stack in inside:
                found.update({key: [stack] for key in stack.params & own - found.keys()})
            found.update(dict.fromkeys(own - found.keys(), inside))
        return found

    def _params(self, module: nn.Module) -> set[int]:
        return {id(param) for param in module.parameters()}

    def _begin(self, params: set[int]) -> int:
        return min(self.position[key] for key in params)

    def _stacks_that_count(self) -> list[_Stack]:
        """Stacks of blocks, else of single layers, if any of them is trained; else of whatever stands in rows."""
        untrained: list[_Stack] = []
        for kind in (_rows_of_blocks, _rows_of_layers):
            stacks = _without_lone(self._stacks(self.model, kind))
            if any(stack.params & self.trained for stack in stacks):
                return stacks
            untrained = untrained or stacks
        return untrained or _without_lone(self._stacks(self.model, _rows_of_any))

    def _warn_of_one_layer(self) -> None:
        owners = [m for m in self.model.modules() if self.trained & _own_params(m)]
        if len(owners) > 1:
            warnings.warn(
                f"layer_decay has no effect: {type(self.model).__name__} has no row of blocks, so all of it is one "
                f"layer; {_HOW_TO_SAY_IT}",
                stacklevel=2,
            )

    def _stacks(self, module: nn.Module, kind: _Kind) -> list[_Stack]:
        """The stacks in a module, from what stands in it."""
        module = unwrapped(module)
        own = own_matcher(module)
        if own is not None:
            return self._matched(module, own)
        children = [(name, child) for name, child in module.named_children() if self._params(child) - self.heads]
        if children and all(name.isdigit() for name, _ in children):
            members = [child for _, child in children]
            return self._of_row(members, isinstance(module, nn.Sequential), len(module._modules), kind)
        return self._of_parts(children, kind)

    def _matched(self, module: nn.Module, matcher: GroupMatcher) -> list[_Stack]:
        short = bare_names_of(module)
        params = {short[name]: id(param) for name, param in module.named_parameters()}
        layers: dict[int, set[int]] = defaultdict(set)
        for name, layer in matched_layers(params, matcher).items():
            layers[layer].add(params[name])
        if len(layers) < 2:
            return []
        above = [layers[layer] for layer in sorted(layers)[1:]]
        return [_Stack(above, self._begin(set().union(*layers.values())), layers[0])]

    def _of_parts(self, children: list[tuple[str, nn.Module]], kind: _Kind) -> list[_Stack]:
        """The stacks of the parts of a module, which do not stand in a row."""
        parts = [(n, child, self._stacks(child, kind)) for n, child in children if not _NO_BLOCKS.search(n)]
        beside = [(name, child, stacks) for name, child, stacks in parts if stacks and not _FEEDS.search(name)]
        beside = beside or [(name, child, stacks) for name, child, stacks in parts if stacks]
        found: list[_Stack] = []
        rows: dict[tuple[str, type], list[nn.Module]] = defaultdict(list)
        for name, child, _ in beside:
            numbered = _NUMBERED.fullmatch(name)
            rows[numbered[1] if numbered else name, type(unwrapped(child))].append(child)
        for members in rows.values():
            if len(members) > 1:  # layer1, layer2, ...
                found += self._of_several(members, [self._stacks(member, kind) for member in members], False)
            else:
                found += next(stacks for _, child, stacks in beside if child is members[0])
        return self._aligned(_without_lone(found) or found, [child for _, child, _ in parts])

    def _aligned(self, stacks: list[_Stack], children: list[nn.Module]) -> list[_Stack]:
        """With the lists beside a row that are as long: patch embeddings by stage, norms by layer."""
        if not stacks:
            return stacks
        main = max(stacks, key=lambda stack: stack.height)
        for child in map(unwrapped, children):
            members = [self._params(member) for member in child.children()] if isinstance(child, nn.ModuleList) else []
            if len(members) < 2 or len(members) != len(main.members) or any(own & main.params for own in members):
                continue
            staged, before = main.height > len(members), self._begin(set().union(*members)) < main.at
            for place, (own, (first, last)) in enumerate(zip(members, main.members, strict=True)):
                if not (staged and before and place == 0):
                    main.layers[(first if before else last) - 1] |= own
            stacks = [stack for stack in stacks if stack is main or not stack.params <= main.params]
        return stacks

    def _of_row(self, members: list[nn.Module], serial: bool, places: int, kind: _Kind) -> list[_Stack]:
        """The stacks of modules that stand in a row, in a list or (serial) one after the other."""
        inner = [self._stacks(member, kind) for member in members]
        if not any(_without_lone(stacks) for stacks in inner):
            inner = [[] for _ in members]
        blocks = kind(members, serial, places)
        if not blocks or any(stacks for place, stacks in enumerate(inner) if place not in blocks):
            if serial and all(len(stacks) <= 1 for stacks in inner):
                return self._chain(members, inner)
            return [stack for stacks in inner for stack in stacks]
        if kind is _rows_of_blocks:
            inner = [stacks or self._bare_stacks(member) for member, stacks in zip(members, inner, strict=True)]
            with_rows = [type(member) for member, stacks in zip(members, inner, strict=True) if stacks]
            without = [type(member) for member, stacks in zip(members, inner, strict=True) if not stacks]
            if with_rows and not set(with_rows) & set(without):
                return self._of_several(members, inner, serial)
        found = self._of_blocks(members, blocks)
        for stack in found:
            stack.lone = serial and len(members) == 1
        return found

    def _bare_stacks(self, member: nn.Module) -> list[_Stack]:
        """The one row of single layers that, beside what it is fed by and norms, is all there is in a module."""
        stacks = self._stacks(member, _rows_of_layers)
        if len(stacks) != 1 or stacks[0].height < 2:
            return []
        inside = [m for m in member.modules() if m is not member and _own_params(m)]
        units = sum(bool(_own_params(module) & _params_of(stacks)) for module in inside)
        fed = all(_own_params(m) <= _params_of(stacks) or isinstance(m, _NORMS) or _is_input(m) for m in inside)
        return stacks if fed and units == stacks[0].height else []

    def _of_several(self, members: list[nn.Module], inner: list[list[_Stack]], serial: bool) -> list[_Stack]:
        """The stacks of modules with stacks inside: stages of one model, models beside each other, or blocks."""
        pairs = [(member, stacks) for member, stacks in zip(members, inner, strict=True) if stacks]
        every = [stack for _, stacks in pairs for stack in stacks]
        if len(pairs) > 1 and all(_has_input(member, _params_of(stacks)) for member, stacks in pairs):
            return every
        if any(len(stacks) > 1 for _, stacks in pairs) or all(_attends(m, _params_of(s)) for m, s in pairs):
            return self._of_blocks(members, range(len(members)))
        lists = all(isinstance(unwrapped(member), nn.ModuleList) for member, _ in pairs)
        if (
            serial
            or lists
            or len(pairs) == 1
            or len({_width(member, _params_of(stacks)) for member, stacks in pairs}) > 1
        ):
            return self._chain(members, inner)
        first, second = (self.names[min(stack.params, key=self.position.__getitem__)] for stack in every[:2])
        raise ValueError(
            f"layer_decay counts blocks, and those of {type(self.model).__name__} cannot be told apart: {first!r} and "
            f"{second!r} may be in stages one after the other, or in parts beside each other; {_HOW_TO_SAY_IT}"
        )

    def _of_blocks(self, members: list[nn.Module], blocks: Sequence[int]) -> list[_Stack]:
        """One stack of a layer per block. What stands between two blocks is of the next one's layer."""
        layers: list[set[int]] = []
        between: set[int] = set()
        seen: set[int] = set()
        spans = []
        for place in range(blocks[0], blocks[-1] + 1):
            between |= self._params(members[place]) - seen - self.heads
            seen |= between
            if place in blocks:
                layers += [between] if between else []
                spans.append((len(layers), len(layers)))
                between = set()
        return [_Stack(layers, self._begin(seen), members=spans)] if layers else []

    def _chain(self, members: list[nn.Module], inner: list[list[_Stack]]) -> list[_Stack]:
        """One stack of stages one after the other. What is between their blocks is of the next one's layer."""
        chain = _Stack([], 0)
        between: set[int] = set()
        for member, stacks in zip(members, inner, strict=True):
            rest = self._params(member) - chain.params - between
            if not stacks:
                between |= rest
                continue
            stack = stacks[0]
            layers, rest = [set(layer) for layer in stack.layers], rest - stack.params
            before = {key for key in rest if self.position[key] < stack.at}
            if chain.layers:
                layers[0] |= between | before | stack.below
            else:
                chain.at, chain.below = stack.at, set(stack.below)
            chain.members.append((chain.height + 1, chain.height + len(layers)))
            chain.layers += layers
            between = rest - before
        return [chain] if chain.layers else []


_Kind = Callable[[Sequence[nn.Module], bool, int], Sequence[int]]


def _rows_of_blocks(members: Sequence[nn.Module], serial: bool, places: int) -> Sequence[int]:
    """Which modules of a row are blocks: of several modules each, and of a class that is there again."""
    composite = [place for place, member in enumerate(members) if _is_composite(member)]
    if len(members) == 1:
        return composite
    kinds = Counter(type(unwrapped(members[place])) for place in composite)
    again = [place for place in composite if kinds[type(unwrapped(members[place]))] > 1]
    if not again:
        return []
    return [place for place in composite if not serial or again[0] <= place <= again[-1]]


def _rows_of_layers(members: Sequence[nn.Module], serial: bool, places: int) -> Sequence[int]:
    """All modules of a row if they are of one class, with nothing between them that has no parameters."""
    alike = len({type(unwrapped(member)) for member in members}) == 1 and len(members) == places
    return range(len(members)) if alike and not (serial and len(members) == 1) else []


def _rows_of_any(members: Sequence[nn.Module], serial: bool, places: int) -> Sequence[int]:
    return [] if serial and len(members) == 1 else range(len(members))


def _without_lone(stacks: list[_Stack]) -> list[_Stack]:
    return [stack for stack in stacks if not stack.lone]


def _is_composite(module: nn.Module) -> bool:
    """Whether a module is made of several, not counting norms: more than a layer and its norm."""
    return sum(bool(_own_params(part)) and not isinstance(part, _NORMS) for part in module.modules()) > 1


def _own_params(module: nn.Module) -> set[int]:
    return {id(param) for param in module.parameters(recurse=False)}


def _params_of(stacks: Iterable[_Stack]) -> set[int]:
    return {key for stack in stacks for key in stack.params}


def _is_input(module: nn.Module) -> bool:
    """Whether a module is one that takes tokens, pixels or samples."""
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return True
    return isinstance(module, nn.modules.conv._ConvNd) and module.in_channels <= 4


def _has_input(module: nn.Module, blocks: set[int]) -> bool:
    """Whether a module takes tokens, pixels or samples, beside its blocks."""
    return any(_is_input(part) and not blocks & {id(p) for p in part.parameters()} for part in module.modules())


def _attends(module: nn.Module, blocks: set[int]) -> bool:
    """Whether a module has attention of its own, beside the rows in it."""
    for name, part in module.named_modules():
        params = {id(param) for param in part.parameters()}
        if params and not params & blocks and _ATTENTION.search(f"{name} {type(part).__name__}"):
            return True
    return False


def _width(module: nn.Module, blocks: set[int]) -> int:
    """The size that the blocks of a module have most of."""
    sizes = Counter(size for param in module.parameters() if id(param) in blocks for size in param.shape[:2])
    return sizes.most_common(1)[0][0] if sizes else 0
