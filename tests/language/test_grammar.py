"""Everything outside the language is refused by name: the verdict, the line, and what to write instead."""

# ruff: noqa: E501  (tables of policy texts)

import resource
import time

import pytest

from autopoiesis_lib import Policy
from autopoiesis_lib.gates.chain import check
from autopoiesis_lib.gates.verdict import Verdict
from autopoiesis_lib.language import MAX_SOURCE_BYTES, LanguageError, parse
from tests.language.programs import Wide

IMPORT = "from tests.language.programs import Crate, Kind, Yard\n"
HEAD = IMPORT + "def score(c: Crate, y: Yard) -> int:\n"
CONTRACT = Wide()


def body(*lines: str) -> str:
    """A policy whose decision has these lines, the first of them on line 3."""
    return HEAD + "".join(f"    {line}\n" for line in lines)


def refusal(text: str) -> LanguageError:
    with pytest.raises(LanguageError) as caught:
        parse(text, CONTRACT.interface)
    return caught.value


UNSUPPORTED_STATEMENTS = {
    "while": (["while True:", "    pass", "return 0"], 3, "range"),
    "try": (["x = 1", "try:", "    x = 2", "except Exception:", "    pass", "return x"], 4, "try"),
    "with": (["with c:", "    pass", "return 0"], 3, "with"),
    "raise": (["raise ValueError", "return 0"], 3, "raise"),
    "assert": (["assert c.near > 0", "return 0"], 3, "assumption"),
    "global": (["global z", "return 0"], 3, "global"),
    "nonlocal": (["nonlocal z", "return 0"], 3, "nonlocal"),
    "del": (["x = 1", "del x", "return 0"], 4, "del"),
    "inner function": (["def f() -> int:", "    return 1", "return 0"], 3, "top level"),
    "async function": (["async def f() -> int:", "    return 1", "return 0"], 3, "top level"),
    "class": (["class A:", "    pass", "return 0"], 3, "helper"),
    "import": (["import os", "return 0"], 3, "import"),
    "import from": (["from os import path", "return 0"], 3, "import"),
    "break": (["for i in range(3):", "    break", "return 0"], 4, "break"),
    "continue": (["for i in range(3):", "    continue", "return 0"], 4, "continue"),
    "match": (["match c.near:", "    case 1:", "        return 1", "return 0"], 3, "match"),
    "loop else": (["for i in range(3):", "    pass", "else:", "    pass", "return 0"], 3, "else"),
    "loop over view": (["for i in c:", "    pass", "return 0"], 3, "range"),
    "loop of variable bound": (["for i in range(c.near):", "    pass", "return 0"], 3, "constant"),
    "loop over pair": (["for i, j in range(3):", "    pass", "return 0"], 3, "one loop variable"),
    "a local CPython does not name so": (["__debug__ = 1", "return 0"], 3, "shadows"),
    "loops too deep for CPython": (
        [f"{' ' * level}for i{level} in range(1):" for level in range(21)] + [" " * 21 + "pass", "return 0"],
        23,
        "20 loops",
    ),
    "too many turns": (["for i in range(4097):", "    pass", "return 0"], 3, "4,096"),
    "attribute write": (["c.near = 1", "return 0"], 3, "frozen"),
    "attribute update": (["c.near += 1", "return 0"], 3, "frozen"),
    "unpacking": (["x, y2 = 1, 2", "return 0"], 3, "one name"),
    "chained assignment": (["x = z = 1", "return 0"], 3, "one name"),
    "annotation only": (["x: int", "return 0"], 3, "assign"),
    "dropped value": (["c.near + 1", "return 0"], 3, "dropped"),
    "call for effect": (["print(1)", "return 0"], 3, "print"),
    "docstring in the middle": (["x = 1", "'text'", "return 0"], 4, "string"),
    "view assigned": (["c = 1", "return 0"], 3, "view"),
    "builtin shadowed": (["max = 1", "return 0"], 3, "shadows"),
    "enum shadowed": (["Kind = 1", "return 0"], 3, "shadows"),
    "function shadowed": (["score = 1", "return 0"], 3, "shadows"),
    "read before assignment": (["if y.open:", "    x = 1", "return x"], 5, "every path"),
    "read after an empty loop": (["for i in range(0):", "    x = 1", "return x"], 5, "every path"),
    "loop variable after an empty loop": (["for i in range(0):", "    pass", "return i"], 5, "every path"),
    "float local": (["x: float = 1", "return 0"], 3, "float"),
}

UNSUPPORTED_EXPRESSIONS = {
    "float": ("1.5", "integers"),
    "complex": ("2j", "integers"),
    "division": ("c.near / 2", "//"),
    "float call": ("int(float(c.near))", "scale"),
    "lambda": ("(lambda: 1)()", "method"),
    "lambda value": ("max(1, lambda: 1)", "helper"),
    "list": ("[1][0]", "view fields"),
    "comprehension": ("sum([i for i in range(3)])", "sum"),
    "list literal": ("max([1, 2], 1)", "list"),
    "one-argument max": ("max(c.near)", "two"),
    "dict": ("min({}, 1)", "dict"),
    "f-string": ("min(f'{c.near}', 1)", "string"),
    "walrus": ("(x := 1)", "assign"),
    "star": ("max(*c)", "starred"),
    "keyword": ("max(1, 2, key=abs)", "keyword"),
    "bit and": ("c.near & 1", "bit"),
    "bit shift": ("c.near << 1", "bit"),
    "invert": ("~c.near", "~"),
    "matrix": ("c.near @ 2", "bit or matrix"),
    "in": ("1 if c.near in (1, 2) else 0", "in"),
    "is": ("1 if c.near is c.far else 0", "is"),
    "variable exponent": ("2 ** c.near", "exponent"),
    "negative exponent": ("2 ** -1", "exponent"),
    "huge exponent": ("1 ** 65", "exponent"),
    "huge constant": ("9223372036854775808", "int64"),
    "low constant": ("-9223372036854775809", "int64"),
    "string": ("'x'", ""),
    "view as value": ("max(c, 1)", "read a field"),
    "view class": ("max(Crate, 1)", "call it"),
    "import call": ("__import__('os')", "call only"),
    "eval": ("eval('1')", "call only"),
    "builtin value": ("max(len, 1)", "use only"),
    "method": ("c.near.bit_length()", "method"),
    "deep attribute": ("c.near.real", "fields of views"),
    "dunder": ("c.__class__", ""),
    "range value": ("max(range(3), 1)", "for"),
    "helper as value": ("max(score, 1)", "call it"),
    "await": ("await c", "plain function"),
    "yield": ("(yield 1)", "return"),
}


@pytest.mark.parametrize("name", UNSUPPORTED_STATEMENTS)
def test_a_statement_the_language_leaves_out_is_named_with_its_line(name: str) -> None:
    lines, line, says = UNSUPPORTED_STATEMENTS[name]
    error = refusal(body(*lines))
    assert (error.verdict, error.line) == ("UNSUPPORTED", line), error
    assert says in str(error) and str(error).startswith(f"line {line}: ")


@pytest.mark.parametrize("name", UNSUPPORTED_EXPRESSIONS)
def test_an_expression_the_language_leaves_out_is_named_with_its_line(name: str) -> None:
    expression, says = UNSUPPORTED_EXPRESSIONS[name]
    error = refusal(body("x = 0", f"return {expression}"))
    assert error.line == 4 and says in str(error), error
    assert error.verdict == ("INVALID" if name in ("string", "dunder") else "UNSUPPORTED"), error


INVALID = {
    "empty": ("", 1, "empty"),
    "only a comment": ("# nothing\n", 1, "empty"),
    "syntax": (body("return 1 +"), 3, "not Python"),
    "tabs and spaces": (HEAD + "    if y.open:\n\treturn 1\n    return 0\n", 4, "not Python"),
    "null byte": (body("return 1\0"), 3, r"\x00 (U+0000)"),
    "no decision": (IMPORT + "def other(c: Crate) -> int:\n    return 1\n", 1, "no function `score`"),
    "wrong count": (IMPORT + "def score(c: Crate) -> int:\n    return 1\n", 2, "2; write"),
    "wrong view": (IMPORT + "def score(c: Yard, y: Yard) -> int:\n    return 1\n", 2, "expected Crate"),
    "no annotation": (IMPORT + "def score(c, y: Yard) -> int:\n    return 1\n", 2, "no type"),
    "not imported": ("def score(c: Crate, y: Yard) -> int:\n    return 1\n", 1, "not imported"),
    "no return type": (IMPORT + "def score(c: Crate, y: Yard):\n    return 1\n", 2, "no return type"),
    "bool decision": (IMPORT + "def score(c: Crate, y: Yard) -> bool:\n    return True\n", 2, "write `-> int`"),
    "default in a decision": (IMPORT + "def score(c: Crate, y: Yard = 1) -> int:\n    return 1\n", 2, "exactly"),
    "may not return": (body("if y.open:", "    return 1"), 2, "every path"),
    "returns only in a loop": (body("for i in range(3):", "    return 1"), 2, "every path"),
    "returns nothing": (body("return"), 3, "nothing"),
    "returns None": (body("return None"), 3, "NoneType"),
    "returns a tuple": (body("return 1, 2"), 3, "tuple"),
    "unknown name": (body("return z"), 3, "not defined"),
    "unknown function": (body("return f(1)"), 3, "not defined"),
    "field of an unknown name": (body("return crate.near"), 3, "`crate` is not defined; read fields of `c` or `y`"),
    "unknown field": (body("return c.size"), 3, "it has near, far"),
    "unknown member": (body("return Kind.NONE"), 3, "it has LOW"),
    "int for bool": (body("b = True", "b = 2", "return 0"), 4, "two names"),
    "declared bool": (body("b: bool = 1", "return 0"), 3, "declared bool"),
    "zero step": (body("for i in range(0, 3, 0):", "    pass", "return 0"), 3, "step"),
    "too many for abs": (body("return abs(1, 2)"), 3, "one value"),
    "none as a number": (body("return 1 + None"), 3, "number"),
    "ellipsis": (body("return 1 + ..."), 3, "number"),
    "constant overflows": (IMPORT + "A = 9223372036854775807 + 1\ndef score(c: Crate, y: Yard) -> int:\n    return A\n", 2, "int64"),
    "constant divides by zero": (IMPORT + "A = 1 // 0\ndef score(c: Crate, y: Yard) -> int:\n    return A\n", 2, "zero"),
    "helper arity": (IMPORT + "def f(k: int) -> int:\n    return k\ndef score(c: Crate, y: Yard) -> int:\n    return f()\n", 5, "takes 1"),
    "helper view": (IMPORT + "def f(k: Crate) -> int:\n    return 1\ndef score(c: Crate, y: Yard) -> int:\n    return f(y)\n", 5, "needs a Crate"),
    "helper bool": (IMPORT + "def f(k: bool) -> int:\n    return 1\ndef score(c: Crate, y: Yard) -> int:\n    return f(2)\n", 5, "needs a bool"),
    "two parameters of one name": (IMPORT + "def f(k: int, k: int) -> int:\n    return k\ndef score(c: Crate, y: Yard) -> int:\n    return 1\n", 2, "two parameters `k`"),
    "bool helper returns int": (IMPORT + "def f() -> bool:\n    return 1\ndef score(c: Crate, y: Yard) -> int:\n    return 1\n", 3, "compare it"),
}  # fmt: skip


@pytest.mark.parametrize("name", INVALID)
def test_a_text_that_is_no_policy_is_invalid_with_its_line(name: str) -> None:
    text, line, says = INVALID[name]
    error = refusal(text)
    assert (error.verdict, error.line) == ("INVALID", line), error
    assert says in str(error), error


TOP_LEVEL = {
    "import os": ("import os\n", "import"),
    "other module": ("from os import path\n", "import nothing but"),
    "relative": ("from . import Crate\n", "import nothing but"),
    "star": ("from tests.language.programs import *\n", "import"),
    "alias": ("from tests.language.programs import Crate as C\n", "own name"),
    "not a view": ("from tests.language.programs import program\n", "import"),
    "class": ("class A:\n    pass\n", "class"),
    "loop": ("for i in range(3):\n    pass\n", "loop"),
    "condition": ("if True:\n    pass\n", "if"),
    "call": ("print(1)\n", "expression"),
    "string constant": ("A = 'x'\n", "string"),
    "float constant": ("A = 1.5\n", "float"),
    "tuple": ("A, B = 1, 2\n", "top level"),
    "bound twice": ("A = 1\nA = 2\n", "twice"),
    "shadows a builtin": ("max = 1\n", "twice"),
    "decorator": ("@staticmethod\ndef f() -> int:\n    return 1\n", "decorator"),
    "defined twice": ("def f() -> int:\n    return 1\ndef f() -> int:\n    return 2\n", "twice"),
    "async": ("async def f() -> int:\n    return 1\n", "async"),
    "default": ("def f(k: int = 1) -> int:\n    return 1\n", "default"),
    "variadic": ("def f(*k: int) -> int:\n    return 1\n", "positional"),
    "float parameter": ("def f(k: float) -> int:\n    return 1\n", "float"),
    "float result": ("def f() -> float:\n    return 1\n", "float"),
    "recursion": ("def f() -> int:\n    return f()\n", "f -> f"),
    "mutual recursion": ("def f() -> int:\n    return g()\ndef g() -> int:\n    return f()\n", "f -> g -> f"),
    "mutual recursion, the callee first": (
        "def g() -> int:\n    return f()\ndef f() -> int:\n    return g()\n",
        "g -> f -> g",
    ),
    "a function CPython does not name so": ("def __debug__() -> int:\n    return 1\n", "shadows"),
    "a parameter CPython does not name so": ("def f(__debug__: int) -> int:\n    return 1\n", "shadows"),
    "shadowing parameter": ("A = 1\ndef f(A: int) -> int:\n    return A\n", "shadows"),
}


@pytest.mark.parametrize("name", TOP_LEVEL)
def test_nothing_but_views_constants_and_functions_stands_at_the_top(name: str) -> None:
    lines, says = TOP_LEVEL[name]
    error = refusal(body("return 0") + lines)
    assert error.verdict == "UNSUPPORTED" and error.line >= 4 and says in str(error), error


def test_what_looks_unusual_but_is_in_the_language_is_read() -> None:
    text = (
        '"""Module text."""\nfrom __future__ import annotations\n'
        "from tests.language.programs import Crate, Kind, Yard\n"
        "STEP: int = 2 ** 10 - 24\nON = not False\n"
        'def bonus(c: "Crate", by: int, on: bool) -> int:\n    "Text."\n    return by if on and c.kind == Kind.HIGH else -by\n'
        "def score(c: Crate, y: Yard) -> int:\n"
        "    x: int = y.open\n    pass\n"
        "    for i in range(3, -3, -2):\n        x += i\n"
        "    x //= -STEP // 7\n"
        "    if 0 < x <= i != 7:\n        return +x\n    elif x:\n        pass\n    else:\n        x = max(1, x, True)\n"
        "    return bonus(c, int(ON) + abs(x), bool(x))\n"
    )
    parse(text, CONTRACT.interface)


def test_a_reader_of_two_policies_may_swap_helper_order() -> None:
    text = (
        IMPORT
        + "def score(c: Crate, y: Yard) -> int:\n    return later(c.near)\ndef later(k: int) -> int:\n    return k + 1\n"
    )
    assert Policy.from_source(text, CONTRACT).native()(41, 0, 0, 0, 0, 0) == 42


# Adversarial texts: a clear verdict, soon, in little memory.

DEEP = {
    "nested parentheses": body("return " + "(" * 10_000 + "1" + ")" * 10_000),
    "unary chain": body("return " + "-" * 20_000 + "1"),
    "not chain": body("return " + "not " * 15_000 + "1"),
    "elif chain": body("x = 0", "if c.near == 1:", "    x = 1", *("elif c.near:\n        x = 1" for _ in range(3_000)), "return x"),
    "long sum": body("return " + "+".join(["1"] * 30_000)),
    "deep calls": body("return " + "abs(" * 3_000 + "1" + ")" * 3_000),
    "loops nested to the bound": body(
        *(f"{' ' * level}for i{level} in range(4096):" for level in range(18)), " " * 18 + "pass", "return 0"
    ),
    "nested conditionals": body("return " + "(1 if y.open else " * 150 + "1" + ")" * 150),
    "attribute chain": body("return c" + ".near" * 10_000),
    "power tower": body("return " + "2 ** 2 ** 2 ** 2 ** 64"),
    "decimal digits": body("return " + "9" * 60_000),
    "hex digits": body("return 0x" + "f" * 60_000),
    "constant tower": IMPORT + "".join(f"A{n} = {'9' if n == 0 else f'A{n - 1}'} ** 64\n" for n in range(5)) + HEAD[len(IMPORT) :] + "    return A4\n",
    "helpers that double": IMPORT
    + "def h0() -> int:\n    return 1\n"
    + "".join(f"def h{n}() -> int:\n    return h{n - 1}() + h{n - 1}()\n" for n in range(1, 64))
    + HEAD[len(IMPORT) :]
    + "    return h63()\n",
    "helpers that double on both sides of a branch": IMPORT
    + "def h0(k: int) -> int:\n    return k\n"
    + "".join(f"def h{n}(k: int) -> int:\n    if k > {n}:\n        return h{n - 1}(k)\n    return h{n - 1}(k) + 1\n" for n in range(1, 40))
    + HEAD[len(IMPORT) :]
    + "    return h39(c.near)\n",
    "a loop over a maximum of thousands": body("x = 0", "for i in range(1000):", f"    x = max(x{', 1' * 20_000})", "return x"),
    "helpers in a long row": IMPORT
    + "".join(f"def h{n}() -> int:\n    return h{n - 1}()\n" for n in range(1_100, 0, -1))
    + "def h0() -> int:\n    return 1\n"
    + HEAD[len(IMPORT) :]
    + "    return h200()\n",
    "a comment that ends inside a bracket": body("return (1 # \xe9\r    + \u0435)"),
    "five megabytes": body("return 1") + "#" * 5_000_000,
    "unicode look-alike": body("return c.n\u0435ar"),
    "unicode local": body("\u0445 = 1", "return 0"),
    "full-width call": body("return \uff4d\uff41\uff58(1, 2)"),
    "lone surrogate": body("return 1  # \ud800"),
}  # fmt: skip

LARGE = {
    "nested ifs": HEAD + "".join(f"{' ' * (level + 1)}if y.open:\n" for level in range(90)) + " " * 92 + "pass\n return 0\n",
    "loops nested as deeply as CPython has them": body(*(f"{' ' * level}for i{level} in range(1):" for level in range(20)), " " * 20 + "pass", "return 0"),
    "as deep a row of helpers as there may be": IMPORT
    + "def h0(k: int) -> int:\n    return 0 if k else 0\n"
    + "".join(f"def h{n}(k: int) -> int:\n    return (k > {n} and h{n - 1}(k)) if k else 0\n" for n in range(1, 39))
    + HEAD[len(IMPORT) :]
    + "    return h38(c.near)\n",
    "a long row of helpers that nobody calls": IMPORT
    + "".join(f"def h{n}() -> int:\n    return h{n - 1}()\n" for n in range(1_100, 0, -1))
    + "def h0() -> int:\n    return 1\n"
    + HEAD[len(IMPORT) :]
    + "    return 0\n",
    "many locals": body(*(f"x{n} = {n}" for n in range(3_000)), "return x0"),
}  # fmt: skip

HEAVY = {
    "repeated squaring": body("x = c.far", *["for i in range(40):", "    x = x * x"], "return x"),
    "powers of powers": body("return ((((c.far ** 64) ** 64) ** 64) ** 64) ** 64"),
    "squaring behind a rare guard": body(
        "x = c.far", "if c.far == 123_456_789_123:", *["    for i in range(40):", "        x = x * x"], "return x"
    ),
    "powers behind a rare guard": body(
        "if c.far == 123_456_789_123:", "    return (((c.far + y.room) ** 64) ** 64) ** 64", "return 0"
    ),
    "powers of constants": body("return ((((9 ** 64) ** 64) ** 64) ** 64) ** 64"),
    "squaring that never overflows": body("x = c.fragile + 0", *["for i in range(200):", "    x = x * x"], "return x"),
}


@pytest.mark.parametrize("name", DEEP)
def test_an_adversarial_text_gets_a_clear_refusal_within_ten_seconds(name: str) -> None:
    started = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error = refusal(DEEP[name])
    assert error.verdict in ("INVALID", "UNSUPPORTED") and len(str(error)) < 400
    assert time.perf_counter() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_a_text_over_the_limit_is_refused_before_parsing() -> None:
    error = refusal("(" * (MAX_SOURCE_BYTES + 1))
    assert error.verdict == "INVALID" and "65,536" in str(error)


@pytest.mark.parametrize("name", LARGE)
def test_a_large_but_plain_text_is_read_compiled_and_proved(name: str) -> None:
    policy = Policy.from_source(LARGE[name], CONTRACT)
    assert policy.native()(0, 0, 0, 0, 0, 0) == 0
    assert check(policy, CONTRACT, gates=("grammar", "ranges", "quick-fuzz", "proof", "fuzz")).verdict is Verdict.PASSED


@pytest.mark.parametrize("name", HEAVY)
def test_arithmetic_made_to_explode_gets_a_verdict_not_a_hang(name: str) -> None:
    report = check(HEAVY[name], CONTRACT, gates=("grammar", "ranges", "quick-fuzz", "proof"))
    assert report.verdict in (Verdict.REFUTED, Verdict.UNKNOWN, Verdict.PROVED, Verdict.PASSED)
