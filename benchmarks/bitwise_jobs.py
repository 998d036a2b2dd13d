"""What bitwise.py steps: parameters of many layouts, gradients, and every optimizer of a plan over runners and formats.

Only hfoptim's public names are used, so that checkouts of any layout inside can be compared. A plan says what is
stepped. It is made once, in the older checkout, from the registry and the options of its test entries, and written as
plain literals into the record, from where the newer checkout takes it.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
import io
import itertools
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import Optimizer

import hfoptim

TESTS = Path(__file__).resolve().parent.parent / "tests"

Plan = dict[str, Any]
Params = Mapping[str, Tensor]

STEPS = 6
RUNNERS: dict[str, dict[str, Any]] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "default": {},
}
# What else is done with models.
OF_MODELS: dict[str, dict[str, Any]] = {
    "release": {"gradient_release": True},
    "combined": {"param_options": {"head.*": {"optimizer": "adagrad"}, "conv.weight": {"lr_scale": 0.5}}},
    "head_lr": {"head_lr": 0.05, "caution": True},
}
F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
# Dtype of the parameters, and options.
FORMS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32": (F32, {}),
    "float64": (F64, {}),
    "bfloat16": (BF16, {}),
    "bfloat16 uncompensated": (BF16, {"kahan_sum": False}),
    "bfloat16 stochastic": (BF16, {"stochastic_rounding": True}),
    "bfloat16 master 8": (BF16, {"master_weights": 8}),
    "bfloat16 master 16": (BF16, {"master_weights": 16}),
    "float16": (torch.float16, {}),
    "state bfloat16": (F32, {"state_dtype": "bfloat16"}),
    "state 8bit": (F32, {"state_dtype": "8bit"}),
    "state 4bit": (F32, {"state_dtype": "4bit"}),
    "state 8bit stochastic": (F32, {"state_dtype": "8bit", "state_rounding": "stochastic"}),
    "bfloat16, state bfloat16 nearest": (BF16, {"state_dtype": "bfloat16", "state_rounding": "nearest"}),
    "bfloat16 master 16, state 8bit": (BF16, {"state_dtype": "8bit", "master_weights": 16}),
    "caution": (F32, {"caution": True}),
    "maximize": (F32, {"maximize": True}),
    "bfloat16 caution maximize, state 4bit": (BF16, {"caution": True, "maximize": True, "state_dtype": "4bit"}),
    "complex64": (torch.complex64, {}),
}
# Forms of what wraps another optimizer, and of sharded parameters.
FEW = ("float32", "bfloat16", "state 8bit")
# Optimizers stepped over tensors so large that the eager runners take them in tiles and the default is compiled.
LARGE = ("adafactor", "adam_mini", "adamw", "lamb", "larc", "lion", "novograd", "prodigy", "sgd")

# Peers whose checkpoints every name is given, whether it takes them or refuses.
PEERS = ("Adafactor", "Adagrad", "Adam", "AdamW", "Muon", "NAdam", "RMSprop", "SGD")

Make = Callable[[Callable[..., Tensor]], Tensor]
_GROUPS: tuple[dict[str, Make], ...] = (
    {
        "scalar": lambda randn: randn(),
        "one": lambda randn: randn(1),
        "vector": lambda randn: randn(7),
        "matrix": lambda randn: randn(5, 3),
        "row": lambda randn: randn(1, 6),
        "transposed": lambda randn: randn(3, 5).t(),
        "gaps": lambda randn: randn(6, 8)[:, ::2],
        "embed.weight": lambda randn: randn(7, 4),
        "q_proj.weight": lambda randn: randn(4, 4),
    },
    {
        "conv": lambda randn: randn(4, 3, 2, 5),
        "channels_last": lambda randn: randn(4, 3, 2, 5).contiguous(memory_format=torch.channels_last),
        "stack": lambda randn: randn(3, 17, 19),
        "mlp.weight": lambda randn: randn(67, 63),  # more than the 4096 entries from which state is compressed
        "long": lambda randn: randn(5001),
        "norm.weight": lambda randn: randn(4),
    },
)
_LARGE_GROUPS: tuple[dict[str, Make], ...] = (
    {"tiled.weight": lambda randn: randn(2051, 2049), "norm.weight": lambda randn: randn(7)},
    {"long": lambda randn: randn(6_000_001)},
)


class Job(NamedTuple):
    """One optimizer with its options, to be stepped in one way.

    Args:
        key: names it in the record: section/optimizer/runner/form.
        run: steps it and gives a SHA-256 by what it is of.
    """

    key: str
    run: Callable[[], dict[str, str]]


# -- digests ---------------------------------------------------------------------------------------------------------


class Digests:
    """SHA-256 of everything that is added, one for each place: parameters, every state by name, every option."""

    def __init__(self) -> None:
        self._hashes: dict[str, Any] = {}
        self._raised: dict[str, str] = {}

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """What is raised inside, as a digest: the error's type."""
        try:
            yield
        except Exception as error:
            self._raised = {"raised": type(error).__name__}

    def add(self, label: str, value: Any, path: str = "") -> None:
        """Add a tensor, a plain value, or whatever holds them. Of a state_dict's state, the label leaves out whose."""
        if isinstance(value, Mapping):
            for key in sorted(value, key=str):
                inner = label if label == "state" and not path else f"{label}.{key}"
                self.add(inner, value[key], f"{path}/{key}")
        elif isinstance(value, (list, tuple)) and any(isinstance(v, (Mapping, Tensor)) for v in value):
            for index, each in enumerate(value):
                self.add(label, each, f"{path}/{index}")
        else:
            found = self._hashes.setdefault(label, hashlib.sha256())
            found.update(f"{path} {_described(value)}".encode())
            if isinstance(value, Tensor):
                found.update(_bytes(value))

    def state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Add a state_dict: `state.<name>` over all parameters, `param_groups.<option>` over all groups."""
        for part, value in state_dict.items():
            self.add(part, value)

    def found(self) -> dict[str, str]:
        return {label: found.hexdigest()[:20] for label, found in self._hashes.items()} | self._raised


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    plain = value is None or isinstance(value, (bool, int, float, str, list, tuple, torch.dtype))
    return repr(value) if plain else type(value).__name__


def _bytes(tensor: Tensor) -> Any:
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    # Written anew: what has one entry counts as contiguous with any stride.
    values = torch.empty(local.numel(), dtype=local.dtype).copy_(local.detach().reshape(-1))
    return values.view(torch.uint8).numpy()


# -- parameters and gradients ----------------------------------------------------------------------------------------


def _generator(name: str, t: int) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(f"{name} {t}".encode()))


@cache
def _noise(name: str, t: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Noise of a size that changes from step to step, with some exact zeros."""
    wide = torch.promote_types(dtype, F32)
    g = _generator(name, t)
    noise = torch.randn(shape, generator=g, dtype=wide) * 10.0 ** float(torch.rand((), generator=g) * 2.5 - 1.5)
    return (noise * (torch.rand(shape, generator=g) > 0.1)).to(dtype)


def parameters(dtype: torch.dtype, large: bool = False) -> list[dict[str, nn.Parameter]]:
    """Named parameters, by group."""

    def made(name: str, make: Make) -> nn.Parameter:
        g = _generator(name, 0)
        wide = torch.promote_types(dtype, F32)
        return nn.Parameter(make(lambda *shape: torch.randn(shape, generator=g, dtype=wide).to(dtype)))

    return [{name: made(name, make) for name, make in group.items()} for group in (_LARGE_GROUPS if large else _GROUPS)]


def feed(params: Params, t: int) -> None:
    """Set the gradients of step t: noise and a pull towards 0, in the parameters' layouts; one has none at times."""
    for name, param in params.items():
        noise = _noise(name, t, param.shape, param.dtype)
        param.grad = (
            None if name == "vector" and t == 4 else torch.empty_like(param).copy_(noise).add_(param, alpha=0.17)
        )


def loss_of(params: Params, t: int) -> Tensor:
    """A loss with a curvature that depends on the parameters."""
    terms = []
    for name, param in params.items():
        wide = param.to(torch.promote_types(param.dtype, F32))
        terms.append((0.1 * wide.square() + _noise(name, t, param.shape, wide.dtype) * wide + wide.cos()).sum().real)
    return torch.stack(terms).sum()


def step(optimizer: Any, loss: Callable[[], Tensor], needs: str | None) -> None:
    """Take a step with the gradients of a loss, computed as the optimizer needs it."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward(create_graph="graph" in str(needs))
        return value

    if "closure" in str(needs):
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()


def set_lr(optimizer: Optimizer, t: int, lr: float | None) -> None:
    """Another learning rate for every step and every group; None leaves it to the optimizer.

    Optimizers that estimate their step size, and have an lr of 1, want it to be the same in all groups.
    """
    if lr is None:
        return
    for index, group in enumerate(optimizer.param_groups):
        group["lr"] = lr * (1.0 - 0.06 * ((7 * t + (0 if lr == 1.0 else 2 * index)) % 5))


def through_disk(state_dict: Any) -> Any:
    """The state_dict as torch.load reads it."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def stepped(
    make: Callable[[], Any],
    take: Callable[[Any, int], None],
    params: list[Tensor],
    lr: float | None,
    digests: Digests,
    steps: int = STEPS,
    save: Callable[[Any], Any] = lambda optimizer: copy.deepcopy(optimizer.state_dict()),
    load: Callable[[Any, Any], None] = lambda optimizer, saved: optimizer.load_state_dict(saved),
) -> None:
    """Take steps, and digest parameters after each of them, state and options at the start, in the middle, at the end.

    In the middle the optimizer is saved, and another one loads that and goes on.
    """
    optimizer = make()
    digests.state_dict(optimizer.state_dict())
    for t in range(1, steps + 1):
        torch.default_generator.manual_seed(t)  # torch.manual_seed formats a traceback for every device
        set_lr(optimizer, t, lr)
        take(optimizer, t)
        digests.add("params", params)
        if 2 * t == steps:
            digests.state_dict(optimizer.state_dict())
            saved, optimizer = save(optimizer), make()
            load(optimizer, saved)
    digests.state_dict(optimizer.state_dict())


# -- what is stepped -------------------------------------------------------------------------------------------------


def plan_of(checkout: Path) -> Plan:
    """The plan of this checkout: all names of its registry and all variants and checkpoints of its test entries."""
    sys.path[:0] = [str(checkout / "tests"), str(checkout / "tests" / "optimizers")]
    from cases import ENTRIES

    # An entry may have a class of its own, so a class goes by the name.
    classes = {name: hfoptim.get_optimizer_class(name, bind_defaults=False) for name in hfoptim.list_optimizers()}
    lrs = {classes[entry.name]: next(iter(entry.variants.values())).lr for entry in ENTRIES}
    infos = {name: hfoptim.get_optimizer_info(name) for name in classes}
    needs = {name: "closure" if i.needs_closure else "graph" if i.second_order else None for name, i in infos.items()}
    return {
        "names": {
            name: {"lr": lrs.get(cls, 1e-2), "needs": needs[name], "decay": _decay(classes[name])}
            for name, cls in classes.items()
        },
        "variants": {
            f"{entry.name}[{variant}]": {
                "name": entry.name,
                "options": {key: _literal(value) for key, value in of.options.items()},
                "lr": of.lr,
            }
            for entry in ENTRIES
            for variant, of in entry.variants.items()
        },
        "checkpoints": {
            f"{entry.name}<{each.who} {number}>": {
                **{"name": entry.name, "who": each.who, "ours": each.ours, "theirs": each.theirs}
            }
            for entry in ENTRIES
            for number, each in enumerate(entry.checkpoints)
        },
    }


def _decay(cls: type[Optimizer]) -> str | None:
    """What weight decay is called."""
    known = inspect.signature(cls).parameters
    return next((name for name in ("weight_decay", "weight_decay_rate") if name in known), None)


def _literal(value: Any) -> Any:
    """An option as a literal: a function of the step as the numbers that it gives."""
    return {"by step": [value(t) for t in range(100)]} if callable(value) else value


def _option(literal: Any) -> Any:
    return literal["by step"].__getitem__ if isinstance(literal, dict) and "by step" in literal else literal


class Subject(NamedTuple):
    """An optimizer with options.

    Args:
        name, options: of the registry; the options are the name's own or, with `bare`, go to its class.
        bare: whether the class is called, without what the name stands for.
        lr: learning rate; None where the optimizer sets its own.
        decay: what weight decay is called; None without.
        needs: "closure" or "graph", both in one string, or None.
    """

    name: str
    options: dict[str, Any]
    bare: bool
    lr: float | None
    decay: str | None
    needs: str | None

    @property
    def lacks_heads(self) -> bool:
        """Whether it wants to know the heads of attention and was not told."""
        known = inspect.signature(hfoptim.get_optimizer_class(self.name, bind_defaults=False)).parameters
        return "n_heads" in known and "n_heads" not in self.options

    def make(self, params: list[dict[str, nn.Parameter]], options: dict[str, Any]) -> Optimizer:
        """The optimizer of these groups, the second with a weight decay of its own."""
        groups: list[dict[str, Any]] = [{"params": list(group.items())} for group in params]
        for group in groups[1:] if self.decay else ():
            group[self.decay] = 0.03
        own = {key: _option(value) for key, value in self.options.items()} | options
        if self.bare:
            return hfoptim.get_optimizer_class(self.name, bind_defaults=False)(groups, **own)
        return hfoptim.create_optimizer_v2(groups, self.name, **({self.decay: 0.1} if self.decay else {}), **own)

    def eager(self, runner: str, form: str, large: bool = False) -> dict[str, str]:
        """Step it over parameters in plain memory."""
        digests = Digests()
        with digests.failing():
            dtype, options = FORMS[form]
            params = parameters(dtype, large)
            if "lbfgs" in self.name:  # which takes one group, of contiguous tensors
                params = [{name: param for name, param in params[0].items() if param.is_contiguous()}]
            if self.lacks_heads:
                params[0].pop("q_proj.weight", None)
            named = {name: param for group in params for name, param in group.items()}

            def take(optimizer: Any, t: int) -> None:
                if self.needs:
                    step(optimizer, lambda: loss_of(named, t), self.needs)
                else:
                    feed(named, t)
                    optimizer.step()

            make = partial(self.make, params, {**options, **RUNNERS[runner]})
            stepped(make, take, list(named.values()), self.lr, digests, 2 if large else STEPS)
        return digests.found()

    def model(
        self,
        options: dict[str, Any],
        wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
        share: slice = slice(8),
    ) -> dict[str, str]:
        """Step it over a model, with the gradients of a share of each batch and torch's functions for checkpoints."""
        digests = Digests()
        with digests.failing():
            torch.manual_seed(0)
            model = wrap(Network("mlp" if self.lacks_heads else "q_proj"))
            tokens = torch.randint(11, (STEPS, 8, 5), generator=_generator("tokens", 0))
            targets = torch.randint(3, (STEPS, 8), generator=_generator("targets", 0))
            own: dict[str, Any] = {"lr": self.lr, "layer_decay": 0.8} if self.lr not in (None, 1.0) else {}

            def loss(t: int) -> Tensor:
                return nn.functional.cross_entropy(model(tokens[t - 1, share]), targets[t - 1, share])

            def make() -> Optimizer:
                optimizer = hfoptim.create_optimizer_v2(model, self.name, weight_decay=0.1, **own, **options)
                if options.get("gradient_release"):
                    hfoptim.remove_gradient_release(model)
                    hfoptim.prepare_for_gradient_release(model, optimizer)
                return optimizer

            def take(optimizer: Any, t: int) -> None:
                step(optimizer, lambda: loss(t), self.needs)

            through_torch = {
                "save": partial(get_optimizer_state_dict, model),
                "load": partial(set_optimizer_state_dict, model),
            }
            saving = {} if options.get("gradient_release") else through_torch
            stepped(make, take, list(model.parameters()), self.lr, digests, **saving)
        return digests.found()


class Network(nn.Module):
    """A small model with parameters of one, two and three dimensions, one of which has its state compressed."""

    def __init__(self, hidden: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 67)
        self.add_module(hidden, nn.Linear(67, 131))  # by its name, some optimizers know what it is
        self.norm = nn.LayerNorm(131)
        self.conv = nn.Conv1d(131, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        embedded, hidden, normed, mixed, head = self.children()
        return head(mixed(normed(hidden(embedded(tokens)).tanh()).mT).mean(-1))


def _from_peer(who: str, theirs: dict[str, Any], ours: Subject) -> dict[str, str]:
    """Load a peer's checkpoint, and go on."""
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    import peers

    digests = Digests()
    with digests.failing():
        flat = ("matrix", "transposed", "mlp.weight")  # what torch's Muon takes
        every = {name: param for group in parameters(F32) for name, param in group.items() if name != "vector"}
        params = {name: every[name] for name in flat} if who.endswith("Muon") else every
        peer = peers.load(who)(list(params.values()), **theirs)
        if hasattr(peer, "train"):
            peer.train()
        for t in (1, 2, 3):
            feed(params, t)
            peer.step()
        optimizer: Any = ours.make([params], {})
        optimizer.load_state_dict(through_disk(peer.state_dict()))
        digests.state_dict(optimizer.state_dict())
        for t in (4, 5):
            feed(params, t)
            optimizer.step()
            digests.add("params", list(params.values()))
        digests.state_dict(optimizer.state_dict())
    return digests.found()


def _names(plan: Plan) -> dict[str, Subject]:
    return {name: Subject(name, {}, False, of["lr"], of["decay"], of["needs"]) for name, of in plan["names"].items()}


def jobs(plan: Plan, thorough: bool) -> Iterator[Job]:
    """Everything that is stepped in one process.

    Args:
        plan: of the older checkout.
        thorough: compile every form, not float32 and one more for each optimizer.
    """
    names = _names(plan)
    variants = {
        label: names[of["name"]]._replace(options=of["options"], bare=True, lr=of["lr"])
        for label, of in plan["variants"].items()
    }
    for label, subject in {**names, **variants}.items():
        one_more = list(FORMS)[zlib.crc32(label.encode()) % len(FORMS)]
        compiled = FORMS if thorough else dict.fromkeys(("float32", one_more))
        loop = FORMS if thorough or subject.bare else FEW
        ways = {"loop": loop, "foreach": FORMS, "fused": compiled, "default": FEW}
        for runner, forms in ways.items() if label != "lbfgs" else [("default", FEW)]:
            for form in forms:
                yield Job(f"eager/{label}/{runner}/{form}", partial(subject.eager, runner, form))
    for name in LARGE:
        for runner in RUNNERS:
            for form in ("float32", "state 8bit") if thorough else ("float32",):
                yield Job(f"large/{name}/{runner}/{form}", partial(names[name].eager, runner, form, True))
    for name, subject in names.items():
        wrappers: dict[str, dict[str, Any]] = {"lookahead": {"lookahead_k": 2}, "sam": {"rho": 0.1}}
        for prefix, own in wrappers.items():
            needs = f"closure {subject.needs}" if prefix == "sam" else subject.needs
            wrapped = subject._replace(name=f"{prefix}_{name}", options=own, needs=needs)
            for runner, form in itertools.product(("loop", "default"), FEW):
                yield Job(f"wrapped/{prefix}_{name}/{runner}/{form}", partial(wrapped.eager, runner, form))
        for runner, options in {**RUNNERS, **OF_MODELS}.items():
            yield Job(f"model/{name}/{runner}/float32", partial(subject.model, options))
    for label, of in plan["checkpoints"].items():
        ours = names[of["name"]]._replace(options=of["ours"], bare=True, decay=None)
        yield Job(f"peers/{label}/default/float32", partial(_from_peer, of["who"], of["theirs"], ours))
    for (name, subject), peer in itertools.product(names.items(), PEERS):
        run = partial(_from_peer, f"torch.optim.{peer}", {"lr": 1e-2}, subject)
        yield Job(f"peers/{name}<torch.optim.{peer}>/default/float32", run)


def sharded_jobs(plan: Plan) -> Iterator[Job]:
    """Everything that is stepped by this process together with others: FSDP2 layer by layer, and DDP."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (ranks,))

    def layered(model: nn.Module) -> nn.Module:
        for part in (*model.children(), model):
            fully_shard(part, mesh=mesh)
        return model

    share = slice(rank * 8 // ranks, (rank + 1) * 8 // ranks)
    ways: dict[str, Callable[[nn.Module], nn.Module]] = {"fsdp2": layered, "ddp": nn.parallel.DistributedDataParallel}
    for name, subject in _names(plan).items():
        for (way, wrap), runner in itertools.product(ways.items(), RUNNERS):
            for form in ("float32", "state 8bit") if runner != "fused" else ("float32",):
                run = partial(subject.model, {**FORMS[form][1], **RUNNERS[runner]}, wrap, share)
                yield Job(f"sharded {way} {rank}/{name}/{runner}/{form}", run)
