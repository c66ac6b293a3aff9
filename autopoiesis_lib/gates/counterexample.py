"""Counterexamples: evaluate formulas on concrete values, make the values small, replay them, print them as a test.

Evaluation runs the author's own Python for the formula and the policy's Python meaning, so it shares nothing with the solver
encoding it checks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from types import SimpleNamespace

from ..binding import range_name, safe_name
from ..contract import Contract
from ..errors import AutopoiesisError
from ..formula import Formula, FormulaParam
from ..policy import DecisionFault, Policy, fault_on
from ..view import Domain, View
from .verdict import Counterexample, Reason, Row

__all__ = ["Arguments", "EncoderBug", "Evaluator", "Scene", "admissible", "decision_params", "instances", "minimise"]

Arguments = dict[str, Row | int]
"""Values of a formula's or decision's parameters, by name."""


class EncoderBug(AutopoiesisError):
    """The solver and CPython disagree about a policy: our encoding is wrong. Never reported as UNKNOWN."""


def instances(params: Sequence[FormulaParam], views: Mapping[str, type[View]]) -> Iterator[tuple[str, ...]]:
    """Yield every assignment of views in scope to parameters that are views, as tuples of names."""
    choices = [[name for name, view in views.items() if view is param.view] for param in params]
    yield from product(*choices)


def decision_params(contract: Contract, decision: str) -> tuple[FormulaParam, ...]:
    """Return a decision's parameters as those of a formula."""
    return tuple(
        FormulaParam(param.name, view=contract.views[param.type]) for param in contract.decisions[decision].params
    )


class Evaluator:
    """Evaluates one policy's decisions and its contract's formulas on values, as CPython does."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.contract: Contract = policy.contract
        self._self = policy.stand_in

    def holds(self, formula: Formula, arguments: Mapping[str, Row | int]) -> bool:
        """Return whether a formula holds on values; a decision that raises makes it false."""
        values = [_value(arguments[param.name]) for param in formula.params]
        try:
            return bool(formula.method(self._self, *values))
        except ArithmeticError:
            return False

    def admissible(self, params: Sequence[FormulaParam], arguments: Mapping[str, Row | int]) -> bool:
        """Return what the function `admissible` does, for this policy's contract."""
        return admissible(self.contract, self._self, params, arguments)

    def fault(self, decision: str, arguments: Mapping[str, Row | int]) -> DecisionFault | None:
        """Return what goes wrong when a decision runs on values; None when nothing does."""
        signature = self.contract.decisions[decision]
        rows = [arguments[param.name] for param in signature.params]
        return fault_on(self.policy, signature, [row for row in rows if isinstance(row, dict)])

    def counterexample(self, formula: Formula, arguments: Arguments) -> Counterexample:
        """Return a replayed counterexample of an invariant, its values made small.

        Raises:
            EncoderBug: the invariant holds on these values.
        """
        if not self.admissible(formula.params, arguments) or self.holds(formula, arguments):
            raise EncoderBug(
                f"the counterexample of `{formula.name}` does not replay: {arguments}; please report this policy"
            )
        small = minimise(arguments, formula.params, self._breaks(formula))
        return Counterexample(
            arguments=small,
            obligation=formula.name,
            reason=Reason.INVARIANT,
            explanation=self._explain(formula, small),
            pytest=_pytest(self.contract, formula.name, formula.params, small, f'policy.holds("{formula.name}", {{}})'),
        )

    def fault_within(self, formula: Formula, arguments: Arguments) -> Counterexample | None:
        """Return a counterexample of some decision's safety on views among an invariant's arguments; None when none faults."""
        views = {param.name: param.view for param in formula.params if param.view is not None}
        for decision in self.contract.decisions:
            params = decision_params(self.contract, decision)
            for names in instances(params, views):
                rows = {param.name: arguments[name] for param, name in zip(params, names, strict=True)}
                if self.fault(decision, rows) is not None and self.admissible(params, rows):
                    return self.fault_counterexample(decision, rows)
        return None

    def fault_counterexample(self, decision: str, arguments: Arguments) -> Counterexample:
        """Return a replayed counterexample of a decision's safety or range, its values made small.

        Raises:
            EncoderBug: the decision runs well on these values.
        """
        params = decision_params(self.contract, decision)
        fault = self.fault(decision, arguments)
        if fault is None or not self.admissible(params, arguments):
            raise EncoderBug(
                f"the counterexample of `{decision}` does not replay: {arguments}; please report this policy"
            )
        small = minimise(
            arguments,
            params,
            lambda candidate: self.admissible(params, candidate) and self.fault(decision, candidate) is not None,
        )
        fault = self.fault(decision, small) or fault
        return Counterexample(
            arguments=small,
            obligation=(range_name if fault.kind == "out of range" else safe_name)(decision),
            reason=Reason(fault.kind),
            explanation=fault.text,
            pytest=_pytest(
                self.contract, f"{decision}_is_safe", params, small, f'policy.fault("{decision}", {{}}) is None'
            ),
        )

    def _breaks(self, formula: Formula) -> Callable[[Arguments], bool]:
        """Return the test whether values are a counterexample. It runs a hundred times, so shared work is done here once."""
        scene = Scene(self.contract, formula.params)

        def breaks(arguments: Arguments) -> bool:
            objects = {name: _value(value) for name, value in arguments.items()}
            try:
                if formula.method(self._self, *(objects[param.name] for param in formula.params)):
                    return False
            except ArithmeticError:
                pass
            return scene.admits(self._self, arguments, objects)

        return breaks

    def _explain(self, formula: Formula, arguments: Arguments) -> str:
        parts: list[str] = []
        by_view: dict[type[View], list[str]] = {}
        for param in formula.params:
            if param.view is not None:
                by_view.setdefault(param.view, []).append(param.name)
        for decision, signature in self.contract.decisions.items():
            choices = [by_view.get(self.contract.views[param.type], []) for param in signature.params]
            for names in product(*choices):
                rows = [_value(arguments[name]) for name in names]
                try:
                    shown = f"{getattr(self._self, decision)(*rows):,}"
                except ArithmeticError as error:
                    shown = str(error)
                parts.append(f"{decision}({', '.join(names)}) = {shown}")
        scalars = [f"{name} = {value:,}" for name, value in arguments.items() if isinstance(value, int)]
        return f"`{formula.name}` is false: {'; '.join([*parts, *scalars])}"


class Scene:
    """The domains in scope of a formula or decision, and every assumption about them."""

    def __init__(self, contract: Contract, params: Sequence[FormulaParam]) -> None:
        views = {param.name: param.view for param in params if param.view is not None}
        self._domains = [
            (name, spec.name, spec.domain.lo, spec.domain.hi, spec.domain.values)
            for name, view in views.items()
            for spec in view.fields()
        ]
        self._scalars = [(param.name, param.domain) for param in params if param.domain is not None]
        self._assumptions = [
            (formula.method, names) for formula in contract.assumptions for names in instances(formula.params, views)
        ]

    def admits(
        self, stand_in: object, arguments: Mapping[str, Row | int], objects: Mapping[str, object] | None = None
    ) -> bool:
        """Return whether values lie in their domains and satisfy every assumption; `objects` are the same values as objects."""
        objects = objects or {name: _value(value) for name, value in arguments.items()}
        for method, names in self._assumptions:
            if not method(stand_in, *[objects[name] for name in names]):
                return False
        for name, field, lo, hi, members in self._domains:
            row = arguments[name]
            assert isinstance(row, dict)
            if not lo <= row[field] <= hi or (members is not None and row[field] not in members):
                return False
        return all(arguments[name] in domain for name, domain in self._scalars)


def admissible(
    contract: Contract, stand_in: object, params: Sequence[FormulaParam], arguments: Mapping[str, Row | int]
) -> bool:
    """Return whether values lie in their domains and satisfy every assumption about the views in scope."""
    return Scene(contract, params).admits(stand_in, arguments)


def minimise(arguments: Arguments, params: tuple[FormulaParam, ...], breaks: Callable[[Arguments], bool]) -> Arguments:
    """Smaller values that still break: each field moved as far towards 0 as one binary search finds."""
    current: Arguments = {name: dict(value) if isinstance(value, dict) else value for name, value in arguments.items()}
    for _ in range(2):
        for param in params:
            if param.view is None:
                continue
            row = current[param.name]
            assert isinstance(row, dict)
            for spec in param.view.fields():
                target = min(max(0, spec.domain.lo), spec.domain.hi)
                low, high = target, row[spec.name]
                if low == high:
                    continue
                if breaks({**current, param.name: {**row, spec.name: low}}):
                    row[spec.name] = low
                    continue
                while abs(high - low) > 1:
                    middle = (low + high) // 2
                    if breaks({**current, param.name: {**row, spec.name: middle}}):
                        high = middle
                    else:
                        low = middle
                row[spec.name] = high
    return current


def _value(value: Row | int) -> object:
    return SimpleNamespace(**value) if isinstance(value, dict) else value


def view_instance(view: type[View], row: Row) -> View:
    """Return a row as a real, validated view."""
    values = {
        spec.name: bool(row[spec.name])
        if spec.domain.kind == "bool"
        else spec.domain.enum(row[spec.name])
        if spec.domain.enum
        else row[spec.name]
        for spec in view.fields()
    }
    return view(**values)


def _pytest(contract: Contract, name: str, params: tuple[FormulaParam, ...], arguments: Arguments, check: str) -> str:
    views = {param.view for param in params if param.view is not None}
    enums = {spec.domain.enum for view in views for spec in view.fields() if spec.domain.enum is not None}
    module = contract.interface.modules[0]
    changed = {
        field: getattr(contract, field)
        for field, info in type(contract).model_fields.items()
        if getattr(contract, field) != info.default
    }
    lines = [
        f"from {module} import {', '.join(sorted(item.__name__ for item in (*views, *enums, type(contract))))}",
        "",
        "from autopoiesis_lib import Policy",
        "",
        "",
        f"def test_{name}() -> None:",
        f"    contract = {type(contract).__name__}({', '.join(f'{key}={value!r}' for key, value in changed.items())})",
        '    policy = Policy.from_file("policy.py", contract)',
    ]
    for param in params:
        value = arguments[param.name]
        if param.view is None:
            lines.append(f"    {param.name} = {value}")
            continue
        assert isinstance(value, dict)
        shown = ", ".join(f"{spec.name}={_source_of(spec.domain, value[spec.name])}" for spec in param.view.fields())
        lines.append(f"    {param.name} = {param.view.__name__}({shown})")
    names = ", ".join(f"{param.name}={param.name}" for param in params)
    lines.append(f"    assert {check.replace('{}', names)}")
    return "\n".join(lines) + "\n"


def _source_of(domain: Domain, value: int) -> str:
    if domain.kind == "bool":
        return str(bool(value))
    return str(value) if domain.enum is None else f"{domain.enum.__name__}({value})"
