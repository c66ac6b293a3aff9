"""The part of SMT-LIB 2 that our encoder writes: read to terms, bounded, and printed again.

SMT-LIB is a command language: a text can write files, change options and run without end. A text from elsewhere is therefore
never handed to a solver. It is read here, and a solver gets what is printed of the terms. Only declarations of `Int` and `Bool`
constants, assertions over linear and non-linear integer arithmetic, and one `check-sat` at the end are accepted.

    query = read(text)
    query.text           # canonical: equal for texts that state the same terms in the same order
    query.solver_text()  # the same with names of ours, for a solver
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal

from ..errors import AutopoiesisError
from ..protocol.text import hidden_character, printable

__all__ = ["MAX_CHARACTERS", "Query", "SmtLibError", "read"]

MAX_CHARACTERS: Final = 2_097_152
MAX_HEIGHT: Final = 10_000
"""Longest path from an assertion down to a leaf, once every `let` is resolved."""
MAX_DEPTH: Final = 2 * MAX_HEIGHT + 16
"""Parentheses open at once; the canonical text of any accepted query needs no more."""
MAX_TERMS: Final = 250_000
"""Different terms of a query."""
MAX_SYMBOLS: Final = 10_000
MAX_SYMBOL_LENGTH: Final = 512
MAX_DIGITS: Final = 4_000

SHARED: Final = "$let"
"""Prefix of the names of shared terms in a canonical text."""

Sort = Literal["Int", "Bool"]
SORTS: Final[dict[str, Sort]] = {"Int": "Int", "Bool": "Bool"}

_TOKEN: Final = re.compile(
    r"(?P<space>[ \n]+|;[^\n]*)"
    r"|(?P<open>\()"
    r"|(?P<close>\))"
    r"|(?P<quoted>\|[^|\\]*\|)"
    r"|(?P<number>[0-9]+(?![A-Za-z0-9~!@$%^&*_+=<>.?/-]))"
    r"|(?P<symbol>[A-Za-z~!@$%^&*_+=<>.?/-][A-Za-z0-9~!@$%^&*_+=<>.?/-]*)"
    r"|(?P<keyword>:[A-Za-z0-9~!@$%^&*_+=<>.?/-]+)"
)
_SIMPLE: Final = re.compile(r"[A-Za-z~!@$%^&*_+=<>.?/-][A-Za-z0-9~!@$%^&*_+=<>.?/-]*")
_RESERVED: Final = frozenset({"let", "forall", "exists", "match", "par", "as", "_", "!", "true", "false"})


class SmtLibError(AutopoiesisError):
    """A text is not a query in the part of SMT-LIB that our encoder writes, or it is too large."""

    def __init__(self, line: int, column: int, problem: str) -> None:
        super().__init__(f"SMT-LIB text, line {line}, column {column}: {problem}")
        self.line, self.column = line, column


@dataclass(frozen=True)
class _Operator:
    """The number of arguments an operator takes, their sort (None: any, all the same), and the sort of its result."""

    least: int
    most: int | None
    takes: Sort | None
    gives: Sort


OPERATORS: Final[dict[str, _Operator]] = {
    **dict.fromkeys(("and", "or"), _Operator(1, None, "Bool", "Bool")),
    **dict.fromkeys(("=>", "xor"), _Operator(2, None, "Bool", "Bool")),
    "not": _Operator(1, 1, "Bool", "Bool"),
    **dict.fromkeys(("=", "distinct"), _Operator(2, None, None, "Bool")),
    **dict.fromkeys(("<", "<=", ">", ">="), _Operator(2, None, "Int", "Bool")),
    **dict.fromkeys(("+", "*"), _Operator(2, None, "Int", "Int")),
    "-": _Operator(1, None, "Int", "Int"),
    **dict.fromkeys(("div", "mod"), _Operator(2, 2, "Int", "Int")),
}


@dataclass(frozen=True)
class _Term:
    """A term by its operator, or a leaf by its text; arguments are indexes into the query's terms."""

    head: str
    arguments: tuple[int, ...] = ()
    declared: bool = False
    """True if `head` is a declared symbol."""


@dataclass(frozen=True)
class Query:
    """Declared symbols, and assertions over them."""

    symbols: Mapping[str, Sort]
    assertions: tuple[int, ...]
    terms: Sequence[_Term] = field(repr=False)

    @cached_property
    def text(self) -> str:
        """The canonical text: shared terms bound by `let` and numbered in the order of their use."""
        return self._printed({name: _quoted(name) for name in self.symbols})

    def solver_text(self) -> str:
        """Return the canonical text with names of ours, so that no foreign name reaches a solver."""
        return self._printed({name: f"x{index}" for index, name in enumerate(self.symbols, 1)})

    def _printed(self, names: Mapping[str, str]) -> str:
        out = [f"(declare-fun {names[name]} () {sort})\n" for name, sort in self.symbols.items()]
        for root in self.assertions:
            out.append("(assert ")
            _print_term(self.terms, root, names, out.append)
            out.append(")\n")
        out.append("(check-sat)\n")
        return "".join(out)


def read(text: str) -> Query:
    """Return the query that a text states.

    Raises:
        SmtLibError: the text is not one that our encoder could have written, or it is too large.
    """
    query = _Reader(text).query()
    if len(query.text) > MAX_CHARACTERS:
        raise SmtLibError(1, 1, f"its canonical text has more than {MAX_CHARACTERS:,} characters")
    return query


@dataclass
class _Application:
    head: str
    arguments: list[int] = field(default_factory=list)


@dataclass
class _Let:
    """A `let` being read: `name` is the one whose term is being read, None when that is the body."""

    name: str | None
    bound: dict[str, int] = field(default_factory=dict)


class _Reader:
    """Reads a text without recursion: its depth costs memory of ours, never the stack."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        """Where the token that was read last begins."""
        if len(text) > MAX_CHARACTERS:
            raise self._error(f"it has {len(text):,} characters; at most {MAX_CHARACTERS:,} are accepted")
        hidden = hidden_character(text)
        if hidden is not None:
            self._at = hidden
            raise self._error("a character that cannot be seen")
        self._depth = 0
        self._tokens = self._scan()
        self._symbols: dict[str, int] = {}
        self._sorts_of_symbols: dict[str, Sort] = {}
        self._bound: dict[str, int] = {}
        self._terms: list[_Term] = []
        self._sorts: list[Sort] = []
        self._heights: list[int] = []
        self._known: dict[_Term, int] = {}

    def query(self) -> Query:
        """Return what the whole text states."""
        assertions: list[int] = []
        while True:
            self._expect("(", "a command")
            command = self._next("a command")
            if command in ("declare-fun", "declare-const"):
                self._declare(takes_none=command == "declare-fun")
            elif command == "assert":
                root = self._term()
                if self._sorts[root] != "Bool":
                    raise self._error("an assertion that is not a truth value")
                assertions.append(root)
            elif command == "set-info":
                self._expect(":status", "`:status unknown`")
                self._expect("unknown", "`:status unknown`")
            elif command == "check-sat":
                self._expect(")", "`)`")
                break
            else:
                raise self._error("not one of declare-fun, declare-const, assert and check-sat")
            self._expect(")", "`)`")
        for _ in self._tokens:
            raise self._error("something after `(check-sat)`")
        return Query(self._sorts_of_symbols, tuple(assertions), self._terms)

    def _declare(self, takes_none: bool) -> None:
        name = self._name()
        if name.startswith(SHARED):
            raise self._error(f"names that begin with `{SHARED}` are kept for shared terms")
        if takes_none:
            self._expect("(", "`()`: only constants are declared")
            self._expect(")", "`()`: only constants are declared")
        sort = SORTS.get(self._next("a sort"))
        if sort is None:
            raise self._error("a sort other than Int and Bool")
        if len(self._symbols) == MAX_SYMBOLS:
            raise self._error(f"more than {MAX_SYMBOLS:,} symbols")
        self._symbols[name] = self._add(_Term(name, declared=True), sort, 0)
        self._sorts_of_symbols[name] = sort

    def _name(self, beside: Mapping[str, int] | None = None) -> str:
        """Return a name that may be given a meaning: no reserved word, no operator, and new, also among those `beside` it."""
        token = self._next("a name")
        name = _symbol(token)
        if name is None or not name or len(name) > MAX_SYMBOL_LENGTH:
            raise self._error("not a name")
        if name in _RESERVED or name in OPERATORS or name == "ite":
            raise self._error("the name has a meaning already")
        if name in self._symbols or name in self._bound or (beside is not None and name in beside):
            raise self._error("the name is declared or bound twice")
        return name

    def _term(self) -> int:
        stack: list[_Application | _Let] = []
        while True:
            value = self._begun(stack)
            while value is not None:
                if not stack:
                    return value
                value = self._given(stack, value)

    def _begun(self, stack: list[_Application | _Let]) -> int | None:
        """Read the next token of a term; return its value if that is the whole term."""
        token = self._next("a term")
        if token == ")":
            if not stack or not isinstance(top := stack[-1], _Application):
                raise self._error("a term is expected")
            stack.pop()
            return self._applied(top)
        if token != "(":
            return self._leaf(token)
        head = self._next("an operator")
        if head == "let":
            self._expect("(", "`(`")
            self._expect("(", "`(`")
            stack.append(_Let(self._name()))
        elif head in OPERATORS or head == "ite":
            stack.append(_Application(head))
        else:
            raise self._error("not an operator of integer arithmetic or logic")
        return None

    def _given(self, stack: list[_Application | _Let], value: int) -> int | None:
        """Hand a value to the term that it is part of; return that term's value if it is complete."""
        top = stack[-1]
        if isinstance(top, _Application):
            top.arguments.append(value)
            return None
        if top.name is None:
            self._expect(")", "`)`")
            for name in top.bound:
                del self._bound[name]
            stack.pop()
            return value
        top.bound[top.name] = value
        self._expect(")", "`)`")
        token = self._next("`)` or another binding")
        if token == "(":
            top.name = self._name(top.bound)
        elif token == ")":
            top.name = None
            self._bound.update(top.bound)
        else:
            raise self._error("`)` or another binding is expected")
        return None

    def _leaf(self, token: str) -> int:
        if token in ("true", "false"):
            return self._add(_Term(token), "Bool", 0)
        if token.isdigit():
            if len(token) > MAX_DIGITS or (token[0] == "0" and len(token) > 1):
                raise self._error(f"not a numeral of at most {MAX_DIGITS:,} digits without leading zeros")
            return self._add(_Term(token), "Int", 0)
        name = _symbol(token)
        if name is not None:
            found = self._bound.get(name, self._symbols.get(name))
            if found is not None:
                return found
        raise self._error("neither declared nor bound")

    def _applied(self, application: _Application) -> int:
        arguments = tuple(application.arguments)
        sorts = [self._sorts[item] for item in arguments]
        if application.head == "ite":
            if len(arguments) != 3 or sorts[0] != "Bool" or sorts[1] != sorts[2]:
                raise self._error("`ite` takes a truth value and two terms of one sort")
            gives = sorts[1]
        else:
            operator = OPERATORS[application.head]
            wanted = operator.takes or (sorts[0] if sorts else "Int")
            fits = operator.least <= len(arguments) <= (operator.most or len(arguments))
            if not fits or any(sort != wanted for sort in sorts):
                raise self._error(f"the arguments of `{application.head}` have the wrong number or sort")
            gives = operator.gives
        height = 1 + max(self._heights[item] for item in arguments)
        return self._add(_Term(application.head, arguments), gives, height)

    def _add(self, term: _Term, sort: Sort, height: int) -> int:
        index = self._known.get(term)
        if index is None:
            if len(self._terms) == MAX_TERMS:
                raise self._error(f"more than {MAX_TERMS:,} terms")
            if height > MAX_HEIGHT:
                raise self._error(f"terms nested deeper than {MAX_HEIGHT:,}")
            index = self._known[term] = len(self._terms)
            self._terms.append(term)
            self._sorts.append(sort)
            self._heights.append(height)
        return index

    def _expect(self, wanted: str, said: str) -> None:
        if self._next(said) != wanted:
            raise self._error(f"{said} is expected")

    def _next(self, said: str) -> str:
        for token in self._tokens:
            return token
        self._at = len(self._text)
        raise self._error(f"the text ends where {said} is expected")

    def _scan(self) -> Iterator[str]:
        text, at, end = self._text, 0, len(self._text)
        while at < end:
            found = _TOKEN.match(text, at)
            self._at = at
            if found is None:
                raise self._error("no token of this language begins here")
            at = found.end()
            kind = found.lastgroup
            if kind == "space":
                continue
            if kind == "open":
                self._depth += 1
                if self._depth > MAX_DEPTH:
                    raise self._error(f"more than {MAX_DEPTH:,} parentheses open at once")
            elif kind == "close":
                self._depth -= 1
            yield found[0]

    def _error(self, problem: str) -> SmtLibError:
        line = self._text.count("\n", 0, self._at) + 1
        column = self._at - self._text.rfind("\n", 0, self._at)
        found = _TOKEN.match(self._text, self._at)
        token = found[0] if found is not None else self._text[self._at : self._at + 1]
        shown = printable(token[:40]) + ("..." if len(token) > 40 else "")
        return SmtLibError(line, column, f"`{shown}`: {problem}" if shown else problem)


def _symbol(token: str) -> str | None:
    """Return the symbol that a token names; `|a|` and `a` are the same one."""
    if token.startswith("|"):
        return token[1:-1]
    return token if _SIMPLE.fullmatch(token) else None


def _quoted(name: str) -> str:
    return name if _SIMPLE.fullmatch(name) else f"|{name}|"


def _print_term(terms: Sequence[_Term], root: int, names: Mapping[str, str], emit: Callable[[str], None]) -> None:
    """Print a term: every term that is used more than once is bound by `let`, beside others that need the same ones."""
    order = _from_the_leaves(terms, root)
    uses = dict.fromkeys(order, 0)
    for index in order:
        for argument in terms[index].arguments:
            uses[argument] += 1
    levels: dict[int, int] = {}
    groups: list[list[int]] = []
    shared: dict[int, str] = {}
    for index in order:
        below = terms[index].arguments
        levels[index] = level = max((levels[item] + (item in shared) for item in below), default=0)
        if below and uses[index] > 1:
            shared[index] = ""
            groups.extend([] for _ in range(level + 1 - len(groups)))
            groups[level].append(index)
    for number, index in enumerate((index for group in groups for index in group), 1):
        shared[index] = f"{SHARED}{number}"

    def plain(start: int) -> None:
        stack: list[int | str] = [start]
        while stack:
            item = stack.pop()
            if isinstance(item, str):
                emit(item)
            elif item in shared and item != start:
                emit(shared[item])
            elif not (term := terms[item]).arguments:
                emit(names[term.head] if term.declared else term.head)
            else:
                emit(f"({term.head}")
                stack.append(")")
                for argument in reversed(term.arguments):
                    stack += (argument, " ")

    for group in groups:
        emit("(let (")
        for index in group:
            emit(f"({shared[index]} ")
            plain(index)
            emit(")")
        emit(")\n")
    plain(root)
    emit(")" * len(groups))


def _from_the_leaves(terms: Sequence[_Term], root: int) -> list[int]:
    """Return a term and all that it is made of, arguments first, from left to right."""
    order: list[int] = []
    seen: set[int] = set()
    stack = [root]
    while stack:
        index = stack.pop()
        if index < 0:
            order.append(~index)
        elif index not in seen:
            seen.add(index)
            stack.append(~index)
            stack.extend(reversed(terms[index].arguments))
    return order
