"""Views: the frozen, typed records a policy reads. One declaration, five readings.

The pydantic fields of a `View` are at once the mypy types, the Z3 domains, the Hypothesis strategies, the JSON schema in a
prompt, and the column layout of an adapter.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MultipleOf, Predicate
from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

from .errors import ContractError
from .units import Unit

__all__ = ["Domain", "FieldSpec", "Saturates", "View", "domain_of"]

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


_OPERATORS = tuple(
    f"__{name}__"
    for name in (
        *("eq", "ne", "lt", "le", "gt", "ge", "hash", "bool", "int", "index", "neg", "pos", "abs"),
        *(f"{side}{name}" for name in ("add", "sub", "mul", "floordiv", "mod", "pow") for side in ("", "r")),
    )
)
"""Operators that a policy applies to integers; an enum's have to be those of `int`."""


@dataclass(frozen=True)
class Saturates:
    """Marks a field that an adapter may clamp to its bounds; every other field out of its domain drops the step."""


@dataclass(frozen=True)
class Domain:
    """The finite set of integers a value may take, with its unit.

    `values` is set for enums only (sorted); otherwise the domain is every integer in `[lo, hi]`.
    """

    lo: int
    hi: int
    kind: Literal["int", "bool", "enum"] = "int"
    unit: str = ""
    values: tuple[int, ...] | None = None
    enum: type[IntEnum] | None = None
    saturates: bool = False

    @property
    def size(self) -> int:
        """Number of values that the domain holds."""
        return len(self.values) if self.values is not None else self.hi - self.lo + 1

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, int):
            return False
        return value in self.values if self.values is not None else self.lo <= value <= self.hi

    def describe(self) -> str:
        """Return the domain in words, for prompts, errors and documentation."""
        if self.kind == "bool":
            return "bool"
        if self.enum is not None:
            return f"{self.enum.__name__}: " + ", ".join(f"{member.name}={member.value}" for member in self.enum)
        return f"{self.lo:,} to {self.hi:,}" + (f" {self.unit}" if self.unit else "")


@dataclass(frozen=True)
class FieldSpec:
    """One field of a view: its name, its domain and what it means."""

    name: str
    domain: Domain
    doc: str


def domain_of(annotation: Any, where: str, metadata: tuple[Any, ...] = ()) -> Domain:
    """Return the domain that an annotation declares.

    Raises:
        ContractError: the annotation is not a bounded `int`, a `bool` or an `IntEnum`.
    """
    collected: list[Any] = []
    while get_origin(annotation) is Annotated:
        annotation, *inner = get_args(annotation)
        collected = [*inner, *collected]
    collected.extend(metadata)
    flat = [item for entry in collected for item in (entry.metadata if isinstance(entry, FieldInfo) else [entry])]
    for item in flat:
        if isinstance(item, (MultipleOf, Predicate)) or type(item).__module__.startswith("pydantic.functional_"):
            raise ContractError(
                f"{where}: a domain is an interval, and `{type(item).__name__}` is no bound of one; state it as an assumption"
            )
    saturates = any(isinstance(item, Saturates) for item in flat)
    if annotation is bool:
        return Domain(0, 1, "bool", saturates=saturates)
    if isinstance(annotation, type) and issubclass(annotation, IntEnum):
        own = next((name for name in _OPERATORS if getattr(annotation, name) is not getattr(int, name)), None)
        if own is not None:
            raise ContractError(f"{where}: the enum {annotation.__name__} gives `{own}` another meaning; remove that")
        values = tuple(sorted(int(member) for member in annotation))
        if not values or not INT64_MIN <= values[0] <= values[-1] <= INT64_MAX:
            raise ContractError(f"{where}: the enum {annotation.__name__} is empty or leaves int64")
        return Domain(values[0], values[-1], "enum", values=values, enum=annotation, saturates=saturates)
    if annotation is not int:
        raise ContractError(
            f"{where}: a view holds bounded int, bool or IntEnum, not {annotation!r}; use autopoiesis_lib.units"
        )
    lows: list[int] = []
    highs: list[int] = []
    for kind, bounds, shift in ((Ge, lows, 0), (Gt, lows, 1), (Le, highs, 0), (Lt, highs, -1)):
        for item in flat:
            if isinstance(item, kind):
                value = getattr(item, kind.__name__.lower())
                if type(value) is not int:
                    raise ContractError(f"{where}: the bound {value!r} is no integer")
                bounds.append(value + shift)
    if not lows or not highs:
        raise ContractError(
            f"{where}: an int needs both bounds; use a unit of autopoiesis_lib.units or Field(ge=..., le=...)"
        )
    lo, hi = max(lows), min(highs)
    if not INT64_MIN <= lo <= hi <= INT64_MAX:
        raise ContractError(f"{where}: the bounds {lo}..{hi} are empty or leave int64")
    unit = next((item.symbol for item in flat if isinstance(item, Unit)), "")
    return Domain(lo, hi, unit=unit, saturates=saturates)


class View(BaseModel):
    """Base of every view. Fields are bounded ints (see `autopoiesis_lib.units`), bools or IntEnums."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for taken in ("fields", "field", "row"):
            if next(base for base in cls.__mro__ if taken in vars(base)) is not View:
                raise ContractError(
                    f"{cls.__name__}.{taken}: the library defines `{taken}` from the fields; rename yours"
                )

    @classmethod
    def fields(cls) -> tuple[FieldSpec, ...]:
        """Return the fields in declared order: the column order of `Policy.scorer` and of adapters."""
        return _fields(cls)

    @classmethod
    def field(cls, name: str) -> FieldSpec:
        """Return one field by name; raises `KeyError` when there is none."""
        return _fields_by_name(cls)[name]

    def row(self) -> tuple[int, ...]:
        """Return the values as plain integers in declared order."""
        return tuple(int(getattr(self, spec.name)) for spec in type(self).fields())


@cache
def _fields(view: type[View]) -> tuple[FieldSpec, ...]:
    return tuple(
        FieldSpec(
            name,
            domain_of(info.annotation, f"{view.__name__}.{name}", tuple(info.metadata)),
            " ".join((info.description or "").split()),
        )
        for name, info in view.model_fields.items()
    )


@cache
def _fields_by_name(view: type[View]) -> dict[str, FieldSpec]:
    return {spec.name: spec for spec in _fields(view)}
