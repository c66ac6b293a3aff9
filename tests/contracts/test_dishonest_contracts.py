"""A contract or theorem that is ill-formed or dishonest gets the verdict it deserves, and never a traceback or a claim."""

import copy
import pickle
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import pytest
from autopoiesis_contracts.admission import Admission
from autopoiesis_contracts.preemption import BoundedDisplacement, Preemption
from autopoiesis_contracts.request_ordering import BoundedBypass, Clock, Engine, RequestOrdering, Waiting
from pydantic import Field, ValidationError

from autopoiesis_lib import (
    Contract,
    ContractError,
    Policy,
    Rejected,
    Theorem,
    Verdict,
    View,
    decision,
    invariant,
    verify,
)
from autopoiesis_lib.certificate import CertificateError
from autopoiesis_lib.gates import check, proof
from autopoiesis_lib.gates.fuzz import solved
from autopoiesis_lib.gates.theorems import prove_theorem
from autopoiesis_lib.units import Micros
from tests.contracts import dishonest
from tests.contracts.dishonest import HONEST, MADE, POLICY, REFUSED, THEOREMS, Base, Counting, method_of, with_theorem


class TestDefinition:
    @pytest.mark.parametrize("made", REFUSED, ids=lambda made: made.__name__)
    def test_a_contract_that_says_two_things_cannot_be_made(self, made: Callable[[], Contract]) -> None:
        with pytest.raises(ContractError) as raised:
            made()
        assert "\n" not in str(raised.value) and str(raised.value).isprintable()

    @pytest.mark.parametrize(
        "name",
        ["assumptions", "decisions", "digest", "interface", "invariants", "model_copy", "model_post_init", "parameters",
         "stand_in", "stated", "theorem_formulas", "views"],
    )  # fmt: skip
    def test_a_name_that_gates_rely_on_is_not_the_authors(self, name: str) -> None:
        body = {"__module__": __name__, "__annotations__": {name: ClassVar[Any]}, name: lambda *_: None}
        with pytest.raises(ContractError, match=f"the library defines `{name}`"):
            assert type(Base)("Forged", (Base,), body)().digest

    @pytest.mark.parametrize(
        "source",
        [
            "def said(self, one: Job, two: Job) -> bool:\n    return self.score(one) > one.size * 2 - 99\n",
            "def said(self, one: Job, two: Job) -> bool:\n    return self.score(one) >= one.size * 3 - 99\n",
            "def said(self, one: Job, two: Job) -> bool:\n    return self.score(one) >= one.kind * 2 - 99\n",
            "def said(self, two: Job, one: Job) -> bool:\n    return self.score(one) >= one.size * 2 - 99\n",
            "def other(self, one: Job, two: Job) -> bool:\n    return self.score(one) >= one.size * 2 - 99\n",
            "async def said(self, one: Job, two: Job) -> bool:\n    return self.score(one) >= one.size * 2 - 99\n",
            "class said:\n    size: int = 3\n",
            "said = 3\n",
            "said = )\n",
            "\n",
        ],
    )
    def test_a_method_whose_file_says_otherwise_is_refused(self, source: str) -> None:
        run = "def said(self, one: Job, two: Job) -> bool:\n    return self.score(one) >= one.size * 2 - 99\n"
        for text in (run, source):
            contract = type(Base)("Said", (Base,), {"__module__": __name__, "said": method_of(run, text)})
            if text is run:
                assert contract().digest
            else:
                with pytest.raises(ContractError, match="source"):
                    contract()

    def test_a_method_whose_file_has_its_arguments_the_other_way_round_is_refused(self) -> None:
        run = "def said(self, one: Job, two: Job) -> bool:\n    return self.score(one) * 2 >= two.size - 120\n"
        turned = "def said(self, two: Job, one: Job) -> bool:\n    return self.score(two) * 2 >= one.size - 120\n"
        with pytest.raises(ContractError, match="source"):
            type(Base)("Said", (Base,), {"__module__": __name__, "said": method_of(run, turned)})()

    @pytest.mark.parametrize("name", ["abs", "bool", "int", "max", "min", "range"])
    def test_a_module_that_rebinds_a_builtin_has_no_formulas(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        class Fresh(Base):
            pass

        monkeypatch.setattr(dishonest, name, lambda *values: 0, raising=False)
        with pytest.raises(ContractError, match=f"gives `{name}` another meaning"):
            Fresh()

    def test_the_honest_contract_is_made_and_its_policy_proved(self) -> None:
        report = check(HONEST, Base())
        assert report.verdict is Verdict.PROVED
        assert report.least() == {"larger_is_less": 0}


class TestVerdicts:
    @pytest.mark.parametrize("contract", MADE, ids=lambda contract: contract.__name__)
    def test_an_honest_policy_gets_what_its_contract_deserves(self, contract: type[Contract]) -> None:
        report = check(HONEST, contract())
        assert report.verdict == MADE[contract], report.failed
        assert report.claims == () and report.failed is not None and report.failed.detail

    @pytest.mark.parametrize("contract", MADE, ids=lambda contract: contract.__name__)
    def test_the_proof_gate_alone_agrees(self, contract: type[Contract]) -> None:
        result = proof.check(Policy.from_source(HONEST, contract()))
        assert result.verdict == MADE[contract], result.detail

    @pytest.mark.parametrize("contract", MADE, ids=lambda contract: contract.__name__)
    def test_no_certificate_is_made(self, contract: type[Contract]) -> None:
        with pytest.raises(Rejected):
            verify(Policy.from_source(HONEST, contract()))

    def test_a_division_by_nothing_is_not_safe_where_nothing_can_be(self) -> None:
        text = f"{POLICY}100 // (job.size - job.size)\n"
        for contract in (dishonest.Contradictory(), dishonest.AssumesFalse()):
            assert check(text, contract).verdict is Verdict.VACUOUS
            assert proof.check(Policy.from_source(text, contract)).verdict is Verdict.VACUOUS

    def test_an_invariant_that_raises_is_broken_and_the_example_replays(self) -> None:
        contract = dishonest.InvariantDivides()
        never_zero = f"{POLICY}-1 - job.size // 20\n"
        assert check(never_zero, contract).verdict is Verdict.PROVED
        report = check(HONEST, contract)
        example = report.counterexample
        assert example is not None and not isinstance(example.arguments["job"], int)
        assert example.arguments["job"]["size"] < 10

    def test_a_guarded_division_is_as_good_as_any(self) -> None:
        assert check(HONEST, dishonest.AssumptionGuards()).verdict is Verdict.PROVED

    def test_assumptions_that_chance_does_not_meet_are_met_by_z3(self) -> None:
        text = f"from {dishonest.__name__} import Pair\n\n\ndef level(pair: Pair, mod: Pair) -> int:\n    return "
        certificate = verify(Policy.from_source(f"{text}min(5, pair.first)\n", dishonest.SeldomMet()))
        assert certificate.single_solver == ()
        [found, *rest] = solved(dishonest.SeldomMet(), dishonest.SeldomMet().invariants[0].params, 5)
        assert len(rest) == 4 and found not in rest
        assert check(f"{text}min(6, pair.first)\n", dishonest.SeldomMet()).verdict is Verdict.REFUTED


class TestTheorems:
    @pytest.mark.parametrize("theorem", THEOREMS, ids=lambda theorem: theorem.__name__)
    def test_one_that_does_not_hold_gets_its_verdict(self, theorem: type[Theorem]) -> None:
        name, verdict = THEOREMS[theorem]
        found = {item.name: item.verdict for item in prove_theorem(with_theorem(theorem), theorem)}
        assert found[name] == verdict, found

    @pytest.mark.parametrize("theorem", THEOREMS, ids=lambda theorem: theorem.__name__)
    def test_one_that_does_not_hold_is_not_claimed(self, theorem: type[Theorem]) -> None:
        contract = with_theorem(theorem)
        report = check(HONEST, contract)
        assert not any((theorem.__doc__ or "").rstrip(".") in claim for claim in report.claims)
        with pytest.raises(CertificateError, match=theorem.__name__):
            verify(Policy.from_source(HONEST, contract))

    def test_one_that_holds_is_claimed(self) -> None:
        contract = with_theorem(Counting)
        assert "A counter that never decreases is never negative" in check(HONEST, contract).claims
        assert verify(Policy.from_source(HONEST, contract)).theorems[0].proved


class ForgetsAge(BoundedBypass):
    """A kernel whose views hold any wait at all."""

    def step(
        self,
        s: BoundedBypass.State,
        t: BoundedBypass.State,
        picked: Waiting,
        r: Waiting,
        engine: Engine,
        aging: Micros,
        now: Clock,
        stamp: Clock,
        picked_is_earlier: bool,
        first: bool,
        by_arrival: bool,
    ) -> bool:
        """A pick by score, where waits have nothing to do with stamps."""
        counts = stamp <= s.r_stamp + s.aging
        taken = 1 if counts else 0
        return (
            t.r_stamp == s.r_stamp
            and t.aging == s.aging
            and t.present == s.present
            and self.policy.score(picked, engine) > self.policy.score(r, engine)
            and aging <= s.aging
            and s.unpicked >= taken
            and t.unpicked == s.unpicked - taken
            and t.picked == s.picked + taken
            and t.late_arrivals == s.late_arrivals
            and t.outside == s.outside + 1 - taken
        )


class OlderBound(BoundedBypass):
    """A T that a swap to a policy with a larger bound does not raise."""

    def step(
        self,
        s: BoundedBypass.State,
        t: BoundedBypass.State,
        picked: Waiting,
        r: Waiting,
        engine: Engine,
        aging: Micros,
        now: Clock,
        stamp: Clock,
        picked_is_earlier: bool,
        first: bool,
        by_arrival: bool,
    ) -> bool:
        """As the kernel's, whatever the active policy's bound."""
        counts = stamp <= s.r_stamp + s.aging
        taken = 1 if counts else 0
        waits = r.waited_us == now - s.r_stamp and picked.waited_us == now - stamp
        return (
            t.r_stamp == s.r_stamp
            and t.aging == s.aging
            and t.present == s.present
            and waits
            and stamp >= s.r_stamp
            and self.policy.score(picked, engine) > self.policy.score(r, engine)
            and s.unpicked >= taken
            and t.unpicked == s.unpicked - taken
            and t.picked == s.picked + taken
            and t.late_arrivals == s.late_arrivals
            and t.outside == s.outside + 1 - taken
        )


class TestBoundedBypass:
    """Z3 proves the sentence that is claimed, and nothing without the policy, T or the stamps."""

    @pytest.mark.parametrize("theorem", [ForgetsAge, OlderBound])
    def test_a_kernel_without_stamps_or_without_the_swap_breaks_it(self, theorem: type[Theorem]) -> None:
        verdicts = {item.name: item.verdict for item in prove_theorem(RequestOrdering(), theorem)}
        assert verdicts[f"{theorem.__name__}: consecution"] is Verdict.REFUTED

    def test_it_does_not_follow_without_the_aging_invariant(self) -> None:
        class Free(RequestOrdering):
            @invariant
            def ages(self, older: Waiting, newer: Waiting, engine: Engine) -> bool:  # type: ignore[override]
                """Nothing of age."""
                return self.score(older, engine) >= 0

        verdicts = {item.name: item.verdict for item in prove_theorem(Free(), BoundedBypass)}
        assert verdicts["BoundedBypass: consecution"] is Verdict.REFUTED


class TestMeaning:
    """A contract answers for what its fields hold now."""

    def test_a_copy_with_another_parameter_is_another_contract(self) -> None:
        first = RequestOrdering()
        assert first.invariants[0].least and first.digest  # used before it is copied
        copied = first.model_copy(update={"max_aging_us": 1})
        fresh = RequestOrdering(max_aging_us=1)
        assert copied.digest == fresh.digest != first.digest
        assert copied.invariants[0].least and copied.invariants[0].least.least_limit == 1
        text = RequestOrdering.baselines()["shortest-prompt-aging"]
        assert check(text, copied).verdict is Verdict.REFUTED

    def test_a_copy_is_validated(self) -> None:
        assert RequestOrdering(max_aging_us=7).model_copy() == RequestOrdering(max_aging_us=7)
        for update in ({"max_aging_us": -1}, {"tea": 1}):
            with pytest.raises(ValidationError):
                RequestOrdering().model_copy(update=update)

    @pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, lambda item: pickle.loads(pickle.dumps(item))])
    def test_no_copy_keeps_an_older_meaning(self, copier: Callable[[Contract], Contract]) -> None:
        first = Admission()
        assert first.digest
        other = copier(first)
        object.__setattr__(other, "__dict__", {**other.__dict__, "block_size": 32})
        assert other.digest == Admission(block_size=32).digest != first.digest
        assert copier(first).digest == first.digest

    def test_a_default_is_validated_and_a_plain_integer(self) -> None:
        class Largest(int):
            def __ge__(self, other: object) -> bool:
                return True

        class Derived(Base):
            least: dishonest.Size = Largest(3)

        class Beyond(Base):
            least: dishonest.Size = 101

        assert type(Derived().least) is int
        with pytest.raises(ValidationError):
            Beyond()

    def test_true_and_one_are_two_parameters(self) -> None:
        class One(Base):
            flag: bool = True

        class Other(Base):
            flag: Annotated[int, Field(ge=0, le=1)] = 1

        assert One().digest != Other().digest


def contract_of(largest: int = 100, most: int = 50, comment: bool = False, claim: str = "It grows.") -> Contract:
    """Return a contract whose texts are always the same and whose domains are not."""

    class Only(View):
        size: Annotated[int, Field(ge=0, le=largest)]

    class Kernel(View):
        n: Annotated[int, Field(ge=0, le=9)]

    class Job(View):
        size: Annotated[int, Field(ge=0, le=100)]

    Part: Any = Annotated[int, Field(ge=0, le=most)]  # noqa: N806

    class Grows(Theorem):
        def init(self, s: Kernel) -> bool:
            return s.n == 0

        def step(self, s: Kernel, t: Kernel, by: Part) -> bool:
            return t.n == s.n + by

        def inductive(self, s: Kernel) -> bool:
            return s.n >= 0

        def goal(self, s: Kernel) -> bool:
            return s.n >= 0

    Grows.__doc__ = claim

    class Stated(Contract, name="stated"):
        @decision
        def score(self, job: Job) -> Annotated[int, Field(ge=0, le=9)]:
            raise NotImplementedError

        if comment:

            @invariant
            def enough(self, job: Job, only: Only) -> bool:
                """It scores."""
                # The same statement, in another layout.
                return (
                    self.score(job)
                    >= only.size - 100
                )  # fmt: skip
        else:

            @invariant
            def enough(self, job: Job, only: Only) -> bool:
                """It scores."""
                return self.score(job) >= only.size - 100

        @classmethod
        def theorems(cls) -> tuple[type[Theorem], ...]:
            return (Grows,)

    return Stated()


class TestDigest:
    @pytest.mark.parametrize(
        "change",
        [{"largest": 101}, {"most": 51}, {"claim": "It never shrinks."}],
        ids=["a view of an invariant alone", "an input of a theorem", "a theorem's claim"],
    )
    def test_every_part_of_the_meaning_counts(self, change: dict[str, Any]) -> None:
        assert contract_of(**change).digest != contract_of().digest

    def test_layout_and_comments_do_not(self) -> None:
        assert contract_of(comment=True).digest == contract_of().digest

    def test_what_a_theorem_inherits_counts(self) -> None:
        class First(Counting):
            """The counter is never negative."""

        class Slower(Counting):
            """A counter that never decreases is never negative."""

            def step(self, s: dishonest.State, t: dishonest.State, by: dishonest.Size) -> bool:
                """It stands still or grows by one."""
                return t.n == s.n + min(by, 1)

        def inheriting(base: type[Theorem]) -> type[Theorem]:
            return type("Inherits", (base,), {"__doc__": "One claim.", "__module__": __name__})

        one, other = (with_theorem(inheriting(base)).digest for base in (First, Slower))
        assert one != other


def test_every_lemma_of_bounded_displacement_speaks_of_the_policy() -> None:
    verdicts = [item.verdict for item in prove_theorem(Preemption(), BoundedDisplacement)]
    assert verdicts == [Verdict.PROVED] * 5
