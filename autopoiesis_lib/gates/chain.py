"""The gates in order, cheapest first; the first that is not green ends the chain."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from ..binding import GATES
from ..contract import Contract
from ..language import LanguageError
from ..policy import Policy
from . import contracts, fuzz, proof, quick_fuzz, ranges, replay, types
from .claims import claims_of
from .counterexample import Arguments, Evaluator
from .solving import DEFAULT_RLIMIT
from .theorems import prove_theorems
from .trials import trials_of
from .verdict import GateReport, GateResult, Reason, Verdict, worst

__all__ = ["GATES", "check"]


def check(
    text_or_policy: str | Policy,
    contract: Contract,
    *,
    rlimit: int = DEFAULT_RLIMIT,
    gates: Sequence[str] = GATES,
    explain: bool = False,
    certify: bool = False,
    regressions: Mapping[str, Sequence[Arguments]] | None = None,
    on_gate: Callable[[GateResult], None] | None = None,
) -> GateReport:
    """Run a policy through the gates.

    `gates` selects some of `GATES`; the contract and the grammar are always checked. A report of fewer than all never counts as
    proved: its verdict is at most PASSED, and only all of them make a certificate. With `explain`, a policy refuted by a test
    still goes to the proof gate, which says more; with `certify`, the proof gate also keeps SMT-LIB texts, asks the second
    solver and says which assumptions were used. `regressions` are kept counterexamples, tried first. `on_gate` hears each
    result as it comes.

    Raises:
        EncoderBug: the solver and CPython disagree; report the policy.
    """
    started = time.perf_counter()
    results: list[GateResult] = []
    policy: Policy | None = None

    def add(result: GateResult) -> GateResult:
        results.append(result)
        if on_gate is not None:
            on_gate(result)
        return result

    sound = add(contracts.check(contract, rlimit)).verdict.green
    if not sound:
        pass
    elif isinstance(text_or_policy, Policy):
        if text_or_policy.contract.digest == contract.digest:
            policy = text_or_policy
            add(GateResult(name="grammar", verdict=Verdict.PASSED, seconds=0.0, detail="parsed"))
        else:
            detail = "the policy was read for another contract; read its text for this one"
            reason = Reason.CONTRACT
            add(GateResult(name="grammar", verdict=Verdict.INVALID, seconds=0.0, reason=reason, detail=detail))
    else:
        grammar, policy = _grammar(text_or_policy, contract)
        add(grammar)
    if policy is not None:
        for name, gate in _gates(policy, results, rlimit, regressions, certify):
            refuted = any(result.verdict is Verdict.REFUTED for result in results)
            stopped = not all(result.verdict.green for result in results)
            if name in gates and (not stopped or (explain and refuted and name == "proof")):
                add(gate())
    verdict = worst(*(result.verdict for result in results))
    if verdict is Verdict.PROVED and not set(GATES) <= {result.name for result in results}:
        verdict = Verdict.PASSED
    report = GateReport(
        contract=contract.contract_name,
        contract_digest=contract.digest,
        policy_digest=policy.digest if policy is not None else None,
        verdict=verdict,
        seconds=time.perf_counter() - started,
        gates=tuple(results),
    )
    if verdict is not Verdict.PROVED:
        return report
    report = report.model_copy(update={"theorems": prove_theorems(contract, rlimit)})
    return report.model_copy(update={"claims": claims_of(contract, report)})


def _grammar(text: str, contract: Contract) -> tuple[GateResult, Policy | None]:
    started = time.perf_counter()
    try:
        policy = Policy.from_source(text, contract)
    except LanguageError as error:
        return GateResult(
            name="grammar",
            verdict=Verdict(error.verdict),
            seconds=time.perf_counter() - started,
            reason=Reason.LANGUAGE,
            detail=str(error),
        ), None
    return GateResult(
        name="grammar", verdict=Verdict.PASSED, seconds=time.perf_counter() - started, detail="in the policy language"
    ), policy


def _gates(
    policy: Policy,
    results: Sequence[GateResult],
    rlimit: int,
    regressions: Mapping[str, Sequence[Arguments]] | None,
    certify: bool,
) -> Iterator[tuple[str, Callable[[], GateResult]]]:
    evaluator = Evaluator(policy)

    def bounds() -> dict[str, int]:
        return {
            item.name: item.least.value for result in results for item in result.obligations if item.least is not None
        }

    yield "types", partial(types.check, policy)
    yield "ranges", partial(ranges.check, policy, evaluator)
    yield "quick-fuzz", lambda: quick_fuzz.check(policy, evaluator, trials_of(policy.contract, regressions))
    yield "proof", partial(proof.check, policy, rlimit=rlimit, certify=certify)
    yield "fuzz", lambda: fuzz.check(policy, evaluator, bounds())
    yield "replay", lambda: replay.check(policy, bounds())
