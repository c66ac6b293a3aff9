"""The five meanings of one policy side by side: CPython on its own text, CPython on the printed IR, the reference
interpreter, Z3 and machine code."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import z3

from autopoiesis_lib import Contract, Policy
from autopoiesis_lib.language.interpreter import Fault, evaluate
from autopoiesis_lib.language.ir import walk
from autopoiesis_lib.language.native import NativeFunction
from autopoiesis_lib.language.python import compile_python
from autopoiesis_lib.language.ranges import Ranges, analyse
from autopoiesis_lib.language.smt import Encoder, SymbolicView, as_int

__all__ = ["Meanings", "Rows", "execute"]

Rows = Sequence[dict[str, int]]


def execute(text: str) -> Any:
    """The decision as CPython runs the author's own text."""
    namespace: dict[str, Any] = {}
    exec(compile(text, "<policy>", "exec"), namespace)
    return namespace["score"]


@dataclass
class Meanings:
    """One policy, ready to be run every way."""

    text: str
    contract: Contract
    with_ranges: bool = True
    """Whether Z3 gets the help of intervals, as the proof gate gives it."""
    policy: Policy = field(init=False)
    native: NativeFunction = field(init=False)
    ranges: Ranges = field(init=False)
    value: Any = field(init=False)
    violated: Any = field(init=False)

    def __post_init__(self) -> None:
        self.policy = Policy.from_source(self.text, self.contract)
        signature = self.contract.decisions["score"]
        self.original = execute(self.text)
        self.printed = compile_python(self.policy.module)["score"]
        self.native = self.policy.native()
        self.ranges = analyse(self.policy.module, signature)
        views = [SymbolicView.fresh(param.name, self.contract.views[param.type]) for param in signature.params]
        encoder = Encoder(self.policy.module, self.ranges if self.with_ranges else None)
        value = as_int(encoder.call("score", views))
        violations = [obligation.negation() for obligation in encoder.obligations]
        self.value = z3.IntVal(value) if isinstance(value, int) else value
        self.violated = z3.Or([z3.BoolVal(item) if isinstance(item, bool) else item for item in violations])
        self.symbols = [(view.terms[spec.name], spec.domain.kind) for view in views for spec in view.view.fields()]
        self.lines = {node.line for function in self.policy.module.functions.values() for node in walk(function)}

    def check(self, rows: Rows, *, solver: bool) -> bool:
        """Assert that every meaning agrees on one input; whether the policy runs without a fault on it."""
        values = [value for row in rows for value in row.values()]
        where = f"{self.text}\non {rows}"
        try:
            expected: int | None = evaluate(self.policy.module, "score", rows)
        except Fault as fault:
            expected = None
            assert fault.node.line in self.lines
            assert id(fault.node) in self.ranges.open, f"intervals discharged a fault: {fault}\n{where}"
            if fault.kind == "division by zero":
                for run in (self.original, self.printed):
                    try:
                        run(*self.views(rows))
                    except ZeroDivisionError:
                        continue
                    raise AssertionError(f"CPython does not divide by zero: {fault}\n{where}") from None
        found = self.native(*values)  # must come back whatever the input
        if solver:
            self.check_solver(values, expected, where)
        if expected is None:
            return False
        assert found == expected, f"native {found}, interpreter {expected}\n{where}"
        assert self.ranges.result.lo <= expected <= self.ranges.result.hi, (
            f"{expected} outside {self.ranges.result}\n{where}"
        )
        for name, run in (("original text", self.original), ("printed IR", self.printed)):
            result = run(*self.views(rows))
            assert result == expected, f"{name} {result}, interpreter {expected}\n{where}"
        return True

    def check_solver(self, values: Sequence[int], expected: int | None, where: str) -> None:
        pairs = [
            (symbol, z3.BoolVal(bool(value)) if kind == "bool" else z3.IntVal(value))
            for (symbol, kind), value in zip(self.symbols, values, strict=True)
        ]
        violated = z3.simplify(z3.substitute(self.violated, pairs))
        assert z3.is_true(violated) is (expected is None), (
            f"Z3 says violated = {violated}, expected {expected}\n{where}"
        )
        if expected is not None:
            value = z3.simplify(z3.substitute(self.value, pairs))
            assert z3.is_int_value(value) and value.as_long() == expected, (
                f"Z3 {value}, interpreter {expected}\n{where}"
            )

    def views(self, rows: Rows) -> list[SimpleNamespace]:
        """Objects with the views' fields, booleans being bools, as CPython sees them."""
        views: list[SimpleNamespace] = []
        for param, row in zip(self.contract.decisions["score"].params, rows, strict=True):
            view = self.contract.views[param.type]
            views.append(
                SimpleNamespace(
                    **{
                        name: bool(value) if view.field(name).domain.kind == "bool" else value
                        for name, value in row.items()
                    }
                )
            )
        return views
