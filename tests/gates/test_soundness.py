"""Small tests of green verdicts, claims and digests: one for each fault that no other test would see."""

from collections.abc import Mapping
from enum import IntEnum
from typing import Annotated, Any, ClassVar

import pytest
import z3
from pydantic import Field, create_model

from autopoiesis_lib import (
    CertificateError,
    Contract,
    Least,
    Policy,
    Rejected,
    Theorem,
    Verdict,
    View,
    assumption,
    decision,
    invariant,
    lemma,
)
from autopoiesis_lib.certificate import certify
from autopoiesis_lib.formula import meaning_of_domain
from autopoiesis_lib.gates import EncoderBug, check, contracts, proof
from autopoiesis_lib.gates.claims import NOT_COVERED, _bound, claims_of, in_words
from autopoiesis_lib.gates.contracts import examined
from autopoiesis_lib.gates.counterexample import Arguments, Evaluator
from autopoiesis_lib.gates.second_solver import Disagreement, agreed, second_opinion
from autopoiesis_lib.gates.solving import DEFAULT_RLIMIT, IncrementalSolver, ask, to_smtlib
from autopoiesis_lib.gates.theorems import prove_theorem
from autopoiesis_lib.gates.verdict import (
    Counterexample,
    GateReport,
    GateResult,
    LeastBound,
    ObligationResult,
    Reason,
    worst,
)
from autopoiesis_lib.view import Domain
from tests.contracts import dishonest
from tests.contracts.dishonest import HONEST, Base, Counting, Job, Size, Small, State, with_theorem

HERE = HONEST.replace(dishonest.__name__, __name__)
"""The honest policy, for contracts of this module."""


def verdicts(theorem: type[Theorem], contract: Base | None = None) -> dict[str, Verdict]:
    """Return the verdict on each part of a theorem, without the theorem's name."""
    results = prove_theorem(contract or with_theorem(theorem), theorem)
    return {item.name.removeprefix(theorem.__name__).lstrip(":. "): item.verdict for item in results}


class Bounded(Base):
    """One invariant with a parameter of few values."""

    @invariant
    def above(self, job: Job, part: Annotated[int, Field(ge=-10, le=-10)]) -> bool:
        """A score is at least any of them."""
        return job.size > 50 or self.score(job) > part


class Ends(Theorem):
    """A counter that only falls reaches 0."""

    def init(self, s: State) -> bool:
        """It begins with 10."""
        return s.n == 10

    def step(self, s: State, t: State) -> bool:
        """It falls."""
        return t.n == s.n - 1 and s.n > 0

    def inductive(self, s: State) -> bool:
        """It is between 0 and 10."""
        return 0 <= s.n <= 10

    def progress(self, s: State, t: State) -> bool:
        """Every step."""
        return True

    def ranking(self, s: State) -> int:
        """The counter."""
        return s.n


class TooMuch(Base):
    """An invariant of too high a degree to be encoded."""

    @invariant
    def power(self, job: Job) -> bool:
        """A power is not negative."""
        return self.score(job) <= 9 or (job.size * job.size) ** 50 >= 0


class TooMuchAssumed(Base):
    """An assumption of too high a degree to be encoded."""

    @assumption
    def power(self, job: Job) -> bool:
        """A power is not negative."""
        return ((job.size * job.size) % 7) ** 20 >= 0


class TestTheorems:
    def test_one_that_cannot_be_encoded_is_unknown(self) -> None:
        class Power(Theorem):
            """A power is not negative."""

            @lemma
            def power(self, job: Job) -> bool:
                """Of a large degree."""
                return self.policy.score(job) <= 9 or (job.size * job.size) ** 50 >= 0  # type: ignore[no-any-return]

        [result] = prove_theorem(with_theorem(Power), Power)
        assert result.verdict is Verdict.UNKNOWN

    def test_a_progress_that_divides_is_not_total(self) -> None:
        class ProgressDivides(Counting):
            """Every request ends."""

            def progress(self, s: State, t: State) -> bool:
                """It raises where a step stands still."""
                return 1 // (t.n - s.n) > 5

            def ranking(self, s: State) -> int:
                """Whatever."""
                return s.n

        assert verdicts(ProgressDivides)["progress is total"] is Verdict.REFUTED

    def test_a_ranking_alone_is_a_promise(self) -> None:
        assert verdicts(Ends) == dict.fromkeys(("initiation", "consecution", "ranking"), Verdict.PROVED)

    def test_a_ranking_that_raises_on_either_side_ranks_nothing(self) -> None:
        class RaisesBefore(Ends):
            """A counter that only falls reaches 0."""

            def ranking(self, s: State) -> int:
                """It raises at 10, the first."""
                return s.n + 0 * (100 // (s.n - 10))

        class RaisesAfter(Ends):
            """A counter that only falls reaches 0."""

            def ranking(self, s: State) -> int:
                """It raises at 0, the last."""
                return s.n + 0 * (100 // s.n)

        for theorem in (RaisesBefore, RaisesAfter):
            assert verdicts(theorem)["ranking"] is Verdict.REFUTED

    def test_a_view_of_a_bounds_name_is_no_bound(self) -> None:
        class Named(Theorem):
            """A larger job never scores above another."""

            @lemma
            def larger(self, small: Job, by: Job) -> bool:
                """The invariant has a `by`, too."""
                return by.size < small.size or self.policy.score(by) <= self.policy.score(small)  # type: ignore[no-any-return]

        assert verdicts(Named) == {"larger": Verdict.REFUTED}

    def test_an_invariant_is_not_assumed_beyond_its_domain(self) -> None:
        class Five(Theorem):
            """Every small job scores above 4."""

            @lemma
            def five(self, job: Job, part: Annotated[int, Field(ge=-10, le=4)]) -> bool:
                """The invariant says it of -10 only."""
                return job.size > 50 or self.policy.score(job) > part  # type: ignore[no-any-return]

        class Ten(Theorem):
            """Every small job scores above -10."""

            @lemma
            def ten(self, job: Job, part: Annotated[int, Field(ge=-10, le=4)]) -> bool:
                """As the invariant says."""
                return job.size > 50 or part > -10 or self.policy.score(job) > part  # type: ignore[no-any-return]

        assert verdicts(Five, Bounded()) == {"five": Verdict.REFUTED}
        assert verdicts(Ten, Bounded()) == {"ten": Verdict.PROVED}

    def test_a_lemma_that_is_too_hard_is_unknown(self) -> None:
        class Cubes(Theorem):
            """No three sizes have cubes with such a sum, whatever the scores."""

            @lemma
            def cubes(self, one: Job, two: Job, three: Job) -> bool:
                """True, and not to be told within one unit of resources."""
                first = one.size * one.size * one.size + two.size * two.size * two.size
                return self.policy.score(one) > 10 or first + three.size * three.size * three.size != 1_000_004  # type: ignore[no-any-return]

        [result] = prove_theorem(with_theorem(Cubes), Cubes, rlimit=1)
        assert result.verdict is Verdict.UNKNOWN and "resource units" in result.detail

    def test_a_bound_is_matched_by_its_name_alone(self) -> None:
        class OtherName(Theorem):
            """A job that is larger by anything never scores above another."""

            @lemma
            def larger(self, small: Job, large: Job, other: Size) -> bool:
                """The invariant speaks of `by`."""
                fits = large.size >= small.size + other
                return not fits or self.policy.score(large) <= self.policy.score(small)  # type: ignore[no-any-return]

        assert verdicts(OtherName) == {"larger": Verdict.REFUTED}

    def test_an_answer_that_only_a_lemma_meets_lies_in_its_range(self) -> None:
        class InRange(Theorem):
            """Two scores are never more than 20 apart, and a large job's is not above a small one's."""

            @lemma
            def apart(self, small: Job, large: Job, by: Size) -> bool:
                """It follows from the range and the invariant together."""
                fits = large.size >= small.size + by
                higher = self.policy.score(small) - self.policy.score(large)
                return not fits or 0 <= higher <= 20  # type: ignore[no-any-return]

        assert verdicts(InRange) == {"apart": Verdict.PROVED}


class Twin(Base):
    """As `Base`, for changes of one part of its meaning."""


class OtherName(Base, name="other"):
    """Another name."""


class MoreOperations(Base):
    """A larger limit of operations."""

    max_operations: ClassVar[int] = 2_048


class OtherSlot(Base):
    """A decision that the simulator runs."""

    slots: ClassVar[Mapping[str, str]] = {"score": "order"}


class MoreParameters(Base):
    """A parameter that nothing reads."""

    more: Size = 1


class WiderResult(Base):
    """A decision with more results."""

    @decision
    def score(self, job: Job) -> Size:
        raise NotImplementedError


class OtherArgument(Base):
    """A decision whose argument has another name."""

    @decision
    def score(self, work: Job) -> Small:
        raise NotImplementedError


class Assuming(Base):
    """An assumption."""

    @assumption
    def is_small(self, job: Job) -> bool:
        return job.size < 50


class AssumingLess(Base):
    """Another assumption of the same name."""

    @assumption
    def is_small(self, job: Job) -> bool:
        return job.size < 51


class Claiming(Base):
    """The invariant with another claim."""

    @invariant
    def larger_is_less(self, small: Job, large: Job, by: Annotated[Size, Least(limit="most")]) -> bool:
        """A larger job never scores above another."""
        return large.size < small.size + by or self.score(large) <= self.score(small)


class WithoutLeast(Base):
    """The invariant for every bound."""

    @invariant
    def larger_is_less(self, small: Job, large: Job, by: Size) -> bool:
        """A job that is larger by enough never scores above another."""
        return large.size < small.size + by or self.score(large) <= self.score(small)


class Proving(Base):
    """A theorem."""

    @classmethod
    def theorems(cls) -> tuple[type[Theorem], ...]:
        return (Counting,)


class OtherParameter(Base):
    """Another parameter that nothing reads."""

    other: Size = 1


class Renamed(Counting):
    """A counter that never decreases is never negative."""


class ProvingRenamed(Base):
    """The same theorem under another name."""

    @classmethod
    def theorems(cls) -> tuple[type[Theorem], ...]:
        return (Renamed,)


def deciding(*, name: str = "score", swapped: bool = False, field: str = "size", most: int = 9) -> Contract:
    """Return a contract without invariants, whose decision or views differ in one part."""
    bounded: Any = Annotated[int, Field(ge=0, le=9)]
    first: Any = create_model("First", __base__=View, **{field: (bounded, ...)})
    second: Any = create_model("Second", __base__=View, size=(bounded, ...))
    own: Any = create_model("Own", __base__=View, size=(Annotated[int, Field(ge=0, le=most)], ...))
    one, two = (second, first) if swapped else (first, second)

    def score(self: Any, one: View, two: View) -> int:
        raise NotImplementedError

    score.__name__ = name
    score.__annotations__.update({"one": one, "two": two, "return": Small})
    score.__annotations__.pop("self")

    class OfOwn(Theorem):
        """An own view is small."""

        @lemma
        def small(self, own: own) -> bool:
            """As it declares."""
            return own.size >= 0  # type: ignore[no-any-return]

    class Deciding(Contract, name="deciding"):
        @classmethod
        def theorems(cls) -> tuple[type[Theorem], ...]:
            return (OfOwn,)

    return type(Deciding)("Deciding", (Deciding,), {"__module__": __name__, name: decision(score)})()  # type: ignore[no-any-return]


class TestDigest:
    def test_each_part_of_a_decision_and_of_a_view_makes_another(self) -> None:
        changed = (deciding(name="level"), deciding(swapped=True), deciding(field="width"), deciding(most=8))
        assert deciding().digest == deciding().digest
        assert len({contract.digest for contract in (*changed, deciding())}) == len(changed) + 1

    def test_each_part_of_the_meaning_makes_another_digest(self) -> None:
        changed = (
            OtherName(), MoreOperations(), OtherSlot(), MoreParameters(), WiderResult(), OtherArgument(), Assuming(),
            AssumingLess(), Claiming(), WithoutLeast(), Proving(), ProvingRenamed(), Twin(most=9), OtherParameter(),
            MoreParameters(more=2),
        )  # fmt: skip
        assert Twin().digest == Base().digest
        assert len({contract.digest for contract in (*changed, Twin())}) == len(changed) + 1

    def test_each_part_of_a_domain_makes_another_meaning(self) -> None:
        first, second = IntEnum("Kind", {"LOW": 0, "HIGH": 1}), IntEnum("Kind", {"LOW": 0, "TALL": 1})
        renamed = IntEnum("Sort", {"LOW": 0, "HIGH": 1})
        domains = (
            None, Domain(0, 1), Domain(0, 2), Domain(-1, 1), Domain(0, 1, "bool"), Domain(0, 1, unit="us"),
            Domain(0, 1, saturates=True), *(Domain(0, 1, "enum", values=(0, 1), enum=enum) for enum in (first, second, renamed)),
            Domain(0, 2, "enum", values=(0, 2), enum=first), Domain(0, 2, "enum", values=(0, 1, 2), enum=first),
        )  # fmt: skip
        assert len({meaning_of_domain(domain) for domain in domains}) == len(domains)


def test_contracts_of_one_meaning_in_two_modules_take_texts_of_their_own() -> None:
    there = Base()
    here = type("Base", (Base,), {"__module__": __name__})()
    assert here.digest == there.digest
    for _ in range(2):
        assert check(HONEST, there).verdict is Verdict.PROVED
        assert check(HERE, here).verdict is Verdict.PROVED


class TestChain:
    def test_a_policy_of_another_contract_is_invalid(self) -> None:
        policy = Policy.from_source(HONEST, Base())
        report = check(policy, Base(most=9))
        assert report.verdict is Verdict.INVALID and report.claims == ()
        assert check(policy, Base()).verdict is Verdict.PROVED


class TestClaims:
    def test_a_theorem_is_claimed_as_the_digest_covers_it(self) -> None:
        class Once(Counting):
            """The counter is never negative."""

        class Then(Counting):
            """No request is ever lost."""

        listed: list[type[Theorem]] = [Once]

        class Changing(Base):
            @classmethod
            def theorems(cls) -> tuple[type[Theorem], ...]:
                return (listed[0],)

        contract = Changing()
        assert contract.digest
        listed[0] = Then
        Once.__doc__ = "No request is ever lost."
        report = check(HERE, contract, certify=True)
        assert report.claims[-1] == "The counter is never negative"
        assert certify(Policy.from_source(HERE, contract), report).theorems[0].name == "Once"

    def test_an_invariant_without_words_is_claimed_by_name(self) -> None:
        class Silent(Base):
            @invariant
            def low(self, job: Job) -> bool:
                return self.score(job) <= 0

        assert "`low` holds" in check(HERE, Silent()).claims


@pytest.fixture(scope="module")
def proved() -> GateReport:
    """Return the report of a policy whose contract has a theorem, with the texts of its proofs."""
    report = check(HERE, Proving(), certify=True)
    assert report.verdict is Verdict.PROVED, report.failed
    return report


class TestCertify:
    """A report is certified only if it is whole, green and of this policy."""

    def refused(self, report: GateReport, contract: Base | None = None) -> str:
        policy = Policy.from_source(HERE, contract or Proving())
        with pytest.raises((CertificateError, Rejected)) as raised:
            certify(policy, report)
        return str(raised.value)

    def test_a_whole_green_report_is(self, proved: GateReport) -> None:
        certificate = certify(Policy.from_source(HERE, Proving()), proved)
        assert certificate.claims == proved.claims and certificate.bounds == {"larger_is_less": 0}
        assert not any(gate.obligations for gate in certificate.gates)
        assert certificate.contract_parameters == {"most": 10} and certificate.single_solver == ()

    def test_one_that_is_not_proved_is_refused(self, proved: GateReport) -> None:
        for verdict in set(Verdict) - {Verdict.PROVED}:
            assert str(verdict) in self.refused(proved.model_copy(update={"verdict": verdict}))

    def test_one_without_texts_is_refused(self, proved: GateReport) -> None:
        [*others, gate] = [item for item in proved.gates if item.obligations]
        assert others == []
        for index in range(len(gate.obligations)):
            bare = [
                item if at != index else item.model_copy(update={"smtlib": None})
                for at, item in enumerate(gate.obligations)
            ]
            gates = tuple(
                item if item is not gate else gate.model_copy(update={"obligations": tuple(bare)})
                for item in proved.gates
            )
            assert "no SMT-LIB texts" in self.refused(proved.model_copy(update={"gates": gates}))

    def test_one_of_another_policy_or_contract_is_refused(self, proved: GateReport) -> None:
        for digest in ("policy_digest", "contract_digest"):
            assert "another policy" in self.refused(proved.model_copy(update={digest: "0" * 64}))
        assert "another policy" in self.refused(proved, Proving(most=9))

    def test_one_whose_theorem_does_not_hold_is_refused(self, proved: GateReport) -> None:
        [theorem] = proved.theorems
        for verdict in set(Verdict) - {Verdict.PROVED}:
            lemmas = (*theorem.lemmas[:-1], theorem.lemmas[-1].model_copy(update={"verdict": verdict}))
            broken = theorem.model_copy(update={"lemmas": lemmas})
            assert "not discharged" in self.refused(proved.model_copy(update={"theorems": (broken,)}))
        empty = theorem.model_copy(update={"lemmas": ()})
        assert "no lemma" in self.refused(proved.model_copy(update={"theorems": (empty,)}))
        assert "every theorem" in self.refused(proved.model_copy(update={"theorems": ()}))


class TestBinding:
    """A certificate holds for a policy only if it shows every gate green and every obligation proved."""

    def test_every_gate_is_asked_for(self, proved: GateReport) -> None:
        certificate = certify(Policy.from_source(HERE, Proving()), proved)
        assert certificate.check_binding(Proving()).digest == certificate.policy_digest
        named = ["contract", "grammar", "types", "ranges", "quick-fuzz", "proof", "fuzz", "replay"]
        assert [gate.name for gate in certificate.gates] == named
        for index, gate in enumerate(certificate.gates):
            others = (*certificate.gates[:index], *certificate.gates[index + 1 :])
            with pytest.raises(CertificateError, match="every gate green"):
                certificate.model_copy(update={"gates": others}).check_binding(Proving())
            for verdict in set(Verdict) - {Verdict.PROVED, Verdict.PASSED}:
                broken = (*others, gate.model_copy(update={"verdict": verdict}))
                with pytest.raises(CertificateError, match="every gate green"):
                    certificate.model_copy(update={"gates": broken}).check_binding(Proving())

    def test_every_obligation_is_asked_for(self, proved: GateReport) -> None:
        certificate = certify(Policy.from_source(HERE, Proving()), proved)
        names = [item.name for item in certificate.obligations]
        assert names == ["score is safe", "score is in range", "larger_is_less"]
        for index, item in enumerate(certificate.obligations):
            others = (*certificate.obligations[:index], *certificate.obligations[index + 1 :])
            unproved = [
                (*others, item.model_copy(update={"verdict": verdict})) for verdict in set(Verdict) - {Verdict.PROVED}
            ]
            for obligations in (others, *unproved):
                with pytest.raises(CertificateError, match=f"does not prove `{item.name}`"):
                    certificate.model_copy(update={"obligations": obligations}).check_binding(Proving())

    def test_it_is_bound_to_the_contract_and_the_policy(self, proved: GateReport) -> None:
        certificate = certify(Policy.from_source(HERE, Proving()), proved)
        for update in ({"contract": "other"}, {"contract_digest": "0" * 64}):
            with pytest.raises(CertificateError, match="another version"):
                certificate.model_copy(update=update).check_binding(Proving())
        with pytest.raises(CertificateError, match="not the certified one"):
            certificate.model_copy(update={"policy_digest": "0" * 64}).check_binding(Proving())


class TestVerdicts:
    def test_the_worst_of_several_decides(self) -> None:
        assert worst() is Verdict.PASSED
        assert worst(Verdict.PASSED, Verdict.PROVED) is Verdict.PROVED
        order = ("PASSED", "PROVED", "UNKNOWN", "VACUOUS", "REFUTED", "UNSUPPORTED", "INVALID")
        for index, better in enumerate(order):
            for poorer in order[index:]:
                assert worst(Verdict(better), Verdict(poorer)) == worst(Verdict(poorer), Verdict(better)) == poorer

    def test_only_proved_and_passed_are_green(self) -> None:
        assert {verdict for verdict in Verdict if verdict.green} == {Verdict.PROVED, Verdict.PASSED}

    def test_a_theorem_without_lemmas_is_not_proved(self, proved: GateReport) -> None:
        [theorem] = proved.theorems
        assert theorem.proved and not theorem.model_copy(update={"lemmas": ()}).proved
        for verdict in set(Verdict) - {Verdict.PROVED}:
            lemmas = (theorem.lemmas[0].model_copy(update={"verdict": verdict}), *theorem.lemmas[1:])
            assert not theorem.model_copy(update={"lemmas": lemmas}).proved

    def test_a_bound_that_is_not_proved_is_no_bound(self, proved: GateReport) -> None:
        gates = tuple(
            gate.model_copy(
                update={
                    "obligations": tuple(
                        item.model_copy(update={"verdict": Verdict.UNKNOWN}) for item in gate.obligations
                    )
                }
            )
            for gate in proved.gates
        )
        assert proved.least() == {"larger_is_less": 0}
        assert proved.model_copy(update={"gates": gates}).least() == {}

    def test_a_gate_that_refutes_says_so_of_the_obligation(self) -> None:
        example = Counterexample(
            arguments={}, obligation="ages", reason=Reason.INVARIANT, explanation="it breaks", pytest=""
        )
        refuted = GateResult.refuted("fuzz", example, 1.0)
        assert (refuted.obligation, refuted.reason) == ("ages", Reason.INVARIANT)
        assert (refuted.verdict, refuted.counterexample, refuted.detail) == (Verdict.REFUTED, example, "it breaks")
        [obligation] = refuted.obligations
        assert (obligation.name, obligation.verdict, obligation.counterexample) == ("ages", Verdict.REFUTED, example)
        passed = GateResult(name="replay", verdict=Verdict.PASSED, seconds=0.0)
        report = GateReport(
            contract="c",
            contract_digest="",
            policy_digest=None,
            verdict=Verdict.REFUTED,
            seconds=0.0,
            gates=(refuted, passed),
        )
        assert report.failed == refuted and report.counterexample == example

    def test_the_later_gate_has_the_last_word(self) -> None:
        said = [
            ObligationResult(name="x", verdict=verdict, seconds=0.0) for verdict in (Verdict.PROVED, Verdict.REFUTED)
        ]
        gates = tuple(
            GateResult(name=item.verdict, verdict=item.verdict, seconds=0.0, obligations=(item,)) for item in said
        )
        report = GateReport(
            contract="c", contract_digest="", policy_digest=None, verdict=Verdict.REFUTED, seconds=0.0, gates=gates
        )
        assert report.obligations == (said[1],) and report.failed == gates[1]


class TestClaimsOf:
    def claims(self, proved: GateReport, **update: object) -> tuple[str, ...]:
        return claims_of(Proving(), proved.model_copy(update=update))

    def test_a_claim_has_the_authors_words_and_the_bound(self, proved: GateReport) -> None:
        assert "A job that is larger by enough never scores above another (by = 0)" in proved.claims

    def test_what_no_certificate_covers_is_said(self) -> None:
        said = (
            "holds back",
            "hold KV",
            "passes over the oldest",
            "nobody's choice",
            "engine's own rule",
            "order by priority",
            "speculative decoding",
            "own bugs",
            "how good the policy is",
        )
        assert len(NOT_COVERED) == len(said)
        assert all(words in text for words, text in zip(said, NOT_COVERED, strict=True))

    def test_what_is_not_proved_is_not_claimed(self, proved: GateReport) -> None:
        assert self.claims(proved) == proved.claims and len(proved.claims) == 3
        for verdict in set(Verdict) - {Verdict.PROVED}:
            gates = tuple(
                gate.model_copy(
                    update={
                        "obligations": tuple(item.model_copy(update={"verdict": verdict}) for item in gate.obligations)
                    }
                )
                for gate in proved.gates
            )
            assert not any("larger by enough" in claim for claim in self.claims(proved, gates=gates))
            [theorem] = proved.theorems
            lemmas = tuple(item.model_copy(update={"verdict": verdict}) for item in theorem.lemmas)
            broken = (theorem.model_copy(update={"lemmas": lemmas}),)
            assert not any("counter" in claim for claim in self.claims(proved, theorems=broken))

    def test_less_is_refuted_only_with_a_witness(self) -> None:
        example = Counterexample(arguments={}, obligation="ages", reason=Reason.INVARIANT, explanation="", pytest="")
        tight = LeastBound(parameter="aging", value=8_191_000, unit="us", tight=True, refuted_below=example)
        assert _bound(tight) == "T = 8.191 s, and less is refuted"
        for update in ({"tight": False}, {"refuted_below": None}):
            assert _bound(tight.model_copy(update=update)) == "T = 8.191 s"
        assert _bound(tight.model_copy(update={"parameter": "by", "unit": ""})).startswith("by = 8,191,000,")

    @pytest.mark.parametrize(
        ("value", "unit", "words"),
        [
            (999, "us", "999 us"),
            (1_000, "us", "1 ms"),
            (1_500, "us", "1.5 ms"),
            (999_999, "us", "999.999 ms"),
            (1_000_000, "us", "1 s"),
            (1_000_001, "us", "1.000001 s"),
            (100_000_000, "us", "100 s"),
            (0, "us", "0 us"),
            (1_200, "blocks", "1,200 blocks"),
            (7, "", "7"),
        ],
    )
    def test_a_value_in_words_is_that_value(self, value: int, unit: str, words: str) -> None:
        assert in_words(value, unit) == words


class TestSecondSolver:
    def text(self, *constraints: z3.BoolRef) -> str:
        return to_smtlib(constraints)

    def test_a_model_that_it_finds_is_a_disagreement(self) -> None:
        number = z3.Int("number")
        assert second_opinion(self.text(number > 3)) == "sat"
        with pytest.raises(Disagreement, match="ages"):
            agreed("ages", self.text(number > 3))

    def test_it_agrees_or_it_is_left_out(self) -> None:
        number = z3.Int("number")
        assert agreed("ages", self.text(number > 3, number < 4)) == ("z3", "cvc5")
        one, two, three = z3.Ints("one two three")
        hard = self.text(one * one * one + two * two * two + three * three * three == 114, one > 10**6, two > 10**6)
        assert second_opinion(hard, resources=1_000) == "unknown"
        assert agreed("ages", hard) == ("z3",)

    def test_a_text_states_every_constraint(self) -> None:
        number = z3.Int("number")
        assert second_opinion(to_smtlib([number > 3, False])) == "unsat"
        assert second_opinion(to_smtlib([number > 3, True])) == "sat"


class TestAnswers:
    def test_the_solver_answers_as_it_should(self) -> None:
        number = z3.Int("number")
        answer, model = ask([number > 3, True], DEFAULT_RLIMIT)
        assert answer == "sat" and model is not None and model[number].as_long() > 3
        assert ask([number > 3, number < 4], DEFAULT_RLIMIT) == ("unsat", None)
        assert ask([number > 3, False], DEFAULT_RLIMIT) == ("unsat", None)

    def test_a_budget_that_is_spent_proves_nothing(self) -> None:
        number, other = z3.Ints("number other")
        solver = IncrementalSolver([number * number * number == 2 * other * other * other, number > 0], 1)
        assert solver.ask() == ("unknown", None)

    def test_one_query_leaves_nothing_to_the_next(self) -> None:
        number = z3.Int("number")
        solver = IncrementalSolver([number > 3], DEFAULT_RLIMIT)
        assert solver.ask([number < 4])[0] == "unsat"
        assert solver.ask([number < 5])[0] == "sat"
        assert solver.ask([number < 3])[0] == "unsat"
        assert solver.ask()[0] == "sat"


class Level(IntEnum):
    """Levels with a gap."""

    LOW = 0
    HIGH = 2


class Levels(Contract, name="levels"):
    """A decision that returns a member of an enum."""

    @decision
    def level(self, job: Job) -> Level:
        """A level."""
        raise NotImplementedError


class Part(View):
    """Two parts, one of which has a gap."""

    size: Annotated[int, Field(ge=5, le=9)]
    level: Level


class Parts(Contract, name="parts"):
    """A view with an assumption."""

    @decision
    def score(self, part: Part) -> Small:
        """A score."""
        raise NotImplementedError

    @assumption
    def small_is_low(self, part: Part) -> bool:
        """A small part is low."""
        return part.size > 6 or part.level == Level.LOW

    @invariant
    def not_low(self, part: Part, of: Size) -> bool:
        """It is positive where it divides."""
        return 10 // self.score(part) > 0 or of > 50


class TestProofs:
    @pytest.mark.parametrize("contract", [TooMuch(), TooMuchAssumed()], ids=lambda contract: type(contract).__name__)
    def test_what_cannot_be_encoded_is_unknown(self, contract: Contract) -> None:
        assert proof.check(Policy.from_source(HERE, contract)).verdict is Verdict.UNKNOWN

    @pytest.mark.parametrize(
        ("returned", "verdict"),
        [("job.size // 200 * 2", "PROVED"), ("job.size // 100 * 2", "PROVED"), ("job.size // 100", "REFUTED"), ("2", "PROVED"),
         ("1", "REFUTED"), ("3", "REFUTED"), ("-(job.size // 100)", "REFUTED"), ("job.size // 100 * 3", "REFUTED")],
    )  # fmt: skip
    def test_a_value_between_members_is_out_of_range(self, returned: str, verdict: str) -> None:
        text = f"from {__name__} import Job\n\n\ndef level(job: Job) -> int:\n    return {returned}\n"
        [_, within] = proof.check(Policy.from_source(text, Levels())).obligations
        assert within.verdict == verdict


class Cubic(Base):
    """An assumption that never divides by zero, which is hard to see."""

    @assumption
    def never_zero(self, job: Job, one: Job, two: Job) -> bool:
        """A quotient of three cubes."""
        cubes = job.size * job.size * job.size + one.size * one.size * one.size + two.size * two.size * two.size
        return 1_000 // (cubes - 1_000_004) <= 1_000


class TestContracts:
    """What Z3 cannot tell of a contract is not green."""

    def test_an_assumption_that_may_divide_by_zero_is_unknown(self) -> None:
        [total] = examined(Cubic(), 1)
        assert total.verdict is Verdict.UNKNOWN and "resource units" in total.detail
        result = contracts.check(Cubic(), 1)
        assert result.verdict is Verdict.UNKNOWN and result.obligations == (total,)

    def test_an_assumption_that_cannot_be_encoded_is_unknown(self) -> None:
        assert [item.verdict for item in examined(TooMuchAssumed())] == [Verdict.UNKNOWN]

    def test_assumptions_that_nobody_meets_are_unknown(self) -> None:
        results = {item.name: item.verdict for item in examined(dishonest.SeldomMet(), 1)}
        assert results == {"follows is total": Verdict.PROVED, "level has inputs": Verdict.UNKNOWN}

    def test_inputs_that_chance_finds_are_inputs(self) -> None:
        results = {item.name: item.verdict for item in examined(Assuming(), 1)}
        assert results == {"is_small is total": Verdict.PROVED, "score has inputs": Verdict.PROVED}


class TestEvaluator:
    """Values count as a counterexample only if they are values of the contract."""

    def evaluator(self, returned: str = "part.size - 5") -> Evaluator:
        text = f"from {__name__} import Part\n\n\ndef score(part: Part) -> int:\n    return {returned}\n"
        return Evaluator(Policy.from_source(text, Parts()))

    def test_only_values_of_the_domains_are_admitted(self) -> None:
        evaluator = self.evaluator()
        params = Parts().invariants[0].params
        inside: Arguments = {"part": {"size": 7, "level": 2}, "of": 0}
        assert evaluator.admissible(params, inside)
        for part in ({"size": 10, "level": 2}, {"size": 4, "level": 0}, {"size": 7, "level": 1}, {"size": 6, "level": 2},
                     {"size": 7, "level": 3}, {"size": 7, "level": -1}):  # fmt: skip
            assert not evaluator.admissible(params, {**inside, "part": part})
        for of in (-1, 101):
            assert not evaluator.admissible(params, {**inside, "of": of})

    def test_what_raises_does_not_hold(self) -> None:
        evaluator = self.evaluator()
        formula = Parts().invariants[0]
        raising: Arguments = {"part": {"size": 5, "level": 0}, "of": 0}
        assert not evaluator.holds(formula, raising)
        assert evaluator.holds(formula, {**raising, "part": {"size": 6, "level": 0}})
        assert not evaluator.holds(self.evaluator("-1").contract.invariants[0], raising)

    def test_values_that_break_nothing_are_no_counterexample(self) -> None:
        evaluator = self.evaluator()
        formula = Parts().invariants[0]
        for part in ({"size": 6, "level": 0}, {"size": 5, "level": 2}, {"size": 5, "level": 1}):
            with pytest.raises(EncoderBug):
                evaluator.counterexample(formula, {"part": part, "of": 0})
        for part in ({"size": 6, "level": 0}, {"size": 5, "level": 0}):
            with pytest.raises(EncoderBug):
                evaluator.fault_counterexample("score", {"part": part})
        faulty = self.evaluator("1 // (part.size - 5)")
        example = faulty.fault_counterexample("score", {"part": {"size": 5, "level": 0}})
        assert (example.reason, example.obligation) == (Reason.DIVISION, "score is safe")
        with pytest.raises(EncoderBug):
            faulty.fault_counterexample("score", {"part": {"size": 5, "level": 2}})

    def test_a_fault_within_an_invariant_is_one_of_a_decision(self) -> None:
        formula = Parts().invariants[0]
        faulty = self.evaluator("1 // (part.size - 5)")
        assert faulty.fault_within(formula, {"part": {"size": 5, "level": 0}, "of": 0}) is not None
        for part in ({"size": 6, "level": 0}, {"size": 5, "level": 2}):
            assert faulty.fault_within(formula, {"part": part, "of": 0}) is None
