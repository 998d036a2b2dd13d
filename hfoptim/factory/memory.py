"""How much memory a step of an optimizer will take for a model, before there is any: on the device "meta"."""

from __future__ import annotations

import contextlib
import copy
import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hfoptim.engine import RuleOptimizer, checks, unwrap_all
from hfoptim.engine.backends.matrix import ARRAYS, STACK
from hfoptim.engine.distributed import dtensor
from hfoptim.engine.rule import Scope
from hfoptim.factory.create import create_optimizer_v2
from hfoptim.wrappers import Wrapper

# Arrays of float32 that the step of a whole tensor keeps where its state is decoded, measured; two more for weights of
# 16 bits.
DECODED = 7

Strategy = Literal["ddp", "fsdp"]


class MemoryPrediction(NamedTuple):
    """What lies in the memory of one rank while a step is taken, in bytes. Activations are gone by then.

    Args:
        parameters: of the model, those that are not trained too.
        gradients: of those that are trained.
        buckets: in which DDP reduces gradients, beside them.
        state: of the optimizer, by name.
        step: what the step itself keeps at its height.
        trained: how many entries are trained, on all ranks together.
    """

    parameters: int
    gradients: int
    buckets: int
    state: Mapping[str, int]
    step: int
    trained: int

    @property
    def state_bytes(self) -> int:
        """The whole state."""
        return sum(self.state.values())

    @property
    def peak(self) -> int:
        """All of it together."""
        return self.parameters + self.gradients + self.buckets + self.state_bytes + self.step

    def rows(self) -> list[tuple[str, str, str]]:
        """What, how much, and bytes per trained entry of one rank."""
        found = [("parameters", self.parameters), ("gradients", self.gradients)]
        found += [("DDP's buckets", self.buckets)] if self.buckets else []
        found += [(f"state {name}", size) for name, size in self.state.items()]
        found += [("the step itself", self.step), ("together", self.peak)]
        return [(what, _in_words(size), f"{size / max(1, self.trained):.3f}") for what, size in found]


def _in_words(size: int) -> str:
    unit = next((unit for unit in ("GB", "MB", "KB") if size >= {"GB": 1e9, "MB": 1e6, "KB": 1e3}[unit]), "bytes")
    return f"{size / {'GB': 1e9, 'MB': 1e6, 'KB': 1e3, 'bytes': 1}[unit]:.4g} {unit}"


def predict_memory(
    model: nn.Module,
    opt: str,
    *,
    ranks: int = 1,
    strategy: str | None = None,
    device: str = "cuda",
    **options: Any,
) -> MemoryPrediction:
    """Say how much memory a step will take for a model, which may be on the device "meta" and stays as it is.

    State is what the optimizer itself makes for parameters of these shapes, byte for byte. The step itself is what
    rules of matrices keep of a stack of them, for which steps are taken on the device "meta", and rules with sums along
    rows of a tensor whose state is in codes; all others are taken by generated kernels, which keep next to nothing,
    unless `foreach=True` or `fused=False` asks for others. Where no step can be taken there, on GPUs for Muon and
    others of matrices inside a network, and with "fsdp", the step of matrices is an upper bound, nine arrays of a
    stack. What a library needs besides for decomposing a matrix, in the steps that do so, is not in it. Each
    parameter's counter of steps, 4 bytes on the host, is left out.

    Args:
        model: the model, whose parameters have the dtype that they are trained in.
        opt: the optimizer's name.
        ranks (default 1): the number of processes.
        strategy (None): how they share: "ddp" (each has everything, and buckets for gradients) or "fsdp" (FSDP2: each
            has a part of every parameter, gradient and state). The numbers are those of the first rank.
        device ("cuda"): where the step runs: "cuda" or "cpu".
        **options: those of `create_optimizer_v2`.

    Returns:
        The numbers of one rank.

    Raises:
        ValueError: a number of ranks without a strategy, an unknown strategy, "fsdp" while a process group is there,
            or an optimizer whose state cannot be known before (one around another one, LBFGS).
        TypeError: as `create_optimizer_v2`.
    """
    ranks = checks.integer("ranks", ranks, 1)
    if strategy is not None and strategy not in get_args(Strategy):
        raise ValueError(f"strategy={strategy!r} is none of {', '.join(map(repr, get_args(Strategy)))}")
    if ranks > 1 and strategy is None:
        raise ValueError(f"ranks={ranks}: say how they share with strategy='ddp' or 'fsdp'")
    with as_on_the_first(ranks) if strategy == "fsdp" and ranks > 1 else contextlib.nullcontext(_empty) as made:
        twin = twin_of(model, made)
        optimizer = create_optimizer_v2(twin, opt, **options)
        inner = unwrap_all(optimizer, RuleOptimizer)
        if not inner or unwrap_all(optimizer, Wrapper):
            raise ValueError(
                f"{opt} goes around another optimizer, or is torch's: its state is not known before a step"
            )
        trained = [(each, group, p) for each in inner for group in each.param_groups for p in group["params"]]
        state: dict[str, int] = {}
        matrices: dict[Any, _Alike] = {}
        decoded = 0
        for each, group, param in trained:
            own = each.first_state(param, group)
            for name, value in own.items():
                state[name] = state.get(name, 0) + _size(value)
            scope = each.rule_for(param, group).scope
            if scope is Scope.MATRIX:
                key = (id(each), id(group), param.shape, param.dtype, *(value.shape for value in own.values()))
                largest = max(value.numel() for value in (param, *own.values()))
                matrices.setdefault(key, _Alike(each, largest, bool(group["caution"]), [])).params.append(param)
            elif scope is Scope.TENSOR and _has_no_kernel(param, own):
                arrays = DECODED + (2 if param.element_size() == 2 else 0)
                decoded = max(decoded, param.numel() * arrays * torch.float32.itemsize)
        sizes = [_size(param) for _, _, param in trained]
        released = any(group["gradient_release"] for _, group, _ in trained)
        gradients = max(sizes) if released else sum(sizes)
        return MemoryPrediction(
            sum(map(_size, twin.parameters())),
            gradients,
            gradients if strategy == "ddp" and ranks > 1 else 0,
            {name: size for name, size in state.items() if name != "step"},
            max(decoded, _of_matrices([*matrices.values()], device, strategy == "fsdp")),
            sum(param.numel() for _, _, param in trained),
        )


class _Alike(NamedTuple):
    """Matrices of one group that a stack can be made of.

    Args:
        optimizer: whose they are.
        entries: of the largest tensor of each, of its state too.
        alone: whether each is stepped by itself.
        params: the matrices, on the device "meta" but for their parts with FSDP2.
    """

    optimizer: RuleOptimizer
    entries: int
    alone: bool
    params: list[Tensor]


def _of_matrices(matrices: Sequence[_Alike], device: str, sharded: bool) -> int:
    """What the step of matrices keeps at its height, in bytes: of the stack that needs most, or an upper bound."""
    limit = STACK.get(device, STACK["default"])
    found: list[int | None] = []
    for alike in matrices:
        # On GPUs generated kernels take what is around the products of these, all matrices together.
        foreseen = not sharded and (device == "cpu" or not alike.optimizer.hidden_matrices)
        count = 1 if alike.alone else max(1, limit // alike.entries)
        found.append(_height(alike.optimizer, alike.params[:count]) if foreseen else None)
    known = [each for each in found if each is not None]
    if len(known) == len(found):
        return max(known, default=0)
    stack = max(limit, *(alike.params[0].numel() for alike in matrices))
    total = sum(alike.params[0].numel() * len(alike.params) for alike in matrices)
    return min(stack, total) * ARRAYS * torch.float32.itemsize


def _height(optimizer: RuleOptimizer, params: Sequence[Tensor]) -> int | None:
    """What a step of these parameters alone keeps at its height; None where it cannot be taken on the device "meta"."""
    alive = _Alive()
    for param in params:
        param.grad = torch.empty_like(param)
    try:
        optimizer.step()  # makes the state
        with alive:
            optimizer.step()
    except (NotImplementedError, RuntimeError):  # it reads a number, or has to be told the loss
        return None
    finally:
        for param in params:
            param.grad = None
    return alive.most


class _Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, and how many of them are alive at most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.most: int = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for given in tree_leaves((args, kwargs)):
            self._see(given, made=False)
        result = func(*args, **(kwargs or {}))
        for given in tree_leaves(result):
            self._see(given, made=True)
        self.most = max(self.most, self.now)
        return result

    def _see(self, value: Any, made: bool) -> None:
        if not isinstance(value, Tensor):
            return
        storage = value.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known[key] = storage.nbytes() if made else 0
            self.now += self._known[key]
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._known.pop(key)


def _size(tensor: Tensor) -> int:
    part = dtensor.local(tensor)
    return part.numel() * part.element_size()


def _has_no_kernel(param: Tensor, state: Mapping[str, Tensor]) -> bool:
    """Whether a rule with this state reduces along rows and has codes, for which none is generated."""
    codes = {name for name in state if f"{name}_scale" in state}
    others = [value for name, value in state.items() if name not in codes and name.removesuffix("_scale") not in codes]
    return bool(codes) and any(value.numel() not in (1, param.numel()) for value in others)


def _empty(param: Tensor) -> nn.Parameter:
    return nn.Parameter(param.detach().to("meta"), param.requires_grad)


def twin_of(model: nn.Module, made: Callable[[Tensor], nn.Parameter]) -> nn.Module:
    """A model on the device "meta" with other parameters, made of its own, of which nothing is copied."""
    params = {id(param): made(param) for param in model.parameters()}
    buffers = {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    return copy.deepcopy(model, {**params, **buffers})


@contextlib.contextmanager
def as_on_the_first(ranks: int) -> Iterator[Callable[[Tensor], nn.Parameter]]:
    """Makes of parameters what FSDP2 leaves of them on the first of so many ranks, in a group of none of them."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise ValueError("strategy='fsdp' is predicted in a process of its own: there is a process group already")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        mesh = init_device_mesh("cpu", (ranks,))

        def sharded(param: Tensor) -> nn.Parameter:
            whole = param.detach().to("meta")
            placement = Shard(0) if param.ndim else Replicate()
            part = whole[: math.ceil(len(whole) / ranks)].clone() if param.ndim else whole
            made = DTensor.from_local(
                part, mesh, [placement], run_check=False, shape=whole.shape, stride=whole.stride()
            )
            return nn.Parameter(made, param.requires_grad)

        yield sharded
    finally:
        dist.destroy_process_group()
