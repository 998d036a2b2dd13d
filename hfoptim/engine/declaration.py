"""`RuleOptimizer`, from which optimizers derive: what its class body declares becomes constructor, checks and docs."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, InitVar, dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch.optim.optimizer import ParamsT
from typing_extensions import dataclass_transform

from hfoptim.engine import peer_options
from hfoptim.engine.hyperparameters import GroupEntry, Hyper, declared
from hfoptim.engine.optimizer import EngineOptimizer
from hfoptim.engine.options import ENGINE_DEFAULTS


@dataclass(frozen=True)
class Name:
    """A name that an optimizer is chosen by. The registry reads it from the source: write its arguments as literals.

    Args:
        name: in small letters, words joined by `_`.
        summary (default ""): one line; empty: the first one of the class's docstring.
        paper (""): where the algorithm is published, an address; empty: that of the class's first name, which by
            default is the first paper or address in the section Source of the docstring.
        options ({}): options bound to the name that differ from the class's defaults.
        aliases (()): other names it answers to.
    """

    name: str
    summary: str = ""
    paper: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()


@dataclass_transform()
class _Declared(EngineOptimizer):
    """Type checkers take annotated attributes of its subclasses for arguments of their constructors (PEP 681)."""


class RuleOptimizer(_Declared):
    # What type checkers know of every optimizer's constructor; tests hold it against the engine's own table.
    if TYPE_CHECKING:
        params: InitVar[ParamsT]
        _: KW_ONLY
        maximize: bool = False
        foreach: bool | None = None
        fused: bool | None = None
        caution: bool | Literal["momentum"] = False
        cautious_weight_decay: bool = False
        corrected_weight_decay: bool = False
        gradient_centralization: bool = False
        adaptive_clip: float | None = None
        orthograd: bool = False
        hyperball: bool = False
        kahan_sum: bool | None = None
        stochastic_rounding: bool = False
        master_weights: Literal[8, 16] | None = None
        state_dtype: Literal["float32", "bfloat16", "8bit", "4bit"] = "float32"
        state_rounding: Literal["nearest", "stochastic"] | None = None
        gradient_release: bool = False
        distribute_matrices: bool = False

    # The names it is chosen by.
    names: ClassVar[tuple[Name, ...]] = ()
    # Whether `step` needs a closure that computes the loss again.
    needs_closure: ClassVar[bool] = False
    # Whether gradients need a graph: `loss.backward(create_graph=True)`. So it is where there is a `curvature`.
    second_order: ClassVar[bool] = False
    # Whether it treats the matrices inside a network unlike its other parameters.
    hidden_matrices: ClassVar[bool] = False
    # The hyper-parameters it declares, in the order of the signature.
    hypers: ClassVar[Mapping[str, Hyper]] = {}
    _signature: ClassVar[inspect.Signature]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.second_order = cls.second_order or cls.curvature is not None
        own = declared(cls)
        together = {name: each for base in reversed(cls.__bases__) for name, each in _hypers_of(base).items()}
        for name in own.keys() & together.keys():
            if together[name].keyword_only and not own[name].keyword_only:
                del together[name]  # one that gets a position has it among the class's own
        together |= own
        cls.hypers = {
            **{name: each for name, each in together.items() if not each.keyword_only},
            **{name: each for name, each in together.items() if each.keyword_only},
        }
        for name, each in own.items():
            if each.in_group:
                setattr(cls, name, GroupEntry(name))
            else:
                delattr(cls, name)
        if not cls.hypers:
            return
        cls.absent_from_peers |= {name for name, each in cls.hypers.items() if not each.in_peers}
        cls._signature = _signature_of(cls.hypers)
        cls.__signature__ = _own_signature(cls)  # type: ignore[attr-defined]
        cls.__init__ = _constructor(cls)  # type: ignore[method-assign]
        if own and cls.__doc__:
            cls.__doc__ = _documented(cls.__doc__, cls.hypers)

    if not TYPE_CHECKING:

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            try:
                given = self._signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{type(self).__name__}: {error}") from None
            in_group = [name for name, each in self.hypers.items() if each.in_group]
            options = given.arguments.pop("options", {})
            known = [*in_group, *self.run_state.init, *ENGINE_DEFAULTS]
            options = peer_options.without_flags(type(self).__name__, options, known)
            given.apply_defaults()
            values = {**given.arguments, **ENGINE_DEFAULTS, **options}
            del values["options"]
            for name, each in self.hypers.items():
                if not each.in_group:
                    values[name] = each.check(name, values[name])
            values = self.from_arguments(values)
            params = values.pop("params")
            self.__dict__.update({name: values[name] for name, each in self.hypers.items() if each.kept})
            kept = {name: value for name, value in values.items() if name in in_group or name not in self.hypers}
            super().__init__(params, kept)

    def from_arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        """The defaults of parameter groups, and `params`, from the constructor's arguments.

        Overridden where an argument is another one's name. Arguments that are not `in_group` are left out afterwards;
        what is added is an entry of every group.

        Args:
            given: all arguments by name, also those of the engine, each with its default if it was not given.
        """
        return given

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: getattr(self, name) for name, each in self.hypers.items() if each.kept}
        return {**super().__getstate__(), **kept}

    def check_group(self, group: dict[str, Any]) -> None:
        """Raise if a hyper-parameter of a group is wrong, and put each into it as Python's own number, tuple or text.

        What is declared is checked here. Overridden, after `super().check_group(group)`, for what has to agree.
        """
        for name, each in self.hypers.items():
            if each.in_group:
                group[name] = each.check(name, group[name])
        super().check_group(group)


RuleOptimizer.__doc__ = EngineOptimizer.__doc__
for _option in ENGINE_DEFAULTS:
    setattr(RuleOptimizer, _option, GroupEntry(_option))


def _hypers_of(base: type) -> Mapping[str, Hyper]:
    found: Mapping[str, Hyper] = getattr(base, "hypers", {})
    return found


def _signature_of(hypers: Mapping[str, Hyper]) -> inspect.Signature:
    kinds = inspect.Parameter
    return inspect.Signature(
        [
            kinds("params", kinds.POSITIONAL_OR_KEYWORD, annotation=ParamsT),
            *(each.parameter(name) for name, each in hypers.items()),
            kinds("options", kinds.VAR_KEYWORD),
        ]
    )


def _own_signature(cls: type[RuleOptimizer]) -> inspect.Signature:
    """What `inspect.signature` says of a class: the declared one, unless a constructor of its own names arguments."""
    _, *parameters = inspect.signature(_written(cls)).parameters.values()
    passed_on = all(parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) for parameter in parameters)
    return cls._signature if passed_on else inspect.Signature(parameters)


def _written(cls: type[RuleOptimizer]) -> Callable[..., None]:
    """The constructor that stands in a source, behind those of `_constructor`."""
    found: Callable[..., None] = getattr(cls.__init__, "written", cls.__init__)
    return found


def _constructor(cls: type[RuleOptimizer]) -> Callable[..., None]:
    """A constructor of the class's own: timm's tests and LightningCLI read the options off `cls.__init__`."""
    written = _written(cls)

    @wraps(written)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        written(self, *args, **kwargs)

    own: inspect.Signature = cls.__signature__  # type: ignore[attr-defined]
    me = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    __init__.written = written  # type: ignore[attr-defined]
    __init__.__signature__ = own.replace(parameters=[me, *own.parameters.values()])  # type: ignore[attr-defined]
    return __init__


_ARGUMENTS = "params: parameters, named parameters, or dicts that define parameter groups."
_ERRORS = (
    "ValueError: a hyper-parameter out of range, or no parameters.",
    "TypeError: a hyper-parameter of the wrong type, or an unknown option.",
)


def _documented(doc: str, hypers: Mapping[str, Hyper]) -> str:
    """The docstring with its sections Args and Raises. Its own section Raises has the errors of this class alone."""
    text, source, rest = inspect.cleandoc(doc).partition("\nSource:\n")
    text, _, errors = text.partition("\nRaises:\n")
    arguments = [_ARGUMENTS]
    for name, each in hypers.items():
        default = ", ".join(filter(None, [repr(each.default), each.domain]))
        arguments.append(f"{name} ({'default ' * (len(arguments) == 1)}{default}): {each.doc}.")
    arguments.append(f"**options: {', '.join(f'`{name}`' for name in ENGINE_DEFAULTS)}, see `RuleOptimizer`.")
    sections = [
        text.rstrip(),
        "Args:\n" + "\n".join(_wrapped(line) for line in arguments),
        "Raises:\n" + "\n".join([*(_wrapped(line) for line in _ERRORS), *errors.rstrip().splitlines()]),
    ]
    return "\n\n".join([*sections, f"Source:\n{rest}"] if source else sections)


def _wrapped(line: str) -> str:
    return textwrap.fill(line, 116, initial_indent=" " * 4, subsequent_indent=" " * 8, break_long_words=False)
