"""What a kernel is generated for: the tensors of a row, how each is kept, and how the parameter is rounded."""

from __future__ import annotations

from dataclasses import dataclass, replace

# Parameter and gradient among the values of a rule, before its states; and among the addresses a kernel is given.
PARAM, GRAD = 0, 1


@dataclass(frozen=True)
class Slot:
    """A value of the rule in memory.

    Args:
        position: of its (first) tensor in the row.
        kept: "float32", "float64", "bfloat16", "float16", or a code: "8bit", "8bit_unsigned", "4bit", "4bit_unsigned",
            whose scales are the next tensor of the row.
        stochastic: whether rounding is stochastic.
        salt: what tells its random bits from those of the row's other tensors.
    """

    position: int
    kept: str
    stochastic: bool = False
    salt: int = 0

    @property
    def coded(self) -> bool:
        return self.kept.startswith(("8bit", "4bit"))


@dataclass(frozen=True)
class Layout:
    """The tensors of a row.

    Args:
        compute: dtype the rule computes in, "float32" or "float64".
        slots: parameter, gradient, then each state.
        rounding: how the new parameter gets into its dtype: "nearest", "kahan", "kahan_read", "stochastic",
            "remainder8" or "remainder16"; Kahan's term or the remainder is the last tensor of the row.
        tensors: how many tensors a row has.
        products: how many of the slots, the last ones, are for functions of whole matrices: tensors that are there for
            the time of a step, behind those of the states.
    """

    compute: str
    slots: tuple[Slot, ...]
    rounding: str
    tensors: int
    products: int = 0

    def with_products(self, count: int) -> Layout:
        """The same with slots for so many products."""
        first = self.tensors - self.has_rest
        more = tuple([Slot(first + place, self.compute) for place in range(count)])
        return replace(self, slots=self.slots + more, tensors=self.tensors + count, products=count)

    @property
    def has_rest(self) -> bool:
        """Whether what rounding took of the parameter is kept."""
        return self.rounding not in ("nearest", "stochastic")

    @property
    def rest_is_read(self) -> bool:
        """Whether that is part of the parameter's value; else it is added to the new one."""
        return self.has_rest and self.rounding != "kahan"

    def uses_rest(self, reads: bool, stores: bool) -> bool:
        """Whether it is touched where the parameter is read, or stored, or both."""
        return self.has_rest and (stores or (reads and self.rest_is_read))

    @property
    def coded(self) -> bool:
        return any(slot.coded for slot in self.slots)

    @property
    def block(self) -> int:
        """Entries of a block of coded state."""
        return 128 if any(slot.kept.startswith("4bit") for slot in self.slots) else 256

    def exact(self) -> set[int]:
        """The slots (by index) whose memory keeps a value as it was computed."""
        return {i for i, slot in enumerate(self.slots) if slot.kept == self.compute and i != PARAM}
