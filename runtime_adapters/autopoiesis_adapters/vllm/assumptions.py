"""Run-time checks of the facts about views that proofs assume: field domains and the contract's own assumptions.

Facts about one request are checked once, when it starts to wait: its fields do not change until it is admitted. Facts
about the engine, and facts that join a request with the engine, are checked on the snapshot of each scheduling pass,
for every waiting request. Both checks are machine code, compiled from the contract's own formulas, because a step has
no time for more. Python looks for the broken fact only when a check fails.
"""

from collections.abc import Callable
from functools import reduce
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from autopoiesis_lib.contract import Contract
from autopoiesis_lib.errors import AutopoiesisError
from autopoiesis_lib.formula import Formula, formula_module
from autopoiesis_lib.language.builtin import builtin, entry
from autopoiesis_lib.language.ir import (
    Call,
    Compare,
    Const,
    Expr,
    Field,
    Function,
    Logic,
    Module,
    Param,
    Return,
    ViewRef,
)
from autopoiesis_lib.language.llvm import DECLARATIONS, arguments_of, emit_functions, fields_read
from autopoiesis_lib.language.native import MachineCode
from autopoiesis_lib.view import View

__all__ = ["Assumptions", "UncheckableError"]

Int64s = NDArray[np.int64]

# 1 when f.holds is 1 for every column 0 <= i < n of `columns` (rows of `stride` elements) with the one row `engine`.
_ALL_HOLD = """\
define i64 @all_hold(ptr noalias %columns, i64 %stride, i64 %n, ptr noalias %engine) nounwind {{
entry:
{engine_loads}
  br label %row
row:
  %i = phi i64 [0, %entry], [%next, %row]
  %all = phi i64 [1, %entry], [%all.next, %row]
{request_loads}
  %one = call i64 @f.holds({arguments})
  %all.next = and i64 %all, %one
  %next = add nuw nsw i64 %i, 1
  %more = icmp slt i64 %next, %n
  br i1 %more, label %row, label %done
done:
  ret i64 %all.next
}}
"""

_HOLD_WITH = """\
define i64 @all_hold_with(ptr %columns, i64 %stride, i64 %n, ptr %engine{values}) nounwind {{
{stores}
  %all = call i64 @all_hold(ptr %columns, i64 %stride, i64 %n, ptr %engine)
  ret i64 %all
}}
"""

_ROLE = ("request", "engine")


class UncheckableError(AutopoiesisError):
    """Error for a contract that assumes something this adapter cannot check while serving."""


class Assumptions:
    """The domains and assumptions of an ordering contract: one request view, one engine view."""

    def __init__(self, contract: Contract, request: type[View], engine: type[View]) -> None:
        self._self = contract.stand_in({})
        self._of_request: list[Formula] = []
        self._of_pass: list[Formula] = []
        for formula in contract.assumptions:
            views = tuple(param.view for param in formula.params)
            if views == (request,):
                # A wait grows while the request is in the queue; its other fields do not change.
                if "waited_us" in formula.source:
                    raise UncheckableError(
                        f"{formula.name}: an assumption about a wait alone; state it with the engine"
                    )
                self._of_request.append(formula)
            elif views in ((engine,), (request, engine)):
                self._of_pass.append(formula)
            else:
                raise UncheckableError(f"{formula.name}: assume something of (request), (engine) or (request, engine)")
        self.request_names = tuple(spec.name for spec in request.fields())
        """A request's fields, in declared order."""
        self.engine_names = tuple(spec.name for spec in engine.fields())
        """The engine's fields, in declared order."""
        self._engine_domains = tuple((spec.name, spec.domain.lo, spec.domain.hi) for spec in engine.fields())
        of_one = _compile(_module(self._of_request, request, engine, bounded=request))
        self._requests_hold = builtin(of_one, "all_hold")
        self.request_check = of_one.address("all_hold")
        """Address of the check of requests alone, (columns, stride, n, columns) -> 1 when the n requests whose first
        fields start at `columns` lie in their domains and every assumption about a request alone holds of them."""
        pass_module = _module(self._of_pass, request, engine, bounded=engine)
        self.pass_check = _loop(pass_module)
        """Assembly of `hold`, as `@all_hold`; it needs `DECLARATIONS`."""
        self.pass_reads = frozenset(name for position, name in fields_read(pass_module, "holds") if position == 0)
        """The request fields that `pass_check` reads."""
        of_pass = _compile(pass_module)
        self.hold: Callable[[int, int, int, int], int] = builtin(of_pass, "all_hold")
        """(columns, stride, n, engine) -> 1 when the engine row lies in its domains and every assumption holds of it
        and of each of n >= 1 requests. `columns` is the address of an int64 matrix with rows of `stride` elements;
        `engine` is the address of the engine's row."""
        self.hold_with: Callable[..., int] = builtin(of_pass, "all_hold_with")
        """(columns, stride, n, engine, *values) -> the result of `hold` after the values are written to the engine's
        row."""

    def requests_hold(self, columns: int, stride: int, n: int = 1) -> bool:
        """Return true when n requests lie in their domains and every assumption about a request alone holds of each."""
        return bool(self._requests_hold(columns, stride, n, columns))  # no formula in it reads an engine

    def problem(self, fields: Int64s, engine: Int64s, n: int) -> str:
        """Return the reason in words why `hold` fails; it starts with `assumption` when an assumption is broken."""
        row = [int(value) for value in engine]
        for value, (name, lo, hi) in zip(row, self._engine_domains, strict=True):
            if not lo <= value <= hi:
                return f"engine.{name} = {value} is outside {lo} to {hi}"
        engine_view = SimpleNamespace(**dict(zip(self.engine_names, row, strict=True)))
        for slot in range(n):
            request_view = SimpleNamespace(**dict(zip(self.request_names, map(int, fields[:, slot]), strict=True)))
            for formula in self._of_pass:
                views = (engine_view,) if len(formula.params) == 1 else (request_view, engine_view)
                if not formula.method(self._self, *views):
                    return f"assumption {formula.name} does not hold ({formula.doc.rstrip('.')})"
        return "the machine code of the assumptions disagrees with their Python"


def _compile(module: Module) -> MachineCode:
    engine = module.functions["holds"].params[1]
    fields = range(len(module.views[engine.type].fields()))
    stores = "\n".join(
        f"  %at.{i} = getelementptr i64, ptr %engine, i64 {i}\n  store i64 %value.{i}, ptr %at.{i}" for i in fields
    )
    with_values = _HOLD_WITH.format(values="".join(f", i64 %value.{i}" for i in fields), stores=stores)
    entries = entry("all_hold", "piip") + entry("all_hold_with", "piip" + "i" * len(fields))
    return MachineCode("\n".join((DECLARATIONS, _loop(module), with_values, entries)))


def _module(formulas: list[Formula], request: type[View], engine: type[View], bounded: type[View]) -> Module:
    """Build `holds(request, engine)`, one function of the policy language.

    It is the conjunction of the domains of `bounded` and every formula.
    """
    params = (Param("request", request.__name__), Param("engine", engine.__name__))
    parts: list[Expr] = [
        Compare(
            ("<=", "<="), (Const(spec.domain.lo), Field(_ROLE[bounded is engine], spec.name), Const(spec.domain.hi))
        )
        for spec in bounded.fields()
    ]
    names = {request: "request", engine: "engine"}
    for formula in formulas:
        views = tuple(ViewRef(names[param.view]) for param in formula.params if param.view is not None)
        parts.append(Call(formula.name, views, formula.function.returns_bool))
    whole = reduce(lambda left, right: Logic("and", (left, right)), parts)
    module = formula_module(tuple(formulas))
    functions = {**module.functions, "holds": Function("holds", params, (Return(whole),), returns_bool=True)}
    return Module(functions, {**module.views, request.__name__: request, engine.__name__: engine})


def _loop(module: Module) -> str:
    request_loads: list[str] = []
    engine_loads: list[str] = []
    arguments: list[str] = []
    params = module.functions["holds"].params
    rows = {param.name: 0 for param in params}
    for param, name in arguments_of(module, params):
        row, value = rows[param.name], f"%{param.name}.{name}"
        rows[param.name] += 1
        if param is params[0]:
            request_loads.append(f"  {value}.row = mul i64 %stride, {row}")
            request_loads.append(f"  {value}.index = add i64 {value}.row, %i")
            request_loads.append(f"  {value}.at = getelementptr i64, ptr %columns, i64 {value}.index")
            request_loads.append(f"  {value} = load i64, ptr {value}.at")
        else:
            engine_loads.append(f"  {value}.at = getelementptr i64, ptr %engine, i64 {row}")
            engine_loads.append(f"  {value} = load i64, ptr {value}.at")
        arguments.append(f"i64 {value}")
    loop = _ALL_HOLD.format(
        request_loads="\n".join(request_loads), engine_loads="\n".join(engine_loads), arguments=", ".join(arguments)
    )
    return "\n".join((emit_functions(module, "holds"), loop))
