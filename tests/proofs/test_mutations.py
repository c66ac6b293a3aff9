"""Steps of genuine proofs, changed at random: what is still accepted follows, and what does not follow is refused."""

import random
from collections import Counter, defaultdict
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopoiesis_lib.proofs import ProofError, ProofProblem, check
from autopoiesis_lib.proofs.alethe import _Proof
from autopoiesis_lib.proofs.rules import RULES, Step
from autopoiesis_lib.proofs.smtlib import read
from autopoiesis_lib.proofs.terms import MAX_WORK, Terms

from .semantics import below, random_environments, refuted


class Recording(_Proof):
    """Keeps every step that was accepted."""

    steps: list[tuple[str, Step]]

    def _follows(self, name: str, rule: str, step: Step) -> None:
        super()._follows(name, rule, step)
        self.steps.append((rule, step))


@pytest.fixture(scope="module")
def steps(genuine: list[tuple[str, str]]) -> dict[str, list[Step]]:
    """Every step by its rule."""
    found: dict[str, list[Step]] = defaultdict(list)
    for text, proof in genuine:
        terms, query = Terms(), read(text)
        recording = Recording(proof, terms, dict(query.symbols), terms.assertions(query))
        recording.steps = []
        recording.checked()
        for rule, step in recording.steps:
            found[rule].append(step)
    return found


def rebuilt(terms: Terms, term: int, old: int, new: int) -> int:
    """Return a term with another in place of a part of it."""
    known = {old: new}
    for item in below(terms, [term]):
        if item not in known and terms.arguments[item]:
            known[item] = terms.apply(terms.heads[item], [known.get(part, part) for part in terms.arguments[item]])
    return known.get(term, term)


def changed_term(pick: random.Random, terms: Terms, term: int, pool: list[int]) -> int:
    """Return a term with one change: another part, another operator, another number, a negation more or less."""
    parts = below(terms, [term])
    part = pick.choice(parts)
    kind = pick.choice(["part", "operator", "number", "negation", "order"])
    arguments = terms.arguments[part]
    new = part
    if kind == "part":
        new = pick.choice([item for item in pool if terms.sorts[item] == terms.sorts[part]] or [part])
    elif kind == "operator" and arguments:
        head = pick.choice(["and", "or", "=>", "=", "<", "<=", ">", ">=", "+", "*", "-", "div", "mod"])
        new = terms.apply(head, arguments)
    elif kind == "number" and terms.sorts[part] != "Bool":
        value = terms.values[part] if not arguments else None
        shift = pick.choice([-2, -1, 1, 2])
        new = terms.apply("+", (part, terms.number(Fraction(shift), "Int")))
        if value is not None:
            new = terms.number(Fraction(shift) + value, terms.sorts[part])
    elif kind == "negation" and terms.sorts[part] == "Bool":
        new = arguments[0] if terms.is_a(part, "not", 1) else terms.negation(part)
    elif kind == "order" and len(arguments) > 1:
        new = terms.apply(terms.heads[part], pick.sample(arguments, len(arguments)))
    return rebuilt(terms, term, part, new)


def mutant(pick: random.Random, step: Step, others: list[Step]) -> Step:
    """Return a step with one change."""
    terms = step.terms
    pool = below(terms, [*step.clause, *(item for premise in step.premises for item in premise)])
    kind = pick.choice(
        [
            "literal",
            "drop literal",
            "add literal",
            "premise",
            "drop premise",
            "argument",
            "everywhere",
            "everywhere",
        ]
    )
    clause, premises, arguments = list(step.clause), list(step.premises), list(step.arguments)
    if kind == "literal" and clause:
        index = pick.randrange(len(clause))
        clause[index] = changed_term(pick, terms, clause[index], pool)
    elif kind == "drop literal" and clause:
        del clause[pick.randrange(len(clause))]
    elif kind == "add literal":
        literals = [item for item in pool if terms.sorts[item] == "Bool"]
        if literals:
            clause.append(pick.choice(literals))
    elif kind == "premise" and premises:
        index = pick.randrange(len(premises))
        near = [item.clause for item in others if item.terms is terms]
        choice = pick.choice(["another", "changed"])
        if choice == "another":
            premises[index] = pick.choice([*near, step.clause])
        elif premises[index]:
            literal = pick.randrange(len(premises[index]))
            new = changed_term(pick, terms, premises[index][literal], pool)
            premises[index] = (*premises[index][:literal], new, *premises[index][literal + 1 :])
    elif kind == "drop premise" and premises:
        del premises[pick.randrange(len(premises))]
    elif kind == "argument" and arguments:
        index = pick.randrange(len(arguments))
        arguments[index] = changed_term(pick, terms, arguments[index], [*pool, *below(terms, arguments)])
    elif kind == "everywhere":
        old = pick.choice(pool)
        numbers = [terms.number(Fraction(number), "Int") for number in (0, -1, 3)]
        alike = [item for item in [*pool, *numbers] if terms.sorts[item] == terms.sorts[old]]
        new = pick.choice(alike)
        clause = [rebuilt(terms, item, old, new) for item in clause]
        premises = [tuple(rebuilt(terms, item, old, new) for item in premise) for premise in premises]
        arguments = [rebuilt(terms, item, old, new) for item in arguments]
    if any(terms.sorts[item] != "Bool" for item in [*clause, *(item for premise in premises for item in premise)]):
        raise ProofError(ProofProblem.MALFORMED, "a literal that is no truth value")
    return replace(step, clause=tuple(clause), premises=tuple(premises), arguments=tuple(arguments))


class TestMutants:
    def search(self, steps: dict[str, list[Step]], examples: int) -> Counter[str]:
        counts: Counter[str] = Counter()
        everything = [(rule, step) for rule, found in sorted(steps.items()) for step in found]

        @settings(max_examples=examples, deadline=None, database=None, derandomize=True)
        @given(st.integers(0, 2**64))
        def one(seed: int) -> None:
            pick = random.Random(seed)
            rule = pick.choice(sorted(steps))
            step = pick.choice(steps[rule][:400])
            step.terms._work = MAX_WORK
            others = [item for _, item in everything[:: max(1, len(everything) // 200)]]
            try:
                changed = mutant(pick, step, others)
                checked = rule if pick.random() < 0.8 else pick.choice(sorted(RULES))
                accepted = changed != step and RULES[checked](changed)
            except ProofError:
                accepted = False
            counts["accepted" if accepted else "refused"] += 1
            if accepted:
                assert refuted(changed, random_environments(changed, seed, 60)) is None, (checked, changed)

        one()
        return counts

    def test_one_that_is_accepted_follows(self, steps: dict[str, list[Step]]) -> None:
        counts = self.search(steps, 1_000)
        assert counts["refused"] > 100 and counts["accepted"] > 50, counts

    @pytest.mark.slow
    def test_of_many_each_that_is_accepted_follows(self, steps: dict[str, list[Step]]) -> None:
        counts = self.search(steps, 20_000)
        assert counts["accepted"] > 1_000, counts

    def test_the_judge_sees_a_step_that_does_not_follow(self, steps: dict[str, list[Step]]) -> None:
        wrong = 0
        for step in steps["la_generic"][:50]:
            for index in range(len(step.clause)):
                weaker = replace(step, clause=step.clause[:index] + step.clause[index + 1 :])
                wrong += refuted(weaker, random_environments(weaker, index, 400)) is not None
        assert wrong > 20


class TestMutantTexts:
    def test_a_proof_without_one_of_its_lines_is_refused_or_whole(self, genuine: list[tuple[str, str]]) -> None:
        text, proof = min(genuine, key=lambda pair: len(pair[1]))
        lines = proof.splitlines()
        refused = 0
        for index in range(1, len(lines) - 1):
            try:
                check(text, "\n".join(lines[:index] + lines[index + 1 :]))
            except ProofError:
                refused += 1
        assert refused > len(lines) / 3  # the others are assertions that it assumes and does not use
