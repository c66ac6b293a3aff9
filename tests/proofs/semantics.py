"""Values of terms, written a second time, so that an accepted step can be judged without the checker's own arithmetic."""

import random
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise

from autopoiesis_lib.proofs.rules import Step
from autopoiesis_lib.proofs.terms import Terms

Env = Mapping[int, bool | Fraction]
BY_ZERO = {"div": Fraction(7), "mod": Fraction(-5), "/": Fraction(3, 2)}
"""One of the functions that a division by zero may be."""


def value(terms: Terms, term: int, env: Env, known: dict[int, bool | Fraction]) -> bool | Fraction:
    """Return the value of a term for values of its symbols."""
    stack = [term]
    while stack:
        top = stack[-1]
        missing = [item for item in terms.arguments[top] if item not in known]
        if missing:
            stack += missing
            continue
        stack.pop()
        if top not in known:
            known[top] = _value(terms, top, env, [known[item] for item in terms.arguments[top]])
    return known[term]


def _value(terms: Terms, term: int, env: Env, inner: list[bool | Fraction]) -> bool | Fraction:
    match terms.heads[term], inner:
        case "symbol", _:
            return env[term]
        case (("true" | "false" as constant), _):
            return constant == "true"
        case "number", _:
            found = terms.values[term]
            assert found is not None
            return found
        case "not", [one]:
            return not one
        case "and", parts:
            return all(parts)
        case "or", parts:
            return any(parts)
        case "xor", [one, other]:
            return one != other
        case "=>", [*before, last]:
            return bool(last) or not all(before)
        case "ite", [condition, one, other]:
            return one if condition else other
        case "=", [one, other]:
            return one == other
        case "distinct", parts:
            return len(set(parts)) == len(parts)
        case "+", parts:
            return sum(map(Fraction, parts), Fraction(0))
        case "*", parts:
            product = Fraction(1)
            for part in parts:
                product *= part
            return product
        case "-", [one]:
            return -Fraction(one)
        case "-", [first, *rest]:
            return Fraction(first) - sum(map(Fraction, rest), Fraction(0))
        case "to_real", [one]:
            return one
        case "to_int", [one]:
            return Fraction(Fraction(one).numerator // Fraction(one).denominator)
        case (("div" | "mod" | "/" as operator), [one, other]):
            if other == 0:
                return BY_ZERO[operator]
            quotient = Fraction(one) / Fraction(other)
            if operator == "/":
                return quotient
            whole = Fraction(quotient.__floor__() if other > 0 else quotient.__ceil__())
            return whole if operator == "div" else Fraction(one) - Fraction(other) * whole
        case (("<" | "<=" | ">" | ">=" as relation), [*parts]):
            holds = {"<": Fraction.__lt__, "<=": Fraction.__le__, ">": Fraction.__gt__, ">=": Fraction.__ge__}[relation]
            return all(holds(Fraction(a), Fraction(b)) for a, b in pairwise(parts))
    raise AssertionError(terms.heads[term])


def below(terms: Terms, roots: Sequence[int]) -> list[int]:
    """Return terms and all that they are made of."""
    seen: set[int] = set()
    stack = list(roots)
    while stack:
        item = stack.pop()
        if item not in seen:
            seen.add(item)
            stack += terms.arguments[item]
    return sorted(seen)


def refuted(step: Step, environments: Iterator[Env]) -> Env | None:
    """Return values for which the premises of a step hold and its clause does not."""
    terms = step.terms
    for env in environments:
        known: dict[int, bool | Fraction] = {}
        if any(value(terms, literal, env, known) for literal in step.clause):
            continue
        if all(any(value(terms, literal, env, known) for literal in premise) for premise in step.premises):
            return env
    return None


def random_environments(step: Step, seed: int, count: int) -> Iterator[Env]:
    """Yield values for the symbols of a step: small ones, and ones close to its numbers."""
    terms = step.terms
    parts = below(terms, [*step.clause, *(literal for premise in step.premises for literal in premise)])
    numbers = [int(found) for item in parts if isinstance(found := terms.values[item], Fraction)] or [0]
    choices = random.Random(seed)
    for _ in range(count):
        near = choices.choice(numbers)
        yield {
            item: choices.random() < 0.5
            if terms.sorts[item] == "Bool"
            else Fraction(choices.choice((0, near, choices.choice(numbers))) + choices.randint(-2, 2))
            for item in parts
            if terms.heads[item] == "symbol"
        }
