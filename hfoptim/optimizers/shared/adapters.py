"""What the optimizers of low-rank adapters share: which parameters are the two factors of a product, by their names."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from hfoptim.engine import Group, RuleOptimizer
from hfoptim.optimizers.shared.matrices import as_matrix

# peft's names of factors; which of both it is stands in the last group.
_FACTOR = re.compile(r"((?:^|[._])lora_(?:embedding_)?)([AB])(?=[._]|$)")


class Factor(NamedTuple):
    """One factor of a product B A of rank r.

    Args:
        is_first: whether it is A, of r rows; B has r columns.
        partner: the other one.
    """

    is_first: bool
    partner: Tensor

    @property
    def partner_shape(self) -> tuple[int, int]:
        """The other factor's, with the rank last."""
        rows, columns = as_matrix(self.partner.shape)
        return (rows, columns) if self.is_first else (columns, rows)


class Adapters(RuleOptimizer):
    """An optimizer that steps the factors of low-rank adapters (LoRA) each with a look at the other.

    They are found by peft's names, `lora_A` and `lora_B`, `lora_embedding_A` and `lora_embedding_B`. Without any it
    warns; a Trainer that is to make it raises.
    """

    _factors: Mapping[Tensor, Factor] = {}

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._find_factors()
        without = self.without_adapters()
        if without is not None:
            warnings.warn(without)

    def without_adapters(self) -> str | None:
        """What is wrong if no parameter is a factor of an adapter; None where one is."""
        if self._factors:
            return None
        count = sum(len(group["params"]) for group in self.param_groups)
        return (
            f"none of the {count} parameters is called lora_A or lora_B, and {type(self).__name__} steps all as "
            f"AdamW does; prepare the model with peft.get_peft_model, and give model.named_parameters()"
        )

    @property
    def goes_by_names(self) -> bool:
        """Whether it has factors of adapters, which it knows by their names."""
        names = (name for group in self.param_groups for name in group.get("param_names", ()))
        return any(_FACTOR.search(name) for name in names)

    def partner_of(self, param: Tensor, group: Group) -> Tensor:
        factor = self.factor_of(param, group)
        assert factor is not None
        return factor.partner

    def factor_of(self, param: Tensor, group: Group) -> Factor | None:
        """What factor of an adapter a parameter of a group is; None if it is none.

        Raises:
            ValueError: the other factor is not among the parameters, or they do not fit.
        """
        if param in self._factors:
            return self._factors[param]
        name = self.name_of(param, group)
        if name is None or _FACTOR.search(name) is None:
            return None
        return self._find_factors()[param]

    def _find_factors(self) -> Mapping[Tensor, Factor]:
        named = {
            name: param
            for group in self.param_groups
            for name, param in zip(group.get("param_names", ()), group["params"], strict=False)
        }
        found = {}
        for name, param in named.items():
            match = _FACTOR.search(name)
            if match is not None:
                is_first = match[2] == "A"
                other = f"{name[: match.start(2)]}{'B' if is_first else 'A'}{name[match.end(2) :]}"
                found[param] = Factor(is_first, self._checked(name, param, other, named.get(other), is_first))
        self._factors = found
        return found

    def _checked(self, name: str, param: Tensor, other: str, partner: Tensor | None, is_first: bool) -> Tensor:
        if partner is None:
            raise ValueError(
                f"{name} is one factor of an adapter, and the other, {other}, is not among the parameters; "
                f"{type(self).__name__} needs both: give it model.named_parameters() with both of them trainable"
            )
        first, second = (param, partner) if is_first else (partner, param)
        shapes = f"of shape {tuple(param.shape)}, and {other} of shape {tuple(partner.shape)}"
        if param.ndim < 2 or partner.ndim < 2 or first.shape[0] != second.shape[1]:
            raise ValueError(f"{name}, {shapes}, are no factors of a product: the rows of A are to be the columns of B")
        if min(as_matrix(first.shape)[1], second.shape[0]) < first.shape[0]:
            raise ValueError(f"{name}, {shapes}, have a rank above a side of their product; take a smaller rank")
        return partner
