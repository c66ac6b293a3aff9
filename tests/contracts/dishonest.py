"""Ill-formed and dishonest contracts, each with the verdict it deserves.

Those that cannot even be made are made by functions.
"""

import builtins
import linecache
from collections.abc import Callable, Mapping
from enum import IntEnum
from functools import wraps
from typing import Annotated, Any, ClassVar, Final

from pydantic import AfterValidator, Field

from autopoiesis_lib import Contract, Least, Theorem, View, assumption, decision, invariant, lemma
from autopoiesis_lib.view import Domain, FieldSpec

__all__ = ["MADE", "REFUSED", "THEOREMS", "Job", "method_of"]

Small = Annotated[int, Field(ge=-10, le=10)]
Size = Annotated[int, Field(ge=0, le=100)]


class Kind(IntEnum):
    """Two kinds of job."""

    LOW = 0
    HIGH = 1


class Job(View):
    """A job."""

    size: Size
    """How large it is."""
    kind: Kind
    """Its kind."""


class Base(Contract, name="base"):
    """One decision on one job, which is right to be a contract."""

    most: Size = 10
    """A limit."""

    @decision
    def score(self, job: Job) -> Small:
        """Any small integer."""
        raise NotImplementedError

    @invariant
    def larger_is_less(self, small: Job, large: Job, by: Annotated[Size, Least(limit="most")]) -> bool:
        """A job that is larger by enough never scores above another."""
        return large.size < small.size + by or self.score(large) <= self.score(small)


POLICY: Final = f"from {__name__} import Job\n\n\ndef score(job: Job) -> int:\n    return "
HONEST: Final = f"{POLICY}-(job.size // 10)\n"


# contracts that cannot be made


def no_decision() -> Contract:
    class Empty(Contract, name="empty"):
        pass

    return Empty()


def decision_without_result() -> Contract:
    class NoResult(Base):
        @decision
        def score(self, job: Job):  # type: ignore[no-untyped-def,override]
            raise NotImplementedError

    return NoResult()


def decision_with_unbounded_result() -> Contract:
    class Unbounded(Base):
        @decision
        def score(self, job: Job) -> int:
            raise NotImplementedError

    return Unbounded()


def decision_on_a_scalar() -> Contract:
    class OnScalar(Base):
        @decision
        def score(self, job: Size) -> Small:  # type: ignore[override]
            raise NotImplementedError

    return OnScalar()


def invariant_without_annotation() -> Contract:
    class Bare(Base):
        @invariant
        def bare(self, job: Job, other) -> bool:  # type: ignore[no-untyped-def]
            return self.score(job) <= self.score(other)

    return Bare()


def invariant_that_returns_int() -> Contract:
    class Counted(Base):
        @invariant
        def counted(self, job: Job) -> int:
            return self.score(job)

    return Counted()


def invariant_with_a_default() -> Contract:
    class Defaulted(Base):
        @invariant
        def defaulted(self, job: Job, least: Size = 5) -> bool:
            return self.score(job) >= least

    return Defaulted()


def invariant_as_staticmethod() -> Contract:
    class Static(Base):
        @staticmethod
        @invariant
        def holds(job: Job) -> bool:
            return job.size >= 0

    return Static()


def invariant_as_property() -> Contract:
    class Property(Base):
        @property
        @invariant
        def holds(self) -> bool:
            return True

    return Property()


def invariant_as_lambda() -> Contract:
    class Lambda(Base):
        holds = invariant(lambda self, job: True)

    return Lambda()


def invariant_that_is_wrapped() -> Contract:
    """Its source says one thing, and CPython runs another."""

    def always(function: Callable[..., bool]) -> Callable[..., bool]:
        @wraps(function)
        def wrapped(*arguments: Any) -> bool:
            return True

        return wrapped

    class Wrapped(Base):
        @invariant
        @always
        def holds(self, job: Job) -> bool:
            return self.score(job) >= 5

    return Wrapped()


def invariant_under_another_name() -> Contract:
    class Renamed(Base):
        holds = Base.larger_is_less

    return Renamed()


def invariant_that_closes_over_a_variable() -> Contract:
    least = 3

    class Closed(Base):
        @invariant
        def at_least(self, job: Job) -> bool:
            return self.score(job) >= least

    return Closed()


def invariant_that_closes_over_a_builtins_name() -> Contract:
    """CPython finds another `min` than a proof does."""

    def min(*values: int) -> int:  # noqa: A001
        return -10

    class Closed(Base):
        @invariant
        def at_least(self, job: Job) -> bool:
            return min(self.score(job), 0) >= -5

    return Closed()


def invariant_without_a_file() -> Contract:
    scope: dict[str, Any] = {"__name__": __name__, "Job": Job}
    exec("def said(self, job: Job) -> bool:\n    return self.score(job) <= 9\n", scope)

    class NoFile(Base):
        said = invariant(scope["said"])

    return NoFile()


def invariant_shadowed_without_a_mark() -> Contract:
    class Shadowed(Base):
        def larger_is_less(self, small: Job, large: Job, by: Size) -> bool:
            return True

    return Shadowed()


def invariant_shadowed_by_none() -> Contract:
    class Removed(Base):
        larger_is_less: ClassVar[Any] = None  # type: ignore[assignment]

    return Removed()


def invariant_shadowed_by_an_assumption() -> Contract:
    class Assumed(Base):
        @assumption
        def larger_is_less(self, small: Job, large: Job) -> bool:  # type: ignore[override]
            return True

    return Assumed()


def invariant_shadowed_by_a_parameter() -> Contract:
    class Field_(Base):  # noqa: N801
        larger_is_less: Size = 3  # type: ignore[assignment]

    return Field_()


def assumption_about_a_decision() -> Contract:
    class Circular(Base):
        @assumption
        def scores_well(self, job: Job) -> bool:
            return self.score(job) > 0

    return Circular()


def assumption_about_an_integer() -> Contract:
    """Nothing in a proof could be meant by it."""

    class OfInteger(Base):
        @assumption
        def few(self, job: Job, most: Size) -> bool:
            return job.size <= most

    return OfInteger()


def view_that_states_its_own_fields() -> Contract:
    """Its fields hold more than the proof is told."""

    class Lying(View):
        size: Size

        @classmethod
        def fields(cls) -> tuple[FieldSpec, ...]:
            return (FieldSpec("size", Domain(0, 0), ""),)

    class Lied(Base):
        @invariant
        def sized(self, lying: Lying) -> bool:
            return lying.size == 0

    return Lied()


def view_whose_mixin_states_its_fields() -> Contract:
    """As the one above, by inheritance."""

    class Mixin:
        @classmethod
        def fields(cls) -> tuple[FieldSpec, ...]:
            return (FieldSpec("size", Domain(0, 0), ""),)

    class Lying(Mixin, View):  # type: ignore[misc]
        size: Size

    class Lied(Base):
        @invariant
        def sized(self, lying: Lying, job: Job) -> bool:
            return lying.size == 0 and self.score(job) <= 9

    return Lied()


def enum_with_an_equality_of_its_own() -> Contract:
    """CPython would compare its members otherwise than a proof does."""

    class Odd(IntEnum):
        LOW = 0
        HIGH = 1

        def __ne__(self, other: object) -> bool:
            return True

    class Held(View):
        odd: Odd

    class Holds(Base):
        @invariant
        def held(self, held: Held) -> bool:
            return held.odd >= 0

    return Holds()


def decision_on_an_enum() -> Contract:
    class OnEnum(Base):
        @decision
        def score(self, kind: Kind) -> Small:  # type: ignore[override]
            raise NotImplementedError

    return OnEnum()


def invariant_with_an_argument_that_nothing_reads() -> Contract:
    class Bare(Base):
        @invariant
        def bare(self, job: Job, other) -> bool:  # type: ignore[no-untyped-def]
            return self.score(job) <= 9

    return Bare()


def least_limited_by_a_flag() -> Contract:
    class Flagged(Base):
        flag: bool = True

        @invariant
        def at_most(self, job: Job, bound: Annotated[Size, Least(limit="flag")]) -> bool:
            return self.score(job) <= bound

    return Flagged()


def least_of_a_flag() -> Contract:
    class Flagged(Base):
        one: Size = 1

        @invariant
        def at_most(self, job: Job, bound: Annotated[bool, Least(limit="one")]) -> bool:
            return self.score(job) <= bound

    return Flagged()


def least_with_two_limits() -> Contract:
    class Two(Base):
        one: Size = 1

        @invariant
        def at_most(self, job: Job, bound: Annotated[Size, Least(limit="most"), Least(limit="one")]) -> bool:
            return self.score(job) <= bound

    return Two()


def invariant_with_any_arguments() -> Contract:
    class Starred(Base):
        @invariant
        def small(self, *jobs: Job) -> bool:
            return True

    return Starred()


def invariant_with_a_keyword() -> Contract:
    class Keyed(Base):
        @invariant
        def small(self, *, job: Job) -> bool:
            return self.score(job) <= 9

    return Keyed()


def invariant_of_nobody() -> Contract:
    class Bare(Base):
        @invariant
        def small() -> bool:  # type: ignore[misc]
            return True

    return Bare()


def invariant_under_two_names() -> Contract:
    class Once(Base):
        @invariant
        def small(self, job: Job) -> bool:
            return self.score(job) <= 9

    class Twice(Once):
        little = Once.small

    return Twice()


def invariant_parameter_that_shadows_a_builtin() -> Contract:
    class Shadowing(Base):
        @invariant
        def small(self, job: Job, abs: Size) -> bool:  # noqa: A002
            return abs(self.score(job)) <= 9  # type: ignore[operator]

    return Shadowing()


def method_of(code: str, source: str, **names: object) -> Any:
    """Return a method that was compiled from one text, where its file now holds another one."""
    file = f"<{code} as {source}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    scope: dict[str, Any] = {"__name__": __name__, "Job": Job, **names}
    exec(compile(code, file, "exec"), scope)
    return invariant(scope["said"])


_SAID: Final = "def said(self, job: Job) -> bool:\n    return self.score(job) >= min(0, {})\n"


def method_that_sees_other_builtins() -> Contract:
    """`min` is another function only where this method looks it up."""
    text = _SAID.format(-5)
    said_ = method_of(text, text, __builtins__={**vars(builtins), "min": lambda *values: -10})

    class Replaced(Base):
        said = said_

    return Replaced()


def method_whose_file_has_changed() -> Contract:
    """Its file now states less than CPython runs."""
    said_ = method_of(_SAID.format(-5), _SAID.format(-10))

    class Changed(Base):
        said = said_

    return Changed()


def claim_that_shows_something_else() -> Contract:
    class Turned(Base):
        @invariant
        def small(self, job: Job) -> bool:
            """A job \u202e never scores high."""
            return self.score(job) <= 9

    return Turned()


def domain_that_is_no_interval() -> Contract:
    class Even(View):
        size: Annotated[int, Field(ge=0, le=100, multiple_of=2)]

    class Stepped(Base):
        @invariant
        def sized(self, even: Even) -> bool:
            return even.size != 1

    return Stepped()


def domain_that_is_validated() -> Contract:
    class Checked(View):
        size: Annotated[int, Field(ge=0, le=100), AfterValidator(abs)]

    class Validated(Base):
        @invariant
        def sized(self, checked: Checked) -> bool:
            return checked.size != 1

    return Validated()


def enum_without_members() -> Contract:
    Nothing = IntEnum("Nothing", {})  # noqa: N806

    class Held(View):
        nothing: Nothing  # type: ignore[valid-type]

    class Holds(Base):
        @invariant
        def held(self, held: Held) -> bool:
            return held.nothing == 0

    return Holds()


def digest_of_its_own() -> Contract:
    class Forged(Base):
        digest: ClassVar[str] = "0" * 64  # type: ignore[assignment]

    return Forged()


def no_invariants_after_all() -> Contract:
    class Emptied(Base):
        @property
        def invariants(self) -> tuple[Any, ...]:
            return ()

    return Emptied()


def parameter_that_is_called_digest() -> Contract:
    class Named(Base):
        digest: Size = 3  # type: ignore[assignment]

    return Named()


def invariant_that_is_called_baselines() -> Contract:
    class Named(Base):
        @invariant
        def baselines(self, job: Job) -> bool:  # type: ignore[override]
            return self.score(job) <= 9

    return Named()


def two_least() -> Contract:
    class TwoLeast(Base):
        @invariant
        def both(
            self, job: Job, one: Annotated[Size, Least(limit="most")], two: Annotated[Size, Least(limit="most")]
        ) -> bool:
            return self.score(job) <= one or job.size <= two

    return TwoLeast()


def least_of_one_name_twice() -> Contract:
    class SameLeast(Base):
        @invariant
        def again(self, job: Job, by: Annotated[Size, Least(limit="most")]) -> bool:
            return self.score(job) <= by

    return SameLeast()


def least_without_a_limit() -> Contract:
    class NoLimit(Base):
        @invariant
        def at_most(self, job: Job, bound: Annotated[Size, Least(limit="nothing")]) -> bool:
            return self.score(job) <= bound

    return NoLimit()


def least_in_an_assumption() -> Contract:
    class Assumed(Base):
        @assumption
        def at_most(self, job: Job, bound: Annotated[Size, Least(limit="most")]) -> bool:
            return job.size <= bound

    return Assumed()


def invariant_when_a_number_says_so() -> Contract:
    class Depends(Base):
        @invariant(when="most")
        def positive(self, job: Job) -> bool:
            return self.score(job) > 0

    return Depends()


def limit_beyond_its_domain() -> Contract:
    """No value of the parameter is as large as the limit, so nothing would be asked."""

    class Beyond(Base):
        @invariant
        def at_most(self, job: Job, bound: Annotated[int, Field(ge=0, le=5), Least(limit="most")]) -> bool:
            return self.score(job) <= bound

    return Beyond()


def aliased_view() -> Contract:
    """The invariant reads another view of the decision's name, with a smaller domain."""

    def narrow() -> type[View]:
        class Job(View):
            size: Annotated[int, Field(ge=0, le=0)]

        return Job

    Narrow: Any = narrow()  # noqa: N806

    class Aliased(Base):
        @invariant
        def never_negative(self, job: Narrow) -> bool:
            return self.score(job) >= 0

    return Aliased()


def aliased_view_of_an_assumption() -> Contract:
    """The assumption reads another view of the decision's name."""

    def narrow() -> type[View]:
        class Job(View):
            size: Annotated[int, Field(ge=0, le=0)]

        return Job

    Narrow: Any = narrow()  # noqa: N806

    class Aliased(Base):
        @assumption
        def is_small(self, job: Narrow) -> bool:
            return job.size == 0

    return Aliased()


def aliased_enum() -> Contract:
    """The invariant's enum has the name and the members of the view's, with other values."""
    Kind = IntEnum("Kind", {"LOW": 1, "HIGH": 0})  # noqa: N806

    class Aliased(Base):
        @invariant
        def high_scores(self, job: Job) -> bool:
            return job.kind != Kind.HIGH or self.score(job) > 0

    return Aliased()


def enum_of_the_module_under_a_views_name() -> Contract:
    """CPython finds another enum under the name than a proof does."""
    text = "def said(self, job: Job) -> bool:\n    return job.kind != Kind.HIGH or self.score(job) > 0\n"
    said_ = method_of(text, text, Kind=IntEnum("Kind", {"LOW": 1, "HIGH": 0}))

    class Aliased(Base):
        said = said_

    return Aliased()


def parameter_that_is_no_integer() -> Contract:
    class Worded(Base):
        word: str = "yes"

    return Worded()


def lemma_in_a_contract() -> Contract:
    class Misplaced(Base):
        @lemma
        def holds(self, job: Job) -> bool:
            return self.score(job) >= 0

    return Misplaced()


# theorems that cannot be stated


def with_theorem(theorem: object) -> Contract:
    class WithTheorem(Base):
        @classmethod
        def theorems(cls) -> tuple[type[Theorem], ...]:
            return (theorem,)  # type: ignore[return-value]

    return WithTheorem()


class State(View):
    """The state of some kernel."""

    n: Annotated[int, Field(ge=0, le=10)]
    """A count, declared to be small."""


class Counting(Theorem):
    """A counter that never decreases is never negative."""

    def init(self, s: State) -> bool:
        """It begins with 0."""
        return s.n == 0

    def step(self, s: State, t: State, by: Size) -> bool:
        """It grows."""
        return t.n == s.n + by

    def inductive(self, s: State) -> bool:
        """It is not negative."""
        return s.n >= 0

    def goal(self, s: State) -> bool:
        """It is not negative."""
        return s.n >= 0


def claim_without_obligations() -> Contract:
    class OnlyWords(Theorem):
        """No request is ever lost."""

    return with_theorem(OnlyWords)


def obligations_without_claim() -> Contract:
    class NoWords(Counting):
        pass

    return with_theorem(NoWords)


def goal_without_step() -> Contract:
    class OnlyGoal(Theorem):
        """No request is ever lost."""

        def goal(self, s: State) -> bool:
            return s.n == 0

    return with_theorem(OnlyGoal)


def step_without_goal() -> Contract:
    class NoGoal(Theorem):
        """No request is ever lost."""

        def init(self, s: State) -> bool:
            return s.n == 0

        def step(self, s: State, t: State) -> bool:
            return t.n == s.n

        def inductive(self, s: State) -> bool:
            return s.n == 0

    return with_theorem(NoGoal)


def system_without_init() -> Contract:
    class NoInit(Theorem):
        """No request is ever lost."""

        def step(self, s: State, t: State) -> bool:
            return t.n == s.n

        def inductive(self, s: State) -> bool:
            return s.n == 0

        def goal(self, s: State) -> bool:
            return s.n == 0

    return with_theorem(NoInit)


def system_without_step() -> Contract:
    """Its lemma is proved, and its goal is asked of nobody."""

    class NoStep_(Theorem):  # noqa: N801
        """No job is ever larger than 100."""

        @lemma
        def larger(self, small: Job, large: Job, by: Size) -> bool:
            fits = large.size >= small.size + by
            return not fits or self.policy.score(large) <= self.policy.score(small)  # type: ignore[no-any-return]

        def init(self, s: State) -> bool:
            return s.n == 0

        def inductive(self, s: State) -> bool:
            return s.n <= 100

        def goal(self, s: State) -> bool:
            return s.n <= 100

    return with_theorem(NoStep_)


def system_without_inductive() -> Contract:
    class NoInductive(Theorem):
        """The counter is never negative."""

        def init(self, s: State) -> bool:
            return s.n == 0

        def step(self, s: State, t: State) -> bool:
            return t.n == s.n

        def goal(self, s: State) -> bool:
            return s.n == 0

    return with_theorem(NoInductive)


def progress_without_ranking() -> Contract:
    class NoRanking(Counting):
        """Every request ends."""

        def progress(self, s: State, t: State) -> bool:
            return t.n > s.n

    return with_theorem(NoRanking)


def ranking_without_progress() -> Contract:
    class NoProgress(Counting):
        """Every request ends."""

        def ranking(self, s: State) -> int:
            return 10 - s.n

    return with_theorem(NoProgress)


def forgotten_mark() -> Contract:
    class Forgotten(Counting):
        """No request is ever lost."""

        def nothing_is_lost(self, job: Job) -> bool:
            return self.policy.score(job) >= 0  # type: ignore[no-any-return]

    return with_theorem(Forgotten)


def goal_that_is_a_value() -> Contract:
    class Valued(Counting):
        """No request is ever lost."""

        goal = True  # type: ignore[assignment]

    return with_theorem(Valued)


def inductive_over_an_input() -> Contract:
    """The property holds of each step's own input, and of no run: the next input is another one."""

    class OverInput(Counting):
        """The counter never exceeds any limit."""

        def step(self, s: State, t: State, by: Size) -> bool:
            return t.n == by

        def inductive(self, s: State, by: Size) -> bool:  # type: ignore[override]
            return s.n <= by

        def goal(self, s: State, by: Size) -> bool:  # type: ignore[override]
            return s.n <= by

    return with_theorem(OverInput)


def states_of_two_views() -> Contract:
    class Other(View):
        n: Size

    class TwoStates(Counting):
        """Nothing grows."""

        def inductive(self, s: Other) -> bool:  # type: ignore[override]
            return s.n >= 0

    return with_theorem(TwoStates)


def state_of_the_contract() -> Contract:
    """The contract's assumptions about its view would be assumed of the kernel's next state."""

    class OverJobs(Theorem):
        """No job is ever larger than 100."""

        def init(self, s: Job) -> bool:
            return s.size == 0

        def step(self, s: Job, t: Job) -> bool:
            return t.size == s.size + 1

        def inductive(self, s: Job) -> bool:
            return s.size <= 100

        def goal(self, s: Job) -> bool:
            return s.size <= 100

    return with_theorem(OverJobs)


def lemma_for_a_few_bounds() -> Contract:
    class Few(Theorem):
        """A larger job never scores above another, whatever the bound."""

        @lemma
        def larger(self, small: Job, large: Job, by: Annotated[int, Field(ge=0, le=3)]) -> bool:
            fits = large.size >= small.size + by
            return not fits or self.policy.score(large) <= self.policy.score(small)  # type: ignore[no-any-return]

    return with_theorem(Few)


def lemma_for_large_bounds() -> Contract:
    class Large(Theorem):
        """A larger job never scores above another, whatever the bound."""

        @lemma
        def larger(self, small: Job, large: Job, by: Annotated[int, Field(ge=3, le=100)]) -> bool:
            fits = large.size >= small.size + by
            return not fits or self.policy.score(large) <= self.policy.score(small)  # type: ignore[no-any-return]

    return with_theorem(Large)


def lemma_with_a_bound_of_another_kind() -> Contract:
    class Flagged(Base):
        @invariant
        def low(self, job: Job, idle: bool) -> bool:
            return not idle or self.score(job) <= 0

    class Kinds(Theorem):
        """A score is low."""

        @lemma
        def low(self, job: Job, idle: Annotated[int, Field(ge=0, le=1)]) -> bool:
            return idle == 0 or self.policy.score(job) <= 0  # type: ignore[no-any-return]

    class WithTheorem(Flagged):
        @classmethod
        def theorems(cls) -> tuple[type[Theorem], ...]:
            return (Kinds,)

    return WithTheorem()


def theorem_that_derives_from_nothing() -> Contract:
    class Derived:
        """A larger job never scores above another."""

        @lemma
        def larger(self, small: Job, large: Job, by: Size) -> bool:
            return large.size < small.size + by or self.policy.score(large) <= self.policy.score(small)  # type: ignore[attr-defined,no-any-return]

    return with_theorem(Derived)


def theorem_with_a_mark_of_a_contract() -> Contract:
    class Marked(Counting):
        """No request is ever lost."""

        @invariant
        def holds(self, job: Job) -> bool:
            return True

    return with_theorem(Marked)


def claim_of_a_theorem_that_shows_something_else() -> Contract:
    class Turned(Counting):
        """A counter \u202e is never negative."""

    return with_theorem(Turned)


def goal_with_a_mark() -> Contract:
    class MarkedGoal(Counting):
        """The counter is never negative."""

        @lemma
        def goal(self, s: State) -> bool:
            return s.n >= 0

    return with_theorem(MarkedGoal)


def step_with_one_state() -> Contract:
    class One(Counting):
        """The counter is never negative."""

        def step(self, s: State) -> bool:  # type: ignore[override]
            return s.n >= 0

    return with_theorem(One)


def system_over_integers() -> Contract:
    """Its states would have domains, which no step has to keep."""

    class Integers(Theorem):
        """The counter is never above 100."""

        def init(self, s: Size) -> bool:
            return s == 0

        def step(self, s: Size, t: Size) -> bool:
            return t == s + 1

        def inductive(self, s: Size) -> bool:
            return s <= 100

        def goal(self, s: Size) -> bool:
            return s <= 100

    return with_theorem(Integers)


def step_between_two_views() -> Contract:
    class Next(View):
        n: Size

    class Between(Counting):
        """The counter is never negative."""

        def step(self, s: State, t: Next, by: Size) -> bool:  # type: ignore[override]
            return t.n == s.n + by

    return with_theorem(Between)


def step_with_three_states() -> Contract:
    class Three(Counting):
        """The counter is never negative."""

        def step(self, s: State, t: State, by: State) -> bool:  # type: ignore[override]
            return t.n == s.n + by.n

    return with_theorem(Three)


def progress_with_an_input_of_its_own() -> Contract:
    class Own(Counting):
        """Every request ends."""

        def progress(self, s: State, t: State, other: Size) -> bool:
            return t.n < s.n

        def ranking(self, s: State) -> int:
            return s.n

    return with_theorem(Own)


def progress_with_an_input_of_another_domain() -> Contract:
    class Other(Counting):
        """Every request ends."""

        def step(self, s: State, t: State, amount: Size) -> bool:
            return t.n == s.n + amount

        def progress(self, s: State, t: State, amount: Small) -> bool:
            return t.n < s.n

        def ranking(self, s: State) -> int:
            return s.n

    return with_theorem(Other)


def progress_with_an_input_of_another_view() -> Contract:
    class Larger(Job):
        pass

    class Other(Counting):
        """Every request ends."""

        def step(self, s: State, t: State, by: Job) -> bool:  # type: ignore[override]
            return t.n == s.n + by.size

        def progress(self, s: State, t: State, by: Larger) -> bool:
            return t.n < s.n

        def ranking(self, s: State) -> int:
            return s.n

    return with_theorem(Other)


def theorem_that_is_none() -> Contract:
    return with_theorem(Job)


def theorem_that_is_an_instance() -> Contract:
    return with_theorem(Counting())


def theorem_over_another_view_of_a_name() -> Contract:
    """It is true of small jobs only, and reads as if it were of those of the contract."""

    def narrow() -> type[View]:
        class Job(View):
            size: Annotated[int, Field(ge=0, le=9)]

        return Job

    Narrow: Any = narrow()  # noqa: N806

    class Small_(Theorem):  # noqa: N801
        """Every job is small, or scores."""

        @lemma
        def small(self, job: Narrow) -> bool:
            return job.size <= 9 or self.policy.score(job) >= 0  # type: ignore[no-any-return]

    return with_theorem(Small_)


def two_theorems_of_one_name() -> Contract:
    class Twice(Base):
        @classmethod
        def theorems(cls) -> tuple[type[Theorem], ...]:
            return (Counting, Counting)

    return Twice()


REFUSED: Final[tuple[Callable[[], Contract], ...]] = (
    no_decision,
    decision_without_result,
    decision_with_unbounded_result,
    decision_on_a_scalar,
    invariant_without_annotation,
    invariant_that_returns_int,
    invariant_with_a_default,
    invariant_as_staticmethod,
    invariant_as_property,
    invariant_as_lambda,
    invariant_that_is_wrapped,
    invariant_under_another_name,
    invariant_that_closes_over_a_variable,
    invariant_that_closes_over_a_builtins_name,
    invariant_without_a_file,
    invariant_shadowed_without_a_mark,
    invariant_shadowed_by_none,
    invariant_shadowed_by_an_assumption,
    invariant_shadowed_by_a_parameter,
    assumption_about_a_decision,
    assumption_about_an_integer,
    view_that_states_its_own_fields,
    view_whose_mixin_states_its_fields,
    enum_with_an_equality_of_its_own,
    decision_on_an_enum,
    invariant_with_an_argument_that_nothing_reads,
    least_limited_by_a_flag,
    least_of_a_flag,
    least_with_two_limits,
    invariant_with_any_arguments,
    invariant_with_a_keyword,
    invariant_of_nobody,
    invariant_under_two_names,
    invariant_parameter_that_shadows_a_builtin,
    method_that_sees_other_builtins,
    method_whose_file_has_changed,
    claim_that_shows_something_else,
    domain_that_is_no_interval,
    domain_that_is_validated,
    enum_without_members,
    digest_of_its_own,
    no_invariants_after_all,
    parameter_that_is_called_digest,
    invariant_that_is_called_baselines,
    two_least,
    least_of_one_name_twice,
    least_without_a_limit,
    least_in_an_assumption,
    invariant_when_a_number_says_so,
    limit_beyond_its_domain,
    aliased_view,
    aliased_view_of_an_assumption,
    aliased_enum,
    enum_of_the_module_under_a_views_name,
    parameter_that_is_no_integer,
    lemma_in_a_contract,
    claim_without_obligations,
    obligations_without_claim,
    goal_without_step,
    step_without_goal,
    system_without_init,
    system_without_step,
    system_without_inductive,
    progress_without_ranking,
    ranking_without_progress,
    forgotten_mark,
    goal_that_is_a_value,
    inductive_over_an_input,
    states_of_two_views,
    state_of_the_contract,
    lemma_for_a_few_bounds,
    lemma_for_large_bounds,
    lemma_with_a_bound_of_another_kind,
    theorem_that_derives_from_nothing,
    theorem_with_a_mark_of_a_contract,
    claim_of_a_theorem_that_shows_something_else,
    goal_with_a_mark,
    step_with_one_state,
    system_over_integers,
    step_between_two_views,
    step_with_three_states,
    progress_with_an_input_of_its_own,
    progress_with_an_input_of_another_domain,
    progress_with_an_input_of_another_view,
    theorem_that_is_none,
    theorem_that_is_an_instance,
    theorem_over_another_view_of_a_name,
    two_theorems_of_one_name,
)
"""Contracts that raise `ContractError` when they are made."""


# contracts of which nothing may be proved


class Contradictory(Base):
    """Nothing meets both assumptions."""

    @assumption
    def is_small(self, job: Job) -> bool:
        """A job is small."""
        return job.size < 10

    @assumption
    def is_large(self, job: Job) -> bool:
        """A job is large."""
        return job.size > 10


class AssumesFalse(Base):
    """One assumption is a constant."""

    @assumption
    def never(self, job: Job) -> bool:
        """Nothing is so."""
        return 1 > 2


class AssumesOfItself(Base):
    """An assumption about two jobs is one about a job and itself, too."""

    @assumption
    def differ(self, one: Job, other: Job) -> bool:
        """Two jobs have different sizes."""
        return one.size != other.size


class AssumptionDivides(Base):
    """An assumption that raises for some job."""

    @assumption
    def divides(self, job: Job) -> bool:
        """A quotient is small."""
        return 100 // job.size <= 100


class AssumptionDividesByNothing(Base):
    """An assumption that raises for every job."""

    @assumption
    def divides(self, job: Job) -> bool:
        """A quotient is small."""
        return 100 // (job.size - job.size) <= 100


class AssumptionOverflows(Base):
    """An assumption that engines, which check it as machine code, would answer differently."""

    @assumption
    def large(self, job: Job) -> bool:
        """A product is not negative."""
        return job.size * 2**62 >= 0


class InvariantDivides(Base):
    """An invariant that raises where a policy answers 0."""

    @invariant
    def divides(self, job: Job) -> bool:
        """A quotient is small."""
        return 100 // self.score(job) <= 100


class InvariantIsTrue(Base):
    """An invariant that no policy can break."""

    @invariant
    def small(self, job: Job) -> bool:
        """What the domain says anyhow."""
        return self.score(job) <= 10


class InvariantBeyondDomain(Base):
    """An invariant whose premise no two jobs meet."""

    @invariant
    def far_apart(self, small: Job, large: Job) -> bool:
        """Nothing is so much larger."""
        return large.size < small.size + 101 or self.score(large) <= self.score(small)


class InvariantOfNoPolicy(Base):
    """An invariant that does not speak of decisions, and does not hold."""

    @invariant
    def sized(self, job: Job) -> bool:
        """Every job is small."""
        return job.size <= 99


class AssumptionGuards(Base):
    """An assumption that divides where it may."""

    @assumption
    def quotient(self, job: Job) -> bool:
        """A quotient is small, where there is one."""
        return job.size == 0 or 100 // job.size <= 100


MADE: Final[Mapping[type[Contract], str]] = {
    Contradictory: "VACUOUS",
    AssumesFalse: "VACUOUS",
    AssumesOfItself: "VACUOUS",
    AssumptionDivides: "INVALID",
    AssumptionDividesByNothing: "INVALID",
    AssumptionOverflows: "INVALID",
    InvariantDivides: "REFUTED",
    InvariantIsTrue: "VACUOUS",
    InvariantBeyondDomain: "VACUOUS",
    InvariantOfNoPolicy: "REFUTED",
}
"""Contracts under which an honest policy gets this verdict."""


# theorems that are stated, and do not hold


class BoundedByItsDomain(Counting):
    """The counter never exceeds 10."""

    def inductive(self, s: State) -> bool:
        """What the state's domain declares, and no step keeps."""
        return 0 <= s.n <= 10

    def goal(self, s: State) -> bool:
        """At most 10."""
        return s.n <= 10


class BoundedBefore(Counting):
    """The counter never exceeds 100."""

    def inductive(self, s: State) -> bool:
        """Kept only by steps from what the state's domain declares."""
        return s.n <= 100

    def step(self, s: State, t: State) -> bool:  # type: ignore[override]
        """It grows by one."""
        return t.n == s.n + 1

    def goal(self, s: State) -> bool:
        """At most 100."""
        return s.n <= 100


class NotInitial(Counting):
    """The counter is positive."""

    def inductive(self, s: State) -> bool:
        """Not so at the start."""
        return s.n >= 1

    def goal(self, s: State) -> bool:
        """Positive."""
        return s.n >= 1


class GoalDoesNotFollow(Counting):
    """The counter never exceeds 5."""

    def goal(self, s: State) -> bool:
        """At most 5."""
        return s.n <= 5


class GoalIsAnIdentity(Counting):
    """Whatever the counter is, it is that."""

    def goal(self, s: State) -> bool:
        """An identity."""
        return s.n - s.n == 0


class NoStart(Counting):
    """A kernel that has no initial state."""

    def init(self, s: State) -> bool:
        """Never so."""
        return s.n > 0 and s.n < 0


class NoStep(Counting):
    """A kernel that cannot move."""

    def step(self, s: State, t: State, by: Size) -> bool:
        """Never so."""
        return t.n == s.n + by and by > 100


class WrongRanking(Counting):
    """Every request ends."""

    def progress(self, s: State, t: State) -> bool:
        """A step forward."""
        return t.n > s.n

    def ranking(self, s: State) -> int:
        """Grows instead."""
        return s.n


class UnboundedRanking(Counting):
    """Every request ends."""

    def progress(self, s: State, t: State) -> bool:
        """A step forward."""
        return t.n > s.n

    def ranking(self, s: State) -> int:
        """Falls below every bound."""
        return -s.n


class NoProgressAtAll(Counting):
    """Every request ends."""

    def progress(self, s: State, t: State) -> bool:
        """Never so."""
        return t.n < s.n

    def ranking(self, s: State) -> int:
        """Falls on steps that there are not."""
        return s.n


class StepDivides(Counting):
    """The counter is never negative."""

    def step(self, s: State, t: State, by: Size) -> bool:
        """Grows by a quotient, which is no step where it raises."""
        return t.n == s.n + 100 // by


class RankingDivides(Counting):
    """Every request ends."""

    def progress(self, s: State, t: State) -> bool:
        """A step forward."""
        return t.n > s.n

    def ranking(self, s: State) -> int:
        """A quotient."""
        return 100 // s.n


class LemmaOfNothing(Theorem):
    """No request is ever lost."""

    @lemma
    def truth(self, job: Job) -> bool:
        """So of every policy, whatever the contract says."""
        return self.policy.score(job) <= 10  # type: ignore[no-any-return]


class InitDivides(Counting):
    """The counter is never negative."""

    def init(self, s: State) -> bool:
        """No start where it raises, and so none with a counter of 0."""
        return 100 // s.n >= 100


class LemmaOfTheDomain(Theorem):
    """No job is ever larger than 100."""

    @lemma
    def bounded(self, job: Job) -> bool:
        """As its view declares, whatever policy and kernel do."""
        return job.size <= 100


class LemmaTooStrong(Theorem):
    """A larger job never scores above another."""

    @lemma
    def larger(self, small: Job, large: Job) -> bool:
        """Stronger than the invariant, which knows a bound."""
        return large.size <= small.size or self.policy.score(large) <= self.policy.score(small)  # type: ignore[no-any-return]


class LemmaDivides(Theorem):
    """A quotient is small."""

    @lemma
    def quotient(self, job: Job) -> bool:
        """Raises where a policy answers 0."""
        return 100 // self.policy.score(job) <= 100  # type: ignore[no-any-return]


THEOREMS: Final[Mapping[type[Theorem], tuple[str, str]]] = {
    BoundedByItsDomain: ("BoundedByItsDomain: consecution", "REFUTED"),
    BoundedBefore: ("BoundedBefore: consecution", "REFUTED"),
    NotInitial: ("NotInitial: initiation", "REFUTED"),
    GoalDoesNotFollow: ("GoalDoesNotFollow: goal", "REFUTED"),
    GoalIsAnIdentity: ("GoalIsAnIdentity: goal", "VACUOUS"),
    NoStart: ("NoStart: initiation", "VACUOUS"),
    NoStep: ("NoStep: consecution", "VACUOUS"),
    WrongRanking: ("WrongRanking: ranking", "REFUTED"),
    UnboundedRanking: ("UnboundedRanking: ranking", "REFUTED"),
    NoProgressAtAll: ("NoProgressAtAll: ranking", "VACUOUS"),
    StepDivides: ("StepDivides: step is total", "REFUTED"),
    RankingDivides: ("RankingDivides: ranking", "REFUTED"),
    LemmaOfNothing: ("LemmaOfNothing.truth", "VACUOUS"),
    InitDivides: ("InitDivides: init is total", "REFUTED"),
    LemmaOfTheDomain: ("LemmaOfTheDomain.bounded", "VACUOUS"),
    LemmaTooStrong: ("LemmaTooStrong.larger", "REFUTED"),
    LemmaDivides: ("LemmaDivides.quotient", "REFUTED"),
}
"""Theorems, each with the lemma that fails and its verdict."""


class Pair(View):
    """Two numbers."""

    first: Annotated[int, Field(ge=0, le=10**9)]
    """One."""
    second: Annotated[int, Field(ge=0, le=10**9)]
    """The other."""


class SeldomMet(Contract, name="seldom-met"):
    """Assumptions that no random input meets, and some do."""

    @decision
    def level(self, pair: Pair, mod: Pair) -> Small:
        """Any small integer."""
        raise NotImplementedError

    @assumption
    def follows(self, pair: Pair) -> bool:
        """One of a million pairs."""
        return pair.first * 7_919 % 1_047_290 == 12_345 and pair.second == pair.first + 17

    @invariant
    def bounded(self, pair: Pair, mod: Pair, div: Small) -> bool:
        """It has names that SMT-LIB gives a meaning."""
        return self.level(pair, mod) <= 5 or div >= 5
