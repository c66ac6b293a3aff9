"""Alethe proofs of obligations, read and checked step by step.

The checker shares nothing with our encoder or with a solver. Whoever trusts it, and the text of an obligation, need trust neither
of these: `check(text, proof)` returns only if the proof derives the empty clause from assertions of the text.

    checked = check(obligation.smtlib, proof)
    checked.steps, checked.rules

Proofs are hostile until they are checked. Text, nesting, steps, terms, numbers and work are bounded; nothing recurses into a
proof; a rule that is not known here is refused.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final

from ..protocol.text import printable
from .errors import ProofError, ProofProblem
from .rules import RULES, Clause, Step
from .smtlib import SmtLibError, read
from .terms import Sort, Terms

__all__ = ["MAX_PROOF_CHARACTERS", "Checked", "check"]

MAX_PROOF_CHARACTERS: Final = 4_194_304
MAX_STEPS: Final = 250_000
MAX_OPEN: Final = 20_000
"""Parentheses open at once."""
MAX_SUBPROOFS: Final = 1_000
"""Subproofs open at once."""
MAX_DIGITS: Final = 4_000

_TOKEN: Final = re.compile(
    r"(?P<space>[ \t\r\n]+|;[^\n]*)"
    r"|(?P<parenthesis>[()])"
    r"|(?P<string>\"[^\"]*\")"
    r"|(?P<quoted>\|[^|\\]*\|)"
    r"|(?P<atom>[A-Za-z0-9~!@$%^&*_+=<>.?/:-]+)"
)
_NUMBER: Final = re.compile(r"(-?)([0-9]+)(?:(/)([0-9]+)|\.([0-9]+))?")


@dataclass(frozen=True)
class Checked:
    """A proof that was checked."""

    steps: int
    rules: Mapping[str, int]
    """Number of uses by rule."""


def check(text: str, proof: str) -> Checked:
    """Check that a proof refutes an obligation's SMT-LIB text.

    Raises:
        ProofError: it does not, or it cannot be checked here.
    """
    terms = Terms()
    try:
        query = read(text)
    except SmtLibError as error:
        raise ProofError(ProofProblem.MALFORMED, f"the obligation's text is refused: {error}") from None
    assertions = terms.assertions(query)
    return _Proof(proof, terms, dict(query.symbols), assertions).checked()


@dataclass
class _Frame:
    """A subproof being read, or the whole proof: what may be used in it."""

    step: str | None
    """The step that ends a subproof."""
    clauses: dict[str, Clause] = field(default_factory=dict)
    assumed: dict[str, int] = field(default_factory=dict)
    last: Clause | None = None


class _Proof:
    """Reads commands one by one and checks each step as soon as it is read."""

    def __init__(self, text: str, terms: Terms, symbols: Mapping[str, Sort], assertions: frozenset[int]) -> None:
        if len(text) > MAX_PROOF_CHARACTERS:
            raise ProofError(ProofProblem.TOO_LARGE, f"the proof has more than {MAX_PROOF_CHARACTERS:,} characters")
        self._text, self._terms, self._assertions = text, terms, assertions
        self._symbols = {name: terms.symbol(name, sort) for name, sort in symbols.items()}
        self._named: dict[str, int] = {}
        self._tokens = self._scan()
        self._frames = [_Frame(None)]
        self._seen: set[str] = set()
        self._rules: Counter[str] = Counter()

    def checked(self) -> Checked:
        """Check the whole proof."""
        token = next(self._tokens, None)
        wrapped = False
        while token is not None and not (wrapped and token == ")"):
            if token != "(":
                raise self._malformed(token, "a command")
            command = self._next("a command")
            if command == "(" and not wrapped and not self._seen:
                wrapped = True
                command = self._next("a command")
            self._command(command)
            token = next(self._tokens, None)
        if wrapped and (token is None or next(self._tokens, None) is not None):
            raise ProofError(ProofProblem.MALFORMED, "the parenthesis around the proof does not close at its end")
        if len(self._frames) > 1:
            raise ProofError(
                ProofProblem.INCOMPLETE, f"the subproof {_shown(self._frames[-1].step or '')} does not end"
            )
        if self._frames[0].last != ():
            raise ProofError(ProofProblem.INCOMPLETE, "its last step is not the empty clause")
        return Checked(self._rules.total(), dict(self._rules))

    def _command(self, command: str) -> None:
        if len(self._seen) > MAX_STEPS:
            raise ProofError(ProofProblem.TOO_LARGE, f"more than {MAX_STEPS:,} steps")
        if command == "assume":
            self._assume()
        elif command == "step":
            self._step()
        elif command == "anchor":
            self._anchor()
        elif command == "define-fun":
            self._define()
        else:
            raise self._malformed(command, "assume, step, anchor or define-fun")

    def _assume(self) -> None:
        name = self._new_id()
        term = self._term()
        self._expect(")")
        frame = self._frames[-1]
        if self._terms.sorts[term] != "Bool":
            raise ProofError(ProofProblem.MALFORMED, f"{_shown(name)} assumes a term that is no truth value")
        if frame.step is None and term not in self._assertions:
            raise ProofError(ProofProblem.ASSUMPTION, f"{_shown(name)} is no assertion of the obligation's text")
        frame.clauses[name] = (term,)
        frame.assumed[name] = term

    def _anchor(self) -> None:
        self._expect(":step")
        name = self._name()
        self._expect(")")
        if len(self._frames) > MAX_SUBPROOFS:
            raise ProofError(ProofProblem.TOO_LARGE, f"more than {MAX_SUBPROOFS:,} subproofs open at once")
        self._frames.append(_Frame(name))

    def _define(self) -> None:
        """Read a name for a term; it stands for the term from here on."""
        name = self._name()
        self._expect("(")
        self._expect(")")
        sort = self._next("a sort")
        term = self._term()
        self._expect(")")
        if self._terms.sorts[term] != sort:
            raise ProofError(ProofProblem.MALFORMED, f"the definition of {_shown(name)} has another sort")
        self._bind(name, term)

    def _step(self) -> None:
        name = self._new_id()
        self._expect("(")
        self._expect("cl")
        clause = tuple(self._terms_until_close())
        if any(self._terms.sorts[item] != "Bool" for item in clause):
            raise ProofError(ProofProblem.MALFORMED, f"a literal of {_shown(name)} is no truth value")
        self._expect(":rule")
        rule = self._next("a rule")
        premises: list[str] = []
        discharged: list[str] = []
        first: str | None = None
        arguments: list[int] = []
        given: set[str] = set()
        while (token := self._next("`)`")) != ")":
            if token in given:
                raise self._malformed(token, "each attribute once")
            given.add(token)
            self._expect("(")
            if token in (":premises", ":discharge"):
                (premises if token == ":premises" else discharged).extend(iter(lambda: self._next("a name"), ")"))
            elif token == ":args":
                first, arguments = self._arguments()
            else:
                raise self._malformed(token, "an attribute of a step")
        self._terms.spend(1 + len(clause) + len(premises) + len(arguments))
        self._rules[rule] += 1
        if self._frames[-1].step == name:
            if rule != "subproof":
                raise ProofError(ProofProblem.UNSUPPORTED, f"{_shown(name)} ends a subproof by the rule {_shown(rule)}")
            self._end_of_subproof(name, clause, discharged, bool(premises or arguments or first))
        else:
            clauses = tuple(map(self._clause, premises))
            self._terms.spend(sum(map(len, clauses)))
            self._follows(name, rule, Step(self._terms, clause, clauses, tuple(arguments), first))
            if discharged:
                raise ProofError(ProofProblem.WRONG, f"{_shown(name)} discharges assumptions and ends no subproof")
        self._frames[-1].clauses[name] = self._frames[-1].last = clause

    def _follows(self, name: str, rule: str, step: Step) -> None:
        accepts = RULES.get(rule)
        if accepts is None:
            raise ProofError(ProofProblem.UNSUPPORTED, f"{_shown(name)}: the rule {_shown(rule)} is not checked here")
        try:
            follows = accepts(step)
        except ProofError as error:
            raise ProofError(error.problem, f"{_shown(name)}, by the rule {_shown(rule)}: {error}") from None
        if not follows:
            said = f" {_shown(step.name)}" if step.name else ""
            raise ProofError(ProofProblem.WRONG, f"{_shown(name)} does not follow by the rule {_shown(rule)}{said}")

    def _end_of_subproof(self, name: str, clause: Clause, discharged: list[str], more: bool) -> None:
        """Accept that an assumption is false or the last clause of the subproof holds, if every assumption is named."""
        frame = self._frames.pop()
        concluded = frame.last if frame.last != () else (self._terms.false,)
        expected = {self._terms.negation(item) for item in frame.assumed.values()} | set(concluded or ())
        if more or frame.last is None or set(discharged) != set(frame.assumed) or set(clause) != expected:
            raise ProofError(ProofProblem.WRONG, f"{_shown(name)} is not what its subproof shows")

    def _clause(self, name: str) -> Clause:
        for frame in reversed(self._frames):
            self._terms.spend(1)
            if name in frame.clauses:
                return frame.clauses[name]
        raise ProofError(ProofProblem.WRONG, f"{_shown(name)} is no step that may be used here")

    def _arguments(self) -> tuple[str | None, list[int]]:
        """Read the arguments of a step; the first may be a string."""
        token = self._next("an argument")
        if token.startswith('"'):
            return token[1:-1], self._terms_until_close()
        return None, self._terms_until_close(token)

    def _terms_until_close(self, token: str | None = None) -> list[int]:
        found: list[int] = []
        token = token or self._next("a term")
        while token != ")":
            found.append(self._term(token))
            token = self._next("a term or `)`")
        return found

    def _term(self, token: str | None = None) -> int:
        """Read a term; named terms are shared, so that its size in the text is what it costs."""
        stack: list[tuple[str, list[int]]] = []
        while True:
            token = token or self._next("a term")
            if token == "(":
                head = self._next("an operator")
                if head in "()":
                    raise self._malformed(head, "an operator")
                stack.append((head, []))
                token = None
                continue
            if token == ")":
                if not stack:
                    raise self._malformed(token, "a term")
                head, arguments = stack.pop()
                if head == "!" or not (arguments or head == "rare-list"):
                    raise self._malformed(token, "a term")
                value = self._terms.apply(head, arguments)
            else:
                value = self._leaf(token)
            while stack and stack[-1][0] == "!":
                stack.pop()
                self._expect(":named")
                self._bind(self._name(), value)
                self._expect(")")
            if not stack:
                return value
            stack[-1][1].append(value)
            token = None

    def _leaf(self, token: str) -> int:
        if token in ("true", "false"):
            return self._terms.true if token == "true" else self._terms.false
        name = token[1:-1] if token.startswith("|") else token
        found = self._named.get(name, self._symbols.get(name))
        if found is not None:
            return found
        number = _NUMBER.fullmatch(token)
        if number is None:
            raise self._malformed(token, "a term")
        if len(token) > MAX_DIGITS:
            raise ProofError(ProofProblem.TOO_LARGE, f"a number of more than {MAX_DIGITS:,} digits")
        sign, whole, _, divisor, decimals = number.groups()
        below = int(divisor) if divisor else 10 ** len(decimals or "")
        if not below:
            raise self._malformed(token, "a number")
        value = Fraction(int(whole + (decimals or "")), below) * (-1 if sign else 1)
        return self._terms.number(value, "Real" if divisor or decimals else "Int")

    def _bind(self, name: str, term: int) -> None:
        if name in self._symbols or _NUMBER.fullmatch(name) or self._named.setdefault(name, term) != term:
            raise ProofError(ProofProblem.MALFORMED, f"the name {_shown(name)} has a meaning already")

    def _new_id(self) -> str:
        name = self._name()
        if name in self._seen:
            raise ProofError(ProofProblem.MALFORMED, f"two steps are called {_shown(name)}")
        self._seen.add(name)
        return name

    def _name(self) -> str:
        token = self._next("a name")
        if token[0] in '()":' or token in ("true", "false"):
            raise self._malformed(token, "a name")
        return token[1:-1] if token.startswith("|") else token

    def _expect(self, wanted: str) -> None:
        token = self._next(f"`{wanted}`")
        if token != wanted:
            raise self._malformed(token, f"`{wanted}`")

    def _next(self, said: str) -> str:
        for token in self._tokens:
            return token
        raise ProofError(ProofProblem.MALFORMED, f"the proof ends where {said} is expected")

    def _scan(self) -> Iterator[str]:
        text, at, depth = self._text, 0, 0
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                raise self._malformed(text[at : at + 1], "a token of Alethe")
            at = found.end()
            token = found[0]
            if token == "(":
                depth += 1
                if depth > MAX_OPEN:
                    raise ProofError(ProofProblem.TOO_LARGE, f"more than {MAX_OPEN:,} parentheses are open at once")
            elif token == ")":
                depth -= 1
            if found.lastgroup != "space":
                yield token

    @staticmethod
    def _malformed(token: str, wanted: str) -> ProofError:
        return ProofError(ProofProblem.MALFORMED, f"{_shown(token)} where {wanted} is expected")


def _shown(text: str) -> str:
    return f"`{printable(text[:60])}`" + ("..." if len(text) > 60 else "")
