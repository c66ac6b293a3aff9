"""Domains of annotations: exactly the values that pydantic accepts, or a refusal."""

from enum import IntEnum
from typing import Annotated, Any

import pytest
from annotated_types import Ge, Gt, Le, Lt, MultipleOf, Predicate
from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from autopoiesis_lib import ContractError, Saturates, View
from autopoiesis_lib.units import Micros
from autopoiesis_lib.view import INT64_MAX, INT64_MIN, Domain, domain_of


class Gapped(IntEnum):
    """Members with a gap, not in order."""

    HIGH = 5
    LOW = -1
    MIDDLE = 2


class Huge(IntEnum):
    """A member that no int64 holds."""

    LOW = 0
    HUGE = 2**63


class Deep(IntEnum):
    """A member below every int64."""

    LOW = -(2**63) - 1
    HIGH = 0


INTERVALS: dict[str, tuple[Any, int, int]] = {
    "closed": (Annotated[int, Field(ge=-3, le=4)], -3, 4),
    "open": (Annotated[int, Field(gt=-3, lt=4)], -2, 3),
    "from annotated-types": (Annotated[int, Ge(-3), Le(4)], -3, 4),
    "open, from annotated-types": (Annotated[int, Gt(-3), Lt(4)], -2, 3),
    "the tightest of several": (Annotated[int, Field(ge=-3, le=4), Ge(0), Gt(0), Lt(4), Le(9)], 1, 3),
    "nested": (Annotated[Annotated[int, Field(ge=-3, le=4)], Field(ge=1)], 1, 4),
    "one value": (Annotated[int, Field(ge=7, le=7)], 7, 7),
    "all of int64": (Annotated[int, Field(ge=INT64_MIN, le=INT64_MAX)], INT64_MIN, INT64_MAX),
}

REFUSED: dict[str, Any] = {
    "no bound": int,
    "no upper bound": Annotated[int, Field(ge=0)],
    "no lower bound": Annotated[int, Field(le=0)],
    "an empty interval": Annotated[int, Field(ge=1, le=0)],
    "an empty open interval": Annotated[int, Field(gt=0, lt=1)],
    "below int64": Annotated[int, Field(ge=INT64_MIN - 1, le=0)],
    "above int64": Annotated[int, Field(ge=0, le=INT64_MAX + 1)],
    "a bound that is no integer": Annotated[int, Field(ge=0, le=1.5)],
    "a bound that is a truth value": Annotated[int, Field(ge=False, le=5)],
    "steps": Annotated[int, Field(ge=0, le=9, multiple_of=3)],
    "steps, from annotated-types": Annotated[int, Ge(0), Le(9), MultipleOf(3)],
    "a predicate": Annotated[int, Field(ge=0, le=9), Predicate(bool)],
    "a validator after": Annotated[int, Field(ge=0, le=9), AfterValidator(abs)],
    "a validator before": Annotated[int, Field(ge=0, le=9), BeforeValidator(abs)],
    "a validator of a truth value": Annotated[bool, AfterValidator(bool)],
    "a text": str,
    "a number": float,
    "a choice": int | None,
    "a class": View,
    "an enum that leaves int64": Huge,
    "an enum that leaves int64 below": Deep,
}


class TestDomainOf:
    @pytest.mark.parametrize("name", INTERVALS)
    def test_an_interval_has_exactly_its_values(self, name: str) -> None:
        annotation, lo, hi = INTERVALS[name]
        domain = domain_of(annotation, "here")
        assert (domain.lo, domain.hi, domain.kind, domain.values, domain.size) == (lo, hi, "int", None, hi - lo + 1)
        assert lo in domain and hi in domain and lo - 1 not in domain and hi + 1 not in domain
        adapter = TypeAdapter(annotation)
        assert adapter.validate_python(lo) == lo and adapter.validate_python(hi) == hi
        for outside in (lo - 1, hi + 1):
            with pytest.raises(ValidationError):
                adapter.validate_python(outside)

    @pytest.mark.parametrize("name", REFUSED)
    def test_what_is_no_interval_is_refused(self, name: str) -> None:
        with pytest.raises(ContractError, match="here"):
            domain_of(REFUSED[name], "here")

    def test_an_enum_has_its_members_in_order(self) -> None:
        domain = domain_of(Gapped, "here")
        assert (domain.lo, domain.hi, domain.values, domain.size) == (-1, 5, (-1, 2, 5), 3)
        assert 2 in domain and 0 not in domain and "2" not in domain

    def test_a_truth_value_is_0_or_1(self) -> None:
        assert domain_of(bool, "here") == Domain(0, 1, "bool")

    def test_metadata_of_a_field_counts(self) -> None:
        assert domain_of(int, "here", (Ge(0), Le(9))) == Domain(0, 9)

    def test_marks_are_kept(self) -> None:
        assert domain_of(Micros, "here").unit == "us"
        for annotation in (
            Annotated[Micros, Saturates()],
            Annotated[bool, Saturates()],
            Annotated[Gapped, Saturates()],
        ):
            assert domain_of(annotation, "here").saturates and not domain_of(Micros, "here").saturates


class TestView:
    def test_its_row_is_in_the_order_of_its_fields(self) -> None:
        class Mixed(View):
            second: Annotated[int, Field(ge=0, le=9)]
            first: bool
            kind: Gapped

        assert [spec.name for spec in Mixed.fields()] == ["second", "first", "kind"]
        assert Mixed(second=3, first=True, kind=Gapped.HIGH).row() == (3, 1, 5)
        assert Mixed.field("kind").domain.enum is Gapped

    def test_inherited_fields_have_the_domains_they_are_given_last(self) -> None:
        class One(View):
            size: Annotated[int, Field(ge=0, le=9)]
            kind: Gapped

        class Other(One):
            size: Annotated[int, Field(ge=0, le=99)]

        assert [(spec.name, spec.domain.hi) for spec in Other.fields()] == [("size", 99), ("kind", 5)]
        assert One.field("size").domain.hi == 9
