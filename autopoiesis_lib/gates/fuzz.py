"""The fuzz gate: Hypothesis looks for what the proof may have missed because *we* are wrong.

On real, validated views it checks that every proved invariant holds in CPython at its proved bound, that no decision faults, and
that CPython, the reference interpreter and the machine code agree. A failure here on a proved policy is a bug in the verifier;
either way the policy does not run.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from random import Random

import z3
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from ..binding import safe_name
from ..contract import Contract
from ..formula import FormulaParam
from ..language.interpreter import Fault, evaluate
from ..language.native import NativeFunction
from ..language.smt import SymbolicView, Term
from ..policy import Policy
from ..view import Domain, View
from .counterexample import Arguments, Evaluator, decision_params, view_instance
from .samples import SEED, repair
from .solving import DEFAULT_RLIMIT, IncrementalSolver, scope_of, values_of
from .verdict import Counterexample, GateResult, Reason, Row, Verdict

__all__ = ["DEFAULT_EXAMPLES", "check", "view_rows"]

DEFAULT_EXAMPLES = 25
"""Examples an obligation; the same ones for the same policy (Hypothesis is derandomised)."""


def check(
    policy: Policy, evaluator: Evaluator, bounds: Mapping[str, int], examples: int = DEFAULT_EXAMPLES
) -> GateResult:
    """Test a policy at its proved bounds (`bounds`: invariant -> least value)."""
    started = time.perf_counter()
    natives = {name: policy.native(name) for name in policy.contract.decisions}
    found: Counterexample | None = None
    for name in policy.contract.decisions:
        failing = _search(
            policy,
            decision_params(policy.contract, name),
            examples,
            lambda values, name=name: _disagreement(policy, name, natives[name], values),
        )
        if failing is not None:
            arguments, detail = failing
            if evaluator.fault(name, arguments) is not None:
                found = evaluator.fault_counterexample(name, arguments)
            else:
                found = Counterexample(
                    arguments=arguments,
                    obligation=safe_name(name),
                    reason=Reason.MEANINGS,
                    explanation=detail,
                    pytest="",
                )
            break
    for formula in policy.contract.invariants if found is None else ():
        bound = formula.least
        params = [param for param in formula.params if param is not bound]

        def broken(values: Arguments, formula=formula, bound=bound) -> str | None:  # type: ignore[no-untyped-def]
            if bound is not None:
                values = {**values, bound.name: bounds.get(formula.name, bound.least_limit or 0)}
            real = {name: _real(policy, value, formula.params, name) for name, value in values.items()}
            try:
                return None if policy.holds(formula.name, **real) else f"`{formula.name}` is false"
            except ArithmeticError as error:
                return f"`{formula.name}` raises {type(error).__name__}: {error}"

        failing = _search(policy, params, examples, broken)
        if failing is not None:
            arguments, _ = failing
            if bound is not None:
                arguments[bound.name] = bounds.get(formula.name, bound.least_limit or 0)
            found = evaluator.counterexample(formula, arguments)
            break
    seconds = time.perf_counter() - started
    if found is not None:
        return GateResult.refuted("fuzz", found, seconds)
    detail = f"{examples} examples an obligation: invariants in CPython, and CPython = interpreter = machine code"
    return GateResult(name="fuzz", verdict=Verdict.PASSED, seconds=seconds, detail=detail)


def _real(policy: Policy, value: Row | int, params: Sequence[FormulaParam], name: str) -> View | int:
    view = next((param.view for param in params if param.name == name), None)
    return view_instance(view, value) if view is not None and isinstance(value, dict) else int(value)  # type: ignore[arg-type]


def _disagreement(policy: Policy, decision: str, native: NativeFunction, values: Arguments) -> str | None:
    signature = policy.contract.decisions[decision]
    rows = [values[param.name] for param in signature.params]
    try:
        expected = evaluate(policy.module, decision, rows)
    except Fault as fault:
        return str(fault)
    if expected not in signature.result:
        return f"`{decision}` returns {expected:,}, outside {signature.result.describe()}"
    views = [
        view_instance(policy.contract.views[param.type], row)
        for param, row in zip(signature.params, rows, strict=True)
        if isinstance(row, dict)
    ]
    in_python = int(policy.functions[decision](*views))
    in_machine = native(*(number for view in views for number in view.row()))
    if not expected == in_python == in_machine:
        return f"`{decision}`: the interpreter gives {expected}, CPython {in_python}, machine code {in_machine}"
    return None


def _search(policy: Policy, params, examples: int, failure) -> tuple[Arguments, str] | None:  # type: ignore[no-untyped-def]
    """Values on which `failure` says something, with what it says; None when Hypothesis finds none."""
    found: list[tuple[Arguments, str]] = []

    class _Found(Exception):
        pass

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(arguments(policy, params))
    def search(values: Arguments) -> None:
        said = failure(values)
        if said is not None:
            found.append((values, said))
            raise _Found

    try:
        search()
    except _Found:
        return found[-1]
    except Unsatisfiable:  # the assumptions hold too seldom to be met by chance
        failing = ((values, failure(values)) for values in solved(policy.contract, params, examples))
        return next(((values, said) for values, said in failing if said is not None), None)
    return None


def solved(contract: Contract, params: Sequence[FormulaParam], count: int) -> Iterator[Arguments]:
    """Yield up to `count` different admissible arguments that Z3 finds, the same ones every time.

    Each is asked for above or below a random value of a random field, so that they do not lie side by side.
    """
    scope = scope_of(contract, tuple(params))
    solver = IncrementalSolver(scope.constraints, DEFAULT_RLIMIT)
    terms = [
        (term, domain)
        for param in params
        for term, domain in _terms(scope.symbols[param.name], param)
        if domain.kind != "bool"
    ]
    draw = Random(SEED)
    other: list[Term] = []
    for _ in range(count):
        beyond: list[Term] = []
        if terms:
            term, domain = draw.choice(terms)
            value = draw.randint(domain.lo, domain.hi)
            beyond = [term >= value if draw.random() < 0.5 else term <= value]
        model = solver.ask([*other, *beyond])[1] or solver.ask(other)[1]
        if model is None:
            return
        found = values_of(model, scope.symbols)
        yield found
        if terms:
            other.append(z3.Or([item != model.eval(item, model_completion=True) for item, _ in terms]))


def _terms(symbol: SymbolicView | Term, param: FormulaParam) -> list[tuple[Term, Domain]]:
    if isinstance(symbol, SymbolicView):
        return [(symbol.terms[spec.name], spec.domain) for spec in symbol.view.fields()]
    return [] if param.domain is None else [(symbol, param.domain)]


def arguments(policy: Policy, params: Sequence[FormulaParam]) -> st.SearchStrategy[Arguments]:
    """Admissible arguments: drawn field by field, then moved until the contract's assumptions hold."""
    shapes = [
        (param, [spec.domain for spec in param.view.fields()] if param.view is not None else [param.domain])
        for param in params
    ]
    flat = st.tuples(*(value(domain) for _, domains in shapes for domain in domains if domain is not None))

    def build(drawn: tuple[int, ...]) -> Arguments:
        values = iter(drawn)
        built: Arguments = {}
        for param, _ in shapes:
            if param.view is not None:
                built[param.name] = {spec.name: next(values) for spec in param.view.fields()}
            else:
                built[param.name] = next(values)
        return repair(policy.contract, params, built, Random(hash(drawn)))

    evaluator = Evaluator(policy)
    return flat.map(build).filter(lambda values: evaluator.admissible(tuple(params), values))


def view_rows(view: type[View]) -> st.SearchStrategy[Row]:
    """Rows of a view, its ends well represented; relations between fields are not."""
    return st.fixed_dictionaries({spec.name: value(spec.domain) for spec in view.fields()})


def value(domain: Domain) -> st.SearchStrategy[int]:
    """Values of a domain, its ends well represented."""
    if domain.values is not None:
        return st.sampled_from(domain.values)
    if domain.hi - domain.lo < 64:
        return st.integers(domain.lo, domain.hi)
    return st.one_of(
        st.integers(domain.lo, domain.hi), st.sampled_from([domain.lo, domain.lo + 1, domain.hi - 1, domain.hi])
    )
