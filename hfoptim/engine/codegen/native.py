"""From a plan to a compiled function: trace, schedule, write, compile. Each once."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from hfoptim.engine import storage
from hfoptim.engine.apply import entering, moved
from hfoptim.engine.codegen import build, cpp
from hfoptim.engine.codegen.call import Rows
from hfoptim.engine.codegen.layout import GRAD, PARAM, Layout, Slot
from hfoptim.engine.codegen.schedule import Program, schedule
from hfoptim.engine.codegen.trace import Graph, Shape, Symbol, Untraceable, Unwalkable
from hfoptim.engine.plan import Plan
from hfoptim.engine.rule import Function, Scope, hyper_type
from hfoptim.engine.tensor_slots import TensorSlots

T = TypeVar("T")
E = TypeVar("E", bound=Exception)

# Fewer entries are not worth waking other threads for.
_ONE_THREAD = 1 << 15
# Sizes of a stand-in parameter, all different, so that a state's dimensions can be told apart by them.
_SIZES = (7, 11, 13, 17, 19, 23, 29, 31)


@dataclass(frozen=True)
class Kernel:
    """A function for rows of one plan and one kind of shape.

    Args:
        step: the compiled function.
        program: what it does.
        names: the scalars it takes.
        results: names of the sums it hands back: a probe's.
    """

    step: Any
    program: Program
    names: tuple[str, ...]
    results: tuple[str, ...] = ()


@dataclass
class Call(Rows):
    """Rows for one compiled function, in the form it takes them.

    Args:
        kernel: of the first row; the others' have the same function.
        coded: the index of the first state that is kept in codes; None where there is none.
    """

    kernel: Kernel
    coded: int | None
    sizes: array[int] = field(default_factory=lambda: array("q"))
    entries: int = 0

    def add(self, kernel: Kernel, row: TensorSlots, place: int) -> None:
        """Take a row, and its place in the bucket."""
        shape = row.param.shape
        numel = shape.numel()
        code_rows = 1
        if self.coded is not None:
            _, scales = row.states[self.coded]
            code_rows = len(scales)
        self.take(row, place)
        self.sizes.extend((*kernel.program.loops(shape), code_rows, numel // code_rows))
        self.entries += numel

    def run(self, scalars: Mapping[str, Any], seeds: Sequence[int] = ()) -> dict[str, float]:
        """Step the rows; or probe them, and give the sums.

        Args:
            scalars: the bucket's.
            seeds: the bucket's.
        """
        values = array("d", [float(scalars[name]) for name in self.kernel.names])
        threads = 1 if self.entries < _ONE_THREAD else torch.get_num_threads()
        sums = array("d", [0.0] * len(self.kernel.results))
        given = self.sizes, self.addresses(), values, array("I", self.drawn(seeds))
        self.kernel.step(len(self.rows), *(a.buffer_info()[0] for a in given), threads, sums.buffer_info()[0])
        return dict(zip(self.kernel.results, sums, strict=True))


def coded_state(plan: Plan) -> int | None:
    """The index of the first state that is kept in codes; None where there is none."""
    return next((index for index, kept in enumerate(plan.storage) if kept.bits), None)


# What was made, or why it could not be.
_programs: dict[Any, tuple[Program, Layout, tuple[str, ...]] | Untraceable | RuntimeError] = {}
_kernels: dict[Any, Kernel | Untraceable | RuntimeError] = {}


def _key(plan: Plan, names: tuple[str, ...], row: TensorSlots, function: Function | None) -> Any:
    # What is said of a tensor's shape: which of its dimensions are of size 1. Element-wise, not even that.
    kind = None if shapeless(plan, function) else tuple(size == 1 for size in row.param.shape)
    return plan, names, kind, tuple([t.dtype for t in row.tensors]), function


def traced(
    plan: Plan, names: tuple[str, ...], row: TensorSlots, function: Function | None = None
) -> tuple[Program, Layout, tuple[str, ...]]:
    """What `program_of` gives for rows like this one, traced once.

    Raises:
        Untraceable: as `program_of` does, every time.
    """
    key = _key(plan, names, row, function)
    if key not in _programs:
        _programs[key] = _outcome(program_of, plan, names, row, function)
    return _given(_programs[key])


def _outcome(make: Callable[..., T], *args: Any) -> T | Untraceable | RuntimeError:
    """What a function gives, or why it raises: to be remembered."""
    try:
        return make(*args)
    except (Untraceable, RuntimeError) as error:
        return _anew(error)


def _given(outcome: T | Untraceable | RuntimeError) -> T:
    if isinstance(outcome, Exception):
        raise _anew(outcome)
    return outcome


def _anew(error: E) -> E:
    """An exception without its traceback, which would keep tensors alive."""
    return type(error)(*error.args)


def kernel(plan: Plan, names: tuple[str, ...], row: TensorSlots, function: Function | None = None) -> Kernel:
    """The kernel for rows like this one.

    Args:
        plan: the plan.
        names: of the scalars, in the order of `h`.
        row: tensors in the shape that the rule sees.
        function: `(grad, param, *state, h) -> {name: 0-d tensor}`, such as a probe, that is wanted instead of the step.

    Raises:
        Untraceable: none can be generated.
        RuntimeError: the compiler fails.
    """
    key = _key(plan, names, row, function)
    if key not in _kernels:
        _kernels[key] = _outcome(_kernel, plan, names, row, function)
    return _given(_kernels[key])


def _kernel(plan: Plan, names: tuple[str, ...], row: TensorSlots, function: Function | None) -> Kernel:
    program, layout, results = traced(plan, names, row, function)
    if program.products:
        raise Untraceable("functions of whole matrices between passes, which are called where Triton is launched")
    if _uses_float16(program, layout) and not build.has_float16():
        raise RuntimeError("the C++ compiler does not know float16, _Float16 in C++")
    return Kernel(build.load(cpp.generate(program, layout, names, _codebook)), program, names, results)


def _uses_float16(program: Program, layout: Layout) -> bool:
    rounded = (node.value for node in program.nodes if node.op == "cast")
    return any(slot.kept == "float16" for slot in layout.slots) or torch.float16 in rounded


def shapeless(plan: Plan, function: Function | None = None) -> bool:
    """Whether rows of all shapes have the same kernel."""
    return plan.scope is Scope.ELEMENT and function is None


def program_of(
    plan: Plan, names: tuple[str, ...], row: TensorSlots, function: Function | None = None
) -> tuple[Program, Layout, tuple[str, ...]]:
    """A plan's step, traced for parameters like that of a row, and scheduled; or a function, and its results' names.

    Args:
        plan, names, row, function: as for `kernel`.

    Raises:
        Untraceable: the rule does what no kernel is generated for.
    """
    layout = layout_of(plan, row)
    graph = Graph(plan.dtype, len(layout.slots))
    h = hyper_type(names)(*[graph.add("scalar", (), (), name) for name in names])
    shapes = labels(plan, row, shapeless(plan, function))
    param, grad, *state = [graph.add("load", (), shape, index) for index, shape in enumerate(shapes)]
    new, sums = _run(plan, h, grad, param, state, function)
    results = [_symbol(value).index for value in sums.values()]
    outputs = {i + 1 if i else 0: _symbol(value).index for i, value in enumerate(new) if value is not None}
    program = schedule(graph, outputs, layout.exact(), results)
    layout = layout.with_products(len(program.products))
    loads = {node.value: program.kinds[i] for i, node in enumerate(program.nodes) if node.op == "load"}
    if any(program.kinds[store.node] != loads[store.position] for store in program.stores):
        raise Unwalkable("a new state of another shape than the old")
    if layout.coded and program.axes != 1:
        raise Unwalkable("codes together with reductions along rows")
    return program, layout, tuple(sums)


def _run(
    plan: Plan, h: Any, grad: Symbol, param: Symbol, state: list[Symbol], function: Function | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(new parameter and states, what a function gives), of which one is empty."""
    try:
        if function is None:
            return moved(plan, h, grad, param, state), {}
        weight, grad = entering(plan, h, grad, param)
        return (), function(grad, weight, *state, h)
    except Untraceable:
        raise
    except Exception as error:
        # Whether the rule is wrong or does with a symbol what only tensors can do shows where it is run on tensors.
        raise Untraceable(f"{type(error).__name__}: {error}") from error


def _symbol(value: Any) -> Symbol:
    if not isinstance(value, Symbol):
        raise Untraceable(f"it returns a {type(value).__name__}")
    return value


def layout_of(plan: Plan, row: TensorSlots) -> Layout:
    """Where a row's values are and how they are kept."""
    slots = [
        Slot(PARAM, _dtype(row.param), plan.rounding is storage.Rounding.STOCHASTIC),
        Slot(GRAD, _dtype(row.grad)),
    ]
    position = len(slots)
    for salt, (kept, (tensor, *_)) in enumerate(zip(plan.storage, row.states, strict=True), start=1):
        name = _dtype(tensor)
        if kept.bits:
            name = f"{kept.bits}bit" + ("" if kept.signed else "_unsigned")
        slots.append(Slot(position, name, kept.stochastic, salt))
        position += kept.tensors
    compute = "float64" if plan.dtype is torch.float64 else "float32"
    return Layout(compute, tuple(slots), plan.rounding.value, len(row.tensors))


def _codebook(kept: str) -> list[float]:
    values = storage.codebook(int(kept[0]), not kept.endswith("unsigned"), torch.device("cpu"))
    numbers: list[float] = values.tolist()
    return numbers


def _dtype(tensor: Tensor) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in ("float32", "float64", "bfloat16", "float16", "uint8"):
        raise Unwalkable(f"tensors of {name}")
    return name


def labels(plan: Plan, row: TensorSlots, shapeless: bool = False) -> list[Shape]:
    """For parameter, gradient and states, as the rule sees them, which dimension of the parameter each of theirs is.

    None for one of size 1. `shapeless`: of rows of any shape, seen as a run of entries.

    Raises:
        Untraceable: a state whose dimensions are not the parameter's.
    """
    shape = row.param.shape
    if shapeless:
        matrix = torch.empty(_SIZES[:2], device="meta")
        if any(init(matrix, torch.float32).shape != matrix.shape for init in plan.rule.state.values()):
            raise Untraceable("it is element-wise with state of another shape than the parameter's")
        return [(0,)] * (2 + len(row.states))
    own: Shape = tuple(None if size == 1 else label for label, size in enumerate(shape))
    if shape.numel() == 1:
        own = (0, *own[1:])
    out = [own, own]
    for init, (tensor, *_), kept in zip(plan.rule.state.values(), row.states, plan.storage, strict=True):
        state = tensor.shape
        if kept.bits or state == shape:
            out.append(own)
        elif len(state) == len(shape) and all(s in (1, n) for s, n in zip(state, shape, strict=True)):
            out.append(tuple(None if size == 1 else label for label, size in enumerate(state)))
        elif plan.rule.shape is None and len(shape) <= len(_SIZES):
            # Which dimensions a smaller state has shows on a parameter whose sizes all differ.
            stand_in = [1 if size == 1 else other for size, other in zip(shape, _SIZES, strict=False)]
            try:
                made = init(torch.empty(stand_in, device="meta"), torch.float32).shape
            except IndexError as error:  # blocks of a kind that no parameter of these sizes has
                raise Untraceable("it has a state that parameters of other sizes have not") from error
            if not {1, *stand_in}.issuperset(made):
                raise Untraceable("it has a state with dimensions that are not the parameter's")
            out.append(tuple(None if size == 1 else stand_in.index(size) for size in made))
        elif state.numel() == 1:
            out.append((None,) * len(state))
        else:
            raise Untraceable("it has a state whose shape does not follow from the parameter's")
    return out


def compiled() -> int:
    """How many kernels this process has."""
    return sum(isinstance(kernel, Kernel) for kernel in _kernels.values())
