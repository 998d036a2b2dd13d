"""Which parameter gets which weight decay and learning rate. Knows models, not optimizers."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from torch import nn

from hfoptim.engine.checks import number, shape_in_model, strings
from hfoptim.engine.parameter_names import bare, bare_names_of, matched, unwrapped
from hfoptim.param_groups.group_matcher import GroupMatcher
from hfoptim.param_groups.layers import layer_places
from hfoptim.param_groups.logical_matrices import Division, divisions

ParamGroups = list[dict[str, Any]]


def undecayed(model: nn.Module, extra: Iterable[str] = ()) -> set[int]:
    """The ids of parameters without decay: those given, and those that the model or a part of it names."""
    exempt = matching(model, strings("no_weight_decay_list", extra))
    for module in model.modules():
        own = getattr(module, "no_weight_decay", None)
        if callable(own):  # the names are those within this part
            exempt |= matching(module, own())
    return exempt


def matching(module: nn.Module, patterns: Iterable[str]) -> set[int]:
    """The ids of the parameters whose names in a module one of the patterns matches."""
    params, short = dict(module.named_parameters()), bare_names_of(module)
    names = {name: short[name] for name in params}
    return {id(params[name]) for pattern in patterns for name in matched(pattern, names)}


def decay_groups(
    model: nn.Module,
    weight_decay: float = 1e-5,
    no_weight_decay_list: Iterable[str] = (),
    weight_decay_exclude_1d: bool = True,
) -> ParamGroups:
    """Two groups: biases, norms and other vectors without weight decay; matrices and higher with it.

    timm's `param_groups_weight_decay` with names, for optimizers that want them.

    Args:
        model: its trainable parameters are grouped, each once.
        weight_decay (default 1e-5): of the second group.
        no_weight_decay_list (()): names or wildcard patterns of further parameters without decay, besides those that
            `model.no_weight_decay()` names, if it or a part of it has that method.
        weight_decay_exclude_1d (True): biases, norms and other vectors are not decayed.

    Returns:
        Parameter groups with named parameters, in timm's order; empty ones are left out.

    Raises:
        ValueError: weight_decay out of range.
    """
    weight_decay = number("weight_decay", weight_decay)
    decaying = decayed_names(model, no_weight_decay_list, weight_decay_exclude_1d)
    named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    groups: ParamGroups = []
    for decayed in (False, True):
        chosen = [(n, p) for n, p in named if (n in decaying) is decayed]
        if chosen:
            groups.append({"params": chosen, "weight_decay": weight_decay if decayed else 0.0})
    return groups


def decayed_names(model: nn.Module, no_weight_decay_list: Iterable[str] = (), exclude_1d: bool = True) -> set[str]:
    """The names of the parameters that get weight decay, frozen ones too.

    Args:
        model: the model; what its `no_weight_decay()` names is not decayed, if it or a part of it has that method.
        no_weight_decay_list (default ()): names or wildcard patterns of further parameters without decay.
        exclude_1d (True): biases, norms and other vectors are not decayed.
    """
    exempt = undecayed(model, no_weight_decay_list)
    return {
        name
        for name, param in model.named_parameters()
        if id(param) not in exempt
        and not (exclude_1d and (name.endswith("bias") or len(shape_in_model(name, param)) <= 1))
    }


# What heads are called where they are parts of the model itself.
_HEAD = re.compile(r"(^|_)(heads?|classifier|score|logits|qa_outputs)$|^(cls|fc|proj_out)$")


def head_names(model: nn.Module) -> list[str]:
    """The names of the parameters of a model's head, frozen ones too: its classifier, its language model's head.

    In a model of transformers the head is all that stands beside the base model (`model.base_model`): `lm_head`,
    `classifier`, `score`, `qa_outputs`, `cls`. Where there is no base model inside, it is the output embeddings, the
    classifier that timm's models name, and the model's own parts that are called as heads are. Weights that are tied to
    others, such as embeddings, are no head.
    """
    inside = unwrapped(model)
    adapted = getattr(inside, "get_base_model", None)  # of peft
    own = _head_params(unwrapped(adapted()) if callable(adapted) else inside)
    return [name for name, param in model.named_parameters() if id(param) in own]


def _head_params(model: nn.Module) -> set[int]:
    """The ids of the parameters of a model's head."""
    base = getattr(model, getattr(model, "base_model_prefix", None) or "", None)
    if isinstance(base, nn.Module) and base is not model:
        return {id(param) for param in model.parameters()} - {id(param) for param in base.parameters()}
    heads = [child for name, child in model.named_children() if _HEAD.search(name)]
    for name in ("get_output_embeddings", "get_classifier"):
        find = getattr(model, name, None)
        found = find() if callable(find) else None
        heads += [found] if isinstance(found, nn.Module) else []
    return {id(param) for head in heads for param in head.parameters()} - tied_ids(model)


def tied_ids(model: nn.Module) -> set[int]:
    """The ids of the parameters that a model has at several places."""
    names, places = bare_names_of(model), defaultdict(set)
    for name, param in model.named_parameters(remove_duplicate=False):
        places[id(param)].add(names[name])
    return {param for param, found in places.items() if len(found) > 1}


def layer_depths(model: nn.Module, group_matcher: GroupMatcher | None = None) -> dict[str, int]:
    """The depth of every parameter, frozen ones too: 0 before the blocks, 1.. in them, the last after them.

    BEiT's depths, from the tree of modules: see `layers.layer_places`, whose arguments and errors these are.
    """
    return {name: place.depth for name, place in layer_places(model, head_names(model), group_matcher).items()}


def layer_scales(
    model: nn.Module, layer_decay: float, min_scale: float = 0.0, group_matcher: GroupMatcher | None = None
) -> dict[str, float]:
    """What the learning rate of every parameter is multiplied by: `max(min_scale, layer_decay ^ layers above it)`.

    Args:
        model: the model; `param_groups.layers.layer_places` counts the layers, in every stack of blocks from its top.
        layer_decay: factor per layer, in (0, 1].
        min_scale (default 0.0): least factor, in [0, 1].
        group_matcher (None): says which layer a parameter is of, see `param_groups.group_matcher.matched_layers`.

    Raises:
        ValueError: a number out of range, or layers that cannot be told apart.
    """
    min_scale = number("min_scale", min_scale, 0.0, 1.0, high_open=False)
    layer_decay = number("layer_decay", layer_decay, 0.0, 1.0, high_open=False)
    above = layers_above(model, layer_decay, group_matcher)
    return {name: max(min_scale, layer_decay**layers) for name, layers in above.items()}


def layers_above(model: nn.Module, layer_decay: float, group_matcher: GroupMatcher | None = None) -> dict[str, int]:
    """How many layers above it scale every parameter; none where nothing is scaled, so that nothing need be told apart.

    Raises:
        ValueError: layer_decay out of range, or layers that cannot be told apart.
    """
    layer_decay = number("layer_decay", layer_decay, 0.0, 1.0, high_open=False)
    if layer_decay == 0.0:
        raise ValueError("layer_decay=0 would freeze all layers but the last, expected a number in (0, 1]")
    if layer_decay == 1.0:
        return {name: 0 for name, _ in model.named_parameters()}
    return {name: place.above for name, place in layer_places(model, head_names(model), group_matcher).items()}


def layer_decay_groups(
    model: nn.Module,
    weight_decay: float = 0.05,
    no_weight_decay_list: Iterable[str] = (),
    weight_decay_exclude_1d: bool = True,
    layer_decay: float = 0.75,
    lr: float | None = None,
    min_scale: float = 0.0,
    group_matcher: GroupMatcher | None = None,
) -> ParamGroups:
    """Groups by layer: the learning rate shrinks by `layer_decay` with every layer from the top down.

        lr_scale = max(min_scale, layer_decay ^ layers above)

    For a model whose layers timm's `param_groups_layer_decay` does not know, and for optimizers that want names.

    Args:
        model: its trainable parameters are grouped, each once.
        weight_decay (default 0.05): of matrices and higher.
        no_weight_decay_list (()): names or wildcard patterns of parameters without decay, besides those that
            `model.no_weight_decay()` names, if it or a part of it has that method.
        weight_decay_exclude_1d (True): biases, norms and other vectors are not decayed.
        layer_decay (0.75): factor per layer, in (0, 1].
        lr (None): learning rate of the top layer; given, every group has `lr = lr * lr_scale`.
        min_scale (0.0): least `lr_scale`.
        group_matcher (None): which layer a parameter is of, see `group_matcher.matched_layers`. Without it,
            layers are read from the tree of modules, see `hfoptim.param_groups.layers.layer_places`.

    Returns:
        Parameter groups with named parameters and the key `lr_scale`, in the order in which their first parameters are
        in the model, as timm's.

    Raises:
        ValueError: a number out of range, or layers that cannot be told apart.
    """
    weight_decay = number("weight_decay", weight_decay)
    if lr is not None:
        lr = number("lr", lr)
    min_scale = number("min_scale", min_scale, 0.0, 1.0, high_open=False)
    layer_decay = number("layer_decay", layer_decay, 0.0, 1.0, high_open=False)
    above = layers_above(model, layer_decay, group_matcher)
    decaying = decayed_names(model, no_weight_decay_list, weight_decay_exclude_1d)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        key = above[name], name in decaying
        if key not in groups:
            scale = max(min_scale, layer_decay ** above[name])
            group = {"params": [], "weight_decay": weight_decay if key[1] else 0.0, "lr_scale": scale}
            groups[key] = group if lr is None else {**group, "lr": lr * scale}
        groups[key]["params"].append((name, param))
    return list(groups.values())


# What matrices that do not lie inside a network are, by the words in which models of transformers, timm and torchvision
# name them.
_AT_THE_ENDS = {
    "embedding or table of positions": r"embed|(^|[._])emb([._]|$)|(^|\.)w[tp]e\.|(^|\.)shared\.weight$"
    r"|(^|[._])pos([._]|$)|position",
    "head": r"(^|\.)(?!multi)\w*heads?(\.|$)|(^|\.)score\.|classifier|logits|qa_outputs|(^|\.)cls\."
    r"|^(model\.)?fc\.weight$",
    "norm": r"norm|(^|[._])ln([._]|\d)|(^|\.)bn\d*\.",
    "bias": r"bias",
    "logarithm of decay rates": r"(^|\.)a_log$",  # Mamba's
    "factor of an adapter": r"(^|\.)lora_(A|B|embedding_[AB])([._]|$)",
}
_AT_AN_END = [(reason, re.compile(pattern, re.IGNORECASE)) for reason, pattern in _AT_THE_ENDS.items()]

# Modules whose parameters are tables or scales, whatever their shape.
_NOT_MATRICES = (
    nn.Embedding,
    nn.EmbeddingBag,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._NormBase,
)


def why_not_hidden(name: str, shape: Sequence[int]) -> str | None:
    """Why a parameter is no matrix inside a network, by its name and shape alone; None for one that is.

    Not one are: vectors, embeddings, position tables, the language model's and other heads, norms, biases, what has
    a side of 1 once it is flattened to rows, as depthwise convolutions have, and LoRA's factors, of which the product
    is the matrix.

    Args:
        name: its name in the model, such as "transformer.h.0.mlp.c_fc.weight".
        shape: its shape. What lies behind the first dimension counts as one.
    """
    if len(shape) < 2:
        return "vector"
    if shape[1] == 1 or min(shape[0], math.prod(shape[1:])) < 2:
        return "a side of 1"
    short = bare(name)
    return next((f"{reason}, by its name" for reason, pattern in _AT_AN_END if pattern.search(short)), None)


def reasons_against(model: nn.Module) -> dict[str, str]:
    """Why parameters of a model are no matrices inside it, by name; those that are ones are left out.

    Beside names and shapes (`why_not_hidden`) the model says more: which modules are embeddings and norms, which matrix
    makes its logits, and which parameters are tied, that is found at two places.
    """
    found = dict.fromkeys(tied_ids(model), "tied: found at several places of the model")
    for module in model.modules():
        if isinstance(module, _NOT_MATRICES):
            found.update({id(param): f"of {type(module).__name__}" for param in module.parameters(recurse=False)})
    # Of the model and of models inside of it: a loss around a model, a list of models.
    for module in model.modules():
        output = getattr(module, "get_output_embeddings", None)
        head = output() if callable(output) else None
        if isinstance(head, nn.Module):
            found.update(dict.fromkeys(map(id, head.parameters()), "makes the logits"))
    by_name = {
        name: why_not_hidden(name, shape_in_model(name, param)) or found.get(id(param))
        for name, param in model.named_parameters()
    }
    return {name: reason for name, reason in by_name.items() if reason is not None}


def split_hidden_matrices(
    model: nn.Module, groups: Iterable[dict[str, Any]], fallback: Collection[int] = (), per_head: bool = False
) -> ParamGroups:
    """Divide parameter groups into those of the matrices inside a model and those of everything else.

    Which is which, `reasons_against` says.

    Args:
        model: the model.
        groups: parameter groups with named parameters of it. One that has `use_muon` stays as it is.
        fallback (default ()): the ids of parameters that shall count as everything else.
        per_head (False): see `param_groups_muon`.

    Returns:
        The groups in their order, each as one with `use_muon=True` and one with `use_muon=False`; empty ones are left
        out. Stacks of matrices, such as the experts of a layer, have a group of their own with `stacked=True`, and
        parameters that are several matrices, as `logical_matrices.divisions` knows them, with `split` and `split_dim`.
    """
    against, divided_as = reasons_against(model), divisions(model, per_head)
    kernels = {
        id(param)
        for module in model.modules()
        if isinstance(module, nn.modules.conv._ConvNd)
        for param in module.parameters(recurse=False)
    }
    divided: ParamGroups = []
    for group in groups:
        if group.get("use_muon") is not None:
            divided.append(group)
            continue
        parts: dict[tuple[bool, bool, Division | None], list[Any]] = {}
        for name, param in group["params"]:
            hidden = id(param) not in fallback and name not in against
            # Experts are fewer than each has rows; XLNet's (width, heads, size of a head) is one matrix.
            shape = shape_in_model(name, param)
            stacked = len(shape) == 3 and id(param) not in kernels and shape[0] <= min(shape[1:])
            division = divided_as.get(id(param)) if hidden and group.get("split") is None else None
            parts.setdefault((hidden, hidden and stacked, division), []).append((name, param))
        # Matrices first, undivided ones before others, everything else last.
        for hidden, stacked, division in sorted(parts, key=lambda key: (not key[0], key[1], key[2] or ())):
            part = {**group, "params": parts[hidden, stacked, division], "use_muon": hidden}
            part |= {"stacked": True} if stacked else {}
            divided.append(part if division is None else {**part, "split": division.sizes, "split_dim": division.dim})
    return divided


def param_groups_muon(
    model: nn.Module, weight_decay: float = 0.1, no_weight_decay_list: Iterable[str] = (), per_head: bool = False
) -> ParamGroups:
    """Groups for `Muon`: the matrices inside a model with `use_muon=True`, everything else with `use_muon=False`.

    Embeddings, heads, norms, biases and other vectors, tied weights, depthwise convolutions and LoRA's factors are
    everything else. Projections of transformers' models that make several things at once (queries, keys and values, a
    gate and what it lets through) are divided, see `hfoptim.param_groups.logical_matrices`.

    Args:
        model: its trainable parameters are grouped, each once.
        weight_decay (default 0.1): of matrices and higher, in either kind of group; not of biases, norms and other
            vectors.
        no_weight_decay_list (()): names or wildcard patterns of further parameters without decay.
        per_head (False): every head of queries, keys and values is a matrix of its own, in the model families that
            `logical_matrices` knows.

    Returns:
        Parameter groups with named parameters and the key `use_muon`, with `stacked`, `split` and `split_dim` where the
        matrices in a parameter are several; empty ones are left out.

    Raises:
        ValueError: weight_decay out of range.
    """
    decayed_first = decay_groups(model, weight_decay, no_weight_decay_list)[::-1]
    return split_hidden_matrices(model, decayed_first, per_head=per_head)
