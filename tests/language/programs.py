"""Random policies: typed, seeded, over every construct of the language; and inputs for them, boundaries first."""

from collections.abc import Iterator
from enum import IntEnum
from random import Random
from typing import Annotated, ClassVar

from pydantic import Field

from autopoiesis_lib import Contract, View, decision

__all__ = ["Crate", "Kind", "Pallet", "Small", "Stock", "Wide", "Yard", "every_input", "program", "random_inputs"]

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


class Kind(IntEnum):
    """An enum with a gap and a negative member."""

    LOW = -1
    MID = 2
    HIGH = 5


class Crate(View):
    """A view whose integers reach the edges of int64."""

    near: Annotated[int, Field(ge=-9, le=9)]
    far: Annotated[int, Field(ge=INT64_MIN, le=INT64_MAX)]
    fragile: bool
    kind: Kind


class Yard(View):
    """Its context."""

    room: Annotated[int, Field(ge=-(2**31), le=2**31)]
    open: bool


class Pallet(View):
    """A view of few values."""

    near: Annotated[int, Field(ge=-3, le=3)]
    far: Annotated[int, Field(ge=0, le=5)]
    fragile: bool
    kind: Kind


class Stock(View):
    """Its context; with it, 7 * 6 * 2 * 3 * 4 * 2 = 2,016 inputs in all."""

    room: Annotated[int, Field(ge=-1, le=2)]
    open: bool


class Wide(Contract, name="wide"):
    """Decisions over values that may overflow."""

    max_operations: ClassVar[int] = 4_096

    @decision
    def score(self, item: Crate, place: Yard) -> Annotated[int, Field(ge=INT64_MIN, le=INT64_MAX)]:
        """Any integer."""
        raise NotImplementedError


class Small(Contract, name="small"):
    """The same over so few inputs that all can be tried, with a narrow result."""

    max_operations: ClassVar[int] = 4_096

    @decision
    def score(self, item: Pallet, place: Stock) -> Annotated[int, Field(ge=-60, le=1_000)]:
        """A small integer."""
        raise NotImplementedError


_CONSTANTS = (0, 1, -1, 2, -2, 3, -3, 5, 7, -8, 10, 64, 1_000, 2**31, -(2**31), 2**62, -(2**62), INT64_MAX, INT64_MIN)


def program(seed: int, contract: Contract, *, tame: bool = False) -> str:
    """The text of a random policy of `Wide` or `Small`. With `tame`, constants are small, so that faults are rare."""
    return _Writer(Random(seed), contract, tame).module()


def random_inputs(seed: int, contract: Contract, count: int) -> Iterator[list[dict[str, int]]]:
    """Rows for the decision's views: boundaries, neighbours of boundaries, small values and uniform ones, mixed."""
    rng = Random(seed)
    signature = contract.decisions["score"]
    for _ in range(count):
        rows: list[dict[str, int]] = []
        for param in signature.params:
            row: dict[str, int] = {}
            for spec in contract.views[param.type].fields():
                domain = spec.domain
                if domain.values is not None:
                    row[spec.name] = rng.choice(domain.values)
                else:
                    near = (domain.lo, domain.lo + 1, domain.hi - 1, domain.hi, 0, 1, -1, rng.randint(-9, 9))
                    inside = [value for value in near if value in domain]
                    row[spec.name] = rng.choice(inside) if rng.random() < 0.7 else rng.randint(domain.lo, domain.hi)
            rows.append(row)
        yield rows


def every_input(contract: Contract) -> list[list[dict[str, int]]]:
    """Every input of the decision, as rows."""
    inputs: list[list[dict[str, int]]] = [[]]
    for param in contract.decisions["score"].params:
        rows: list[dict[str, int]] = [{}]
        for spec in contract.views[param.type].fields():
            domain = spec.domain
            values = domain.values if domain.values is not None else range(domain.lo, domain.hi + 1)
            rows = [{**row, spec.name: value} for row in rows for value in values]
        inputs = [[*before, row] for before in inputs for row in rows]
    return inputs


class _Writer:
    """Writes one module. `ints` and `bools` are the names that are certainly assigned at the point being written."""

    def __init__(self, rng: Random, contract: Contract, tame: bool) -> None:
        self.rng = rng
        self.tame = tame
        signature = contract.decisions["score"]
        self.item, self.place = (param.type for param in signature.params)
        self.module_name = contract.interface.modules[0]
        self.helpers: list[tuple[str, list[str], bool]] = []
        """Name, parameter kinds ("item", "place", "int", "bool"), whether it returns a bool."""
        self.constants: list[str] = []
        self.ints: list[str] = []
        self.bools: list[str] = []
        self.views: dict[str, str] = {}
        """Kind -> the name a view parameter has here."""
        self.fresh = 0
        self.loops = 0
        self.turns = 1

    def module(self) -> str:
        rng = self.rng
        lines = [f"from {self.module_name} import {self.item}, Kind, {self.place}", ""]
        for index in range(rng.choice((0, 0, 1, 2))):
            lines.append(f"LIMIT_{index} = {self.constant()}")
            self.constants.append(f"LIMIT_{index}")
        for index in range(rng.choice((0, 1, 1, 2, 3))):
            kinds = [rng.choice(("item", "place", "int", "bool")) for _ in range(rng.randint(0, 3))]
            # One view of a kind is enough for a helper: a call can pass only what its caller has.
            kinds = [kind for n, kind in enumerate(kinds) if kind in ("int", "bool") or kind not in kinds[:n]]
            returns_bool = rng.random() < 0.3
            lines += self.function(f"helper_{index}", kinds, returns_bool)
            self.helpers.append((f"helper_{index}", kinds, returns_bool))
        # The policy need not use the contract's names for its parameters.
        lines += self.function("score", ["item", "place"], False)
        return "\n".join(lines) + "\n"

    def function(self, name: str, kinds: list[str], returns_bool: bool) -> list[str]:
        self.ints, self.bools, self.views = [], [], {}
        self.fresh = self.loops = 0
        self.turns = 1
        params: list[str] = []
        for index, kind in enumerate(kinds):
            param = f"p{index}"
            params.append(f"{param}: {({'item': self.item, 'place': self.place}).get(kind, kind)}")
            if kind == "int":
                self.ints.append(param)
            elif kind == "bool":
                self.bools.append(param)
            else:
                self.views[kind] = param
        body = self.block(self.rng.randint(1, 4), 1, returns_bool)
        body.append(f"    return {self.boolean(2) if returns_bool else self.any_int(3)}")
        if self.rng.random() < 0.1:
            body.append(f"    return {'True' if returns_bool else self.any_int(1)}")  # never reached
        return [f"def {name}({', '.join(params)}) -> {'bool' if returns_bool else 'int'}:", *body, ""]

    def block(self, statements: int, level: int, returns_bool: bool) -> list[str]:
        lines: list[str] = []
        for _ in range(statements):
            lines += self.statement(level, returns_bool)
        return lines

    def statement(self, level: int, returns_bool: bool) -> list[str]:
        rng, indent = self.rng, "    " * level
        kind = rng.random()
        if kind < 0.30 or level > 2:
            if rng.random() < 0.25:
                value = self.boolean(2)
                return [f"{indent}{self.target(self.bools, 'b')} = {value}"]
            value = self.any_int(2)
            # A local's type is that of its first assignment, and an int local may take a bool later.
            name = self.target(self.ints, "n")
            if name != f"n{self.fresh}":
                return [f"{indent}{name} = {value}"]
            return [f"{indent}{name}: int = {value}" if rng.random() < 0.5 else f"{indent}{name} = 0 + {value}"]
        if kind < 0.42 and self.ints:
            operator = rng.choice(("+", "-", "*", "//", "%"))
            return [
                f"{indent}{rng.choice(self.ints)} {operator}= {self.divisor(2) if operator in '//%' else self.integer(1)}"
            ]
        if kind < 0.80:
            return self.branch(level, returns_bool)
        if kind < 0.95 and self.loops < 2 and self.turns < 12:
            return self.loop(level, returns_bool)
        return [f"{indent}pass"]

    def branch(self, level: int, returns_bool: bool) -> list[str]:
        rng, indent = self.rng, "    " * level
        lines: list[str] = []
        for position in range(rng.choice((1, 1, 2, 3))):
            word = "if" if position == 0 else "elif"
            lines.append(f"{indent}{word} {self.boolean(2) if rng.random() < 0.85 else self.any_int(2)}:")
            lines += self.inner(level, returns_bool)
        if rng.random() < 0.5:
            lines += [f"{indent}else:", *self.inner(level, returns_bool)]
        return lines

    def loop(self, level: int, returns_bool: bool) -> list[str]:
        rng, indent = self.rng, "    " * level
        bounds, turns = rng.choice(
            [
                ("3", 3),
                ("4", 4),
                ("1, 4", 3),
                ("5, -2, -3", 3),
                ("-3, 3, 2", 3),
                ("0", 0),
                ("2, 2", 0),
                ("1", 1),
                ("-4, 9, 7", 2),
            ]
        )
        name = f"i{self.loops}"
        self.loops += 1
        self.turns *= max(1, turns)
        known = list(self.ints), list(self.bools)
        self.ints.append(name)
        lines = [f"{indent}for {name} in range({bounds}):"]
        lines += self.block(rng.randint(1, 2), level + 1, returns_bool)
        if rng.random() < 0.3:
            lines.append(f"{indent}    {name} += {self.constant()}")
        self.ints, self.bools = known
        if turns:
            self.ints.append(name)
        return lines

    def inner(self, level: int, returns_bool: bool) -> list[str]:
        """A block in which names may be assigned that are not known after it, or that returns early."""
        known = list(self.ints), list(self.bools)
        lines = self.block(self.rng.randint(1, 2), level + 1, returns_bool)
        if self.rng.random() < 0.3:
            lines.append(f"{'    ' * (level + 1)}return {self.boolean(1) if returns_bool else self.any_int(2)}")
        self.ints, self.bools = known
        return lines

    def target(self, names: list[str], prefix: str) -> str:
        if names and self.rng.random() < 0.5:
            return self.rng.choice(names)
        self.fresh += 1
        names.append(f"{prefix}{self.fresh}")
        return names[-1]

    def any_int(self, depth: int) -> str:
        """An integer, or now and then a boolean where an integer stands."""
        return self.boolean(depth) if self.rng.random() < 0.1 else self.integer(depth)

    def constant(self) -> str:
        if self.tame:
            return str(self.rng.randint(-4, 6))
        return str(self.rng.choice(_CONSTANTS) if self.rng.random() < 0.6 else self.rng.randint(-100, 100))

    def integer(self, depth: int) -> str:
        rng = self.rng
        if depth <= 0 or rng.random() < 0.15:
            return self.atom()
        match rng.randrange(13):
            case 0 | 1 | 2:
                return f"({self.any_int(depth - 1)} {rng.choice('+-')} {self.any_int(depth - 1)})"
            case 3:
                return f"({self.integer(depth - 1)} * {self.integer(depth - 1)})"
            case 4 | 5:
                return f"({self.any_int(depth - 1)} {rng.choice(('//', '%'))} {self.divisor(depth - 1)})"
            case 6:
                return f"(({self.integer(depth - 1)}) ** {rng.choice((0, 1, 2, 2, 3, 5))})"
            case 7:
                return f"{rng.choice(('min', 'max'))}({', '.join(self.any_int(depth - 1) for _ in range(rng.choice((2, 2, 3))))})"
            case 8:
                return rng.choice(("abs({})", "-{}", "+{}", "int({})")).format(self.any_int(depth - 1))
            case 9:
                return f"({self.any_int(depth - 1)} if {self.boolean(depth - 1)} else {self.any_int(depth - 1)})"
            case 10:
                return f"({self.any_int(depth - 1)} {rng.choice(('and', 'or'))} {self.any_int(depth - 1)})"
            case _:
                return self.call(False, depth) or self.atom()

    def divisor(self, depth: int) -> str:
        """Often a safe one, so that most programs get past it."""
        pick = self.rng.random()
        if pick < 0.35:
            return self.rng.choice(("1", "2", "3", "7", "-1", "-2", "-3", "(-7)", "64"))
        if pick < 0.7:
            return f"(abs({self.integer(depth - 1)}) + 1)" if pick < 0.5 else f"min(-1, {self.integer(depth - 1)})"
        return self.integer(depth)

    def boolean(self, depth: int) -> str:
        rng = self.rng
        if depth <= 0:
            known = [*self.bools, "True", "False"]
            known += [f"{self.views['item']}.fragile"] * 2 if "item" in self.views else []
            known += [f"{self.views['place']}.open"] * 2 if "place" in self.views else []
            return rng.choice(known) if rng.random() < 0.5 else f"({self.atom()} {self.comparison()} {self.atom()})"
        match rng.randrange(8):
            case 0 | 1 | 2:
                return f"({self.any_int(depth - 1)} {self.comparison()} {self.any_int(depth - 1)})"
            case 3:
                links = "".join(f" {self.comparison()} {self.any_int(depth - 1)}" for _ in range(rng.choice((2, 3))))
                return f"({self.any_int(depth - 1)}{links})"
            case 4:
                return f"(not {self.any_int(depth - 1)})"
            case 5:
                operator = f" {rng.choice(('and', 'or'))} "
                return f"({operator.join(self.boolean(depth - 1) for _ in range(rng.choice((2, 3))))})"
            case 6:
                return rng.choice((f"bool({self.any_int(depth - 1)})", self.call(True, depth) or "True"))
            case _:
                return self.boolean(0)

    def comparison(self) -> str:
        return self.rng.choice(("==", "!=", "<", "<=", ">", ">="))

    def call(self, wants_bool: bool, depth: int) -> str | None:
        fitting = [
            (name, kinds)
            for name, kinds, returns_bool in self.helpers
            if returns_bool is wants_bool and all(kind in ("int", "bool") or kind in self.views for kind in kinds)
        ]
        if not fitting:
            return None
        name, kinds = self.rng.choice(fitting)
        arguments = [
            self.views[kind]
            if kind in self.views
            else self.boolean(depth - 1)
            if kind == "bool"
            else self.any_int(depth - 1)
            for kind in kinds
        ]
        return f"{name}({', '.join(arguments)})"

    def atom(self) -> str:
        rng = self.rng
        known = [self.constant(), *self.ints, *self.constants]
        if "item" in self.views:
            known += [f"{self.views['item']}.{name}" for name in ("near", "near", "far", "far", "kind")]
        if "place" in self.views:
            known += [f"{self.views['place']}.room"] * 2
        if rng.random() < 0.06:
            return f"Kind.{rng.choice(tuple(Kind)).name}"
        return rng.choice(known)
