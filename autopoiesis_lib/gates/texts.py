"""Queries that were read from texts of unknown origin, put to Z3 and cvc5 in a child process."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

import z3

from ..sandbox import SOLVING, SandboxError, SandboxProblem, run_isolated
from .second_solver import DEFAULT_RESOURCES, second_opinion
from .solving import DEFAULT_RLIMIT, Answer, ask
from .verdict import Verdict

__all__ = ["TextAnswer", "solve_isolated"]

PATIENCE: Final = 4
"""A text may use this many times the resources of a query of ours: another build of a solver may take longer."""


@dataclass(frozen=True)
class TextAnswer:
    """The solvers' answers to one query, or why there are none."""

    z3: Answer = "unknown"
    cvc5: Answer = "unknown"
    problem: str = ""

    @property
    def agreed(self) -> tuple[str, ...]:
        """The solvers that refute the query."""
        return tuple(name for name, answer in (("z3", self.z3), ("cvc5", self.cvc5)) if answer == "unsat")

    @property
    def verdict(self) -> Verdict:
        """PROVED when a solver refutes the query and none finds a model."""
        if "sat" in (self.z3, self.cvc5):
            return Verdict.REFUTED
        return Verdict.PROVED if self.agreed else Verdict.UNKNOWN

    @property
    def detail(self) -> str:
        """The answers in words."""
        return self.problem or f"z3: {self.z3}, cvc5: {self.cvc5}"


def solve_isolated(texts: Sequence[str], seconds: float = SOLVING.seconds) -> tuple[TextAnswer, ...]:
    """Return the answers to texts that `smtlib.Query.solver_text` printed.

    All are solved in one child process; if that ends without an answer, each in one of its own, so that one text cannot keep
    the others from being answered.
    """
    end = time.monotonic() + seconds
    try:
        return _solved(texts, seconds / 2)
    except SandboxError as error:
        problem = str(error)
    answers: list[TextAnswer] = []
    for count, text in enumerate(texts):
        share = (end - time.monotonic()) / (len(texts) - count)
        try:
            if share <= 0 or len(texts) == 1:
                answers.append(TextAnswer(problem=problem))
            else:
                answers += _solved((text,), share)
        except SandboxError as error:
            answers.append(TextAnswer(problem=str(error)))
    return tuple(answers)


def _solved(texts: Sequence[str], seconds: float) -> tuple[TextAnswer, ...]:
    if not texts:
        return ()
    found = run_isolated(f"{__name__}:solve_here", json.dumps(texts).encode(), replace(SOLVING, seconds=seconds))
    try:
        answers = tuple(TextAnswer(**item) for item in json.loads(found))
    except (ValueError, TypeError):
        answers = ()
    if len(answers) != len(texts):
        raise SandboxError(SandboxProblem.MALFORMED, "the child process gave no answer for each text")
    return answers


def solve_here(texts: bytes) -> bytes:
    """Answer texts as a child process of `solve_isolated`."""
    return json.dumps([asdict(_solve(text)) for text in json.loads(texts)]).encode()


def _solve(text: str) -> TextAnswer:
    try:
        first = ask(list(z3.parse_smt2_string(text, ctx=z3.Context())), PATIENCE * DEFAULT_RLIMIT)[0]
    except z3.Z3Exception:  # out of memory
        first = "unknown"
    return TextAnswer(first, second_opinion(text, PATIENCE * DEFAULT_RESOURCES))
