"""cvc5 as a second opinion: it reads the SMT-LIB text of an obligation, sharing nothing with our encoder or with Z3."""

from collections.abc import Mapping
from typing import Any

import z3

from ..errors import AutopoiesisError
from .solving import Answer, Scope, assumptions_used, to_smtlib
from .verdict import ObligationResult

__all__ = ["DEFAULT_RESOURCES", "Disagreement", "agreed", "asked", "certified", "second_opinion"]

DEFAULT_RESOURCES = 300_000
"""cvc5 resource units a query may use: about a second here, and the same answer everywhere."""


class Disagreement(AutopoiesisError):
    """Two solvers disagree about one query: one of them has a bug. The policy does not run; please report it."""


def second_opinion(smtlib: str, resources: int = DEFAULT_RESOURCES) -> Answer:
    """Return cvc5's answer to an SMT-LIB 2 text with one `check-sat`."""
    return asked(smtlib, resources)[1]


def asked(smtlib: str, resources: int, options: Mapping[str, str] | None = None) -> tuple[Any, Answer]:
    """Return a cvc5 solver that was given an SMT-LIB 2 text with one `check-sat`, and its answer."""
    import cvc5

    solver = cvc5.Solver(cvc5.TermManager())
    for name, value in {**(options or {}), "rlimit": str(resources)}.items():
        solver.setOption(name, value)
    solver.setLogic("QF_NIA")
    parser = cvc5.InputParser(solver)
    parser.setStringInput(cvc5.InputLanguage.SMT_LIB_2_6, smtlib, "obligation")
    symbols = parser.getSymbolManager()
    answer = ""
    while not (command := parser.nextCommand()).isNull():
        answer = command.invoke(solver, symbols).strip() or answer
    if answer == "sat":
        return solver, "sat"
    return solver, "unsat" if answer == "unsat" else "unknown"


def agreed(name: str, smtlib: str) -> tuple[str, ...]:
    """Return the solvers that refute the text of an obligation which Z3 has proved.

    Raises:
        Disagreement: cvc5 finds a model where Z3 found none.
    """
    answer = second_opinion(smtlib)
    if answer == "sat":
        raise Disagreement(f"`{name}`: Z3 proves it and cvc5 refutes it; please report this policy")
    return ("z3", "cvc5") if answer == "unsat" else ("z3",)


def certified(result: ObligationResult, scope: Scope, violation: z3.BoolRef, rlimit: int) -> ObligationResult:
    """Return a proved obligation with its SMT-LIB text, the assumptions that it used, and cvc5's answer.

    Raises:
        Disagreement: cvc5 finds a model where Z3 found none.
    """
    violation = z3.simplify(violation)
    text = to_smtlib([*scope.constraints, violation])
    solvers = agreed(result.name, text)
    return result.model_copy(
        update={
            "smtlib": text,
            "assumptions_used": assumptions_used(scope, violation, rlimit),
            "solvers": solvers,
        }
    )
