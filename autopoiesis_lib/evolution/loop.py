"""`evolve`: a search in generations, then certification of the best candidate and its measurement on held-out windows.

Generation g depends only on the seed and on the results through generation g-1 in id order. Equal seeds and candidate
budgets therefore give equal runs for any number of workers. Proposals are stored before they are evaluated, and
candidates as soon as their outcome is known. A killed run therefore resumes at the point where it stopped.
"""

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from ..contract import Contract
from ..gates.verdict import Reason
from ..policy import Policy
from ..protocol.text import printable
from ..redaction import HIDDEN
from ..store import CandidateRow, ProposalRow, RunRow, Store, StoreError
from ..synthesis.proposer import Context, Draft, Proposer
from ..synthesis.search import SearchProposer
from .archive import Archive, Elite
from .budget import Budget
from .compare import curves, improvement, pooled
from .errors import EvolutionError
from .evaluator import HIGHER_IS_BETTER, Evaluator, Measurement
from .executor import Executor
from .fingerprint import Probes
from .generation import Pace, evaluate
from .result import REJECTIONS, EvolutionResult, Progress
from .selection import MIGRATION_EVERY, select
from .starting import evaluator_of, executor_of
from .winner import answer, certified, steadiest_first
from .work import Measure, Reference, Setup
from .yardstick import Yardstick

__all__ = ["evolve"]

RESERVE = 0.1
"""Share of a time budget kept for held-out evaluation and certification (at least RESERVE_S, at most 60 s)."""
RESERVE_S = 4.0
MAX_WARM_START = 16
RUNNERS_UP = 2
MAX_REGRESSIONS = 64
"""Maximum number of stored counterexamples, newest first, that a candidate is tried on before its proof.

Without a limit the cost of a candidate would grow with the run. The proof finds the violations that these inputs miss.
"""


def evolve(
    contract: Contract,
    workload: object | None = None,
    proposer: Proposer | None = None,
    budget: Budget | None = None,
    *,
    seed: int = 0,
    workers: int | None = None,
    executor: Literal["local", "ray"] | Callable[[Setup], Executor] = "local",
    store: Store | str | Path | None = None,
    resume: str | None = None,
    objectives: Mapping[str, float] | None = None,
    warm_start: bool | Sequence[str] = False,
    certify: bool = True,
    progress: Callable[[Progress], None] | None = None,
) -> EvolutionResult:
    """Evolve a policy of a contract.

    Args:
        contract: the contract that every candidate must satisfy.
        workload: a `Workload`; a `Trace`, which is split in halves and served by the default calibration; an
            `Evaluator`; or None for the default workload.
        proposer: the source of candidates; `SearchProposer()` if None.
        budget: the limits of the run; 60 seconds if None.
        seed: the seed of the run; a resumed run uses its own.
        workers: the number of workers; the number of CPUs that this process may use if None.
        executor: "local", "ray", or a callable that returns an executor.
        store: an open store, a path or a URL.
        resume: the id of a run, or a prefix of it. Contract and workload must be the same. Its seed and objectives are
            used, and its budget unless `budget` is given.
        objectives: metric -> weight.
        warm_start: True to start from the store's certified policies of this contract, or policy texts to start from.
        certify: False to skip the certification of the winner.
        progress: a callable that receives the state of the run after every candidate.

    Ctrl-C ends the run with `KeyboardInterrupt` and leaves it resumable, as SIGKILL does.

    Raises:
        EvolutionError: the run cannot start, or no candidate could be certified.
        StoreError: the store cannot be used, or has no such run.
    """
    opened = store if isinstance(store, Store) else Store.open(store)
    try:
        evaluator = evaluator_of(contract, workload)
        run = _Run(
            contract,
            evaluator,
            proposer or SearchProposer(),
            budget,
            seed,
            opened,
            resume,
            objectives,
            warm_start,
            certify,
            progress,
        )
        return run.execute(executor_of(executor, workers, run.setup, run.budget.limits))
    finally:
        if not isinstance(store, Store):
            opened.close()


class _Run:
    """The state of a run in this process, all of which can be rebuilt from the store."""

    def __init__(
        self,
        contract: Contract,
        evaluator: Evaluator,
        proposer: Proposer,
        budget: Budget | None,
        seed: int,
        store: Store,
        resume: str | None,
        objectives: Mapping[str, float] | None,
        warm_start: bool | Sequence[str],
        certify: bool,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.started = self.searching_since = time.monotonic()
        """The start times. The budget's seconds count from `searching_since`.

        The start of workers and the compilation of the simulator are not charged.
        """
        self.contract, self.evaluator, self.proposer, self.store = contract, evaluator, proposer, store
        self.certify, self.progress = certify, progress
        self.workload = dict(evaluator.describe())
        self.notes: list[str] = []
        if resume is None:
            self.budget = budget or Budget(seconds=60.0)
            self.seed = seed
            self.objectives = dict(objectives or {"ttft_mean_us": 1.0})
            self.warm = self._warm_start(warm_start)
            self.id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
            self.spent_before = 0.0
            self.store.start_run(self._row())
        else:
            row = store.run(resume)
            self.id, self.seed, self.spent_before = row.id, row.seed, row.spent_seconds
            try:
                self._check_same(row)
                self.budget = budget or Budget.from_json(row.config["budget"])
                self.objectives = dict(row.config["objectives"])
                self.warm = list(row.config["warm_start"])
                self._note_withheld(row.config.get("proposer"))
            except (LookupError, TypeError, ValueError) as error:
                raise StoreError(
                    f"run {row.id}: its stored settings are damaged ({type(error).__name__}: {printable(error)}); "
                    "start a new run"
                ) from error
        if not self.objectives or min(self.objectives.values()) <= 0:
            raise EvolutionError("objectives: give at least one metric with a weight above 0")
        self.objective = max(self.objectives, key=lambda name: self.objectives[name])
        self.setup = Setup(contract=contract, evaluator=evaluator, objectives=self.objectives)
        self.typical = {
            name: Probes.of(contract, name, evaluator.probes(contract, name)).typical for name in contract.decisions
        }
        self.archive = Archive(self.budget.islands)
        self.pace = Pace()
        self.rejected = dict.fromkeys(REJECTIONS, 0)
        self.proposed = self.evaluated = self.generation = 0
        self.used = {"tokens": 0.0, "dollars": 0.0}
        """Tokens and dollars that the language models have used, as the proposals record them."""
        self.by_clock: list[int] = []
        """Ids of the candidates that were stopped by the wall-time limit."""

    def execute(self, executor: Executor) -> EvolutionResult:
        """Execute the whole run and return its result."""
        try:
            yardstick = Yardstick(executor, self.setup)
            self.searching_since = time.monotonic()
            self._search(executor, yardstick)
            executor.clear()
            result = self._finish(executor)
        except BaseException:
            self.store.update_run(self.id, status="interrupted", spent_seconds=self.spent)
            raise
        finally:
            executor.close()
        self.store.update_run(self.id, status="done", spent_seconds=self.spent, result=result.record())
        return result

    @property
    def spent(self) -> float:
        """Wall seconds of this and all earlier sessions, without the start-up of each."""
        return self.spent_before + time.monotonic() - self.searching_since

    @property
    def deadline(self) -> float | None:
        """The end of the search in monotonic seconds; None without a time budget."""
        if self.budget.seconds is None:
            return None
        reserve = min(60.0, max(RESERVE_S, RESERVE * self.budget.seconds), 0.5 * self.budget.seconds)
        return self.searching_since + self.budget.seconds - self.spent_before - reserve

    @property
    def _late(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def _search(self, executor: Executor, yardstick: Yardstick) -> None:
        proposals = self.store.proposals(self.id)
        committed = {row.id: row for row in self.store.candidates(self.id)}
        best_at, best_fitness = 0, float("inf")
        while True:
            mine = [row for row in proposals if row.generation == self.generation]
            if not mine:
                mine = [] if self.generation and self._late else self._propose(yardstick.reference)
                if not mine:
                    return
                self.store.propose(self.id, mine)
            self.proposed += len(mine)
            for name in self.used:
                self.used[name] += sum(float(row.details.get(name, 0)) for row in mine)
            regressions = self._regressions()
            rows = evaluate(
                mine,
                executor,
                fingerprints=self.archive.fingerprints,
                known=committed,
                reference=yardstick.reference,
                cutoffs=yardstick.cutoffs(self.archive),
                regressions=regressions,
                commit=self._committed,
                deadline=self.deadline,
                time_limit_s=None if self.deadline is None else self.pace.limit(self.budget.limits.wall_s),
                pace=self.pace,
            )
            by_id = {row.id: row for row in mine}
            for row in rows:
                if row.id in committed:
                    self._count(row)
                self.archive.add(by_id[row.id], row)
            examples = [_regression(row.counterexample) for row in rows if row.counterexample is not None]
            if examples:
                self.store.put_counterexamples(self.contract.digest, examples)
            self.generation += 1
            if self.generation % MIGRATION_EVERY == 0:
                self.archive.migrate()
            best = self.archive.best
            if best is not None and best.fitness < best_fitness * 0.999:
                best_at, best_fitness = self.generation, best.fitness
            self.store.update_run(self.id, status="running", spent_seconds=self.spent)
            if len(rows) < len(mine) or (self._late and not committed.keys() >= by_id.keys()):
                return  # results of an earlier session are used up even if no time is left
            if self.budget.patience is not None and self.generation - best_at >= self.budget.patience:
                self.notes.append(f"stopped early: no improvement in {self.budget.patience} generations")
                return

    def _propose(self, reference: Reference) -> list[ProposalRow]:
        first = self.proposed
        if self.generation == 0:
            seeds = [(f"baseline:{name}", text) for name, text in self.contract.baselines().items()]
            seeds += [("warm-start", text) for text in self.warm]
            if seeds:
                return [
                    ProposalRow(id=number, generation=0, source=text, move=move, island=number % self.budget.islands)
                    for number, (move, text) in enumerate(seeds)
                ]
        count = self.budget.generation_size
        if self.budget.candidates is not None:
            count = min(count, self.budget.candidates - first)
        if count <= 0:
            return []
        slots = select(self.archive, self.seed, self.generation, first, count)
        best = self.archive.best
        context = Context(
            contract=self.contract,
            seed=self.seed,
            generation=self.generation,
            best=None if best is None else best.parent(),
            explored=[f"{elite.descriptor} (fitness {elite.fitness:.3f})" for elite in self.archive.runners_up(8)],
            counterexamples=tuple(self.archive.counterexamples),
            workload=self.workload,
            typical=self.typical,
            objectives=self.objectives,
            reference=reference.scored,
            deadline_s=None if self.deadline is None else max(0.0, self.deadline - time.monotonic()),
            tokens_left=None if self.budget.tokens is None else self.budget.tokens - int(self.used["tokens"]),
            dollars_left=None if self.budget.dollars is None else self.budget.dollars - self.used["dollars"],
        )
        drafts = self.proposer.propose(context, slots)
        if len(drafts) != len(slots):
            raise EvolutionError(f"the proposer {self.proposer.name} gave {len(drafts)} drafts for {len(slots)} slots")
        return [self._proposal(slot.id, slot.island, draft) for slot, draft in zip(slots, drafts, strict=True)]

    def _proposal(self, number: int, island: int, draft: Draft) -> ProposalRow:
        return ProposalRow(
            id=number,
            generation=self.generation,
            source=draft.source,
            move=draft.move,
            island=island,
            parents=draft.parents,
            rationale=draft.rationale,
            details=draft.details,
        )

    def _committed(self, row: CandidateRow) -> None:
        self.store.commit(self.id, row)
        self._count(row)
        self._tell("search")

    def _count(self, row: CandidateRow) -> None:
        self._warn(row)
        if row.gate is None:
            self.evaluated += 1
        else:
            self.rejected[row.gate] = self.rejected.get(row.gate, 0) + 1

    def _warn(self, row: CandidateRow) -> None:
        """Record an outcome that the user must know about.

        A disagreement between a solver and CPython is a defect of this library. If the wall-time limit stopped a
        candidate, a repeated run may differ.
        """
        if row.reason == Reason.OWN_DEFECT:
            self.notes.append(f"candidate {row.id}: {row.detail}; please report it")
        if row.reason == Reason.TIME:
            self.by_clock.append(row.id)

    def _regressions(self) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        names = {formula.name for formula in self.contract.invariants}
        for example in reversed(self.store.counterexamples(self.contract.digest, newest=MAX_REGRESSIONS)):
            if example["obligation"] in names:
                found.setdefault(example["obligation"], []).append(example["arguments"])
        return found

    def _finish(self, executor: Executor) -> EvolutionResult:
        ranked = self._ranked(executor)
        certificate, best = (None, ranked[0]) if not self.certify else certified(executor, ranked, self.notes)
        self._tell("held-out")
        texts = {"": best.source, **self.contract.baselines()}
        measured: dict[str, Sequence[Measurement]] = {}
        for name, text in texts.items():
            measured[name] = answer(
                executor,
                Measure(source=text, window="held-out", samples=True),
                f"held-out windows failed for {name or 'the best'}",
            )
        ours = measured.pop("")
        baselines = {name: pooled(parts) for name, parts in measured.items()}
        default = next(iter(baselines), None)
        sign = -1.0 if self.objective in HIGHER_IS_BETTER else 1.0
        strongest = min(baselines, key=lambda name: sign * baselines[name][self.objective], default=None)
        policy = Policy.from_source(best.source, self.contract)
        self.store.put_policy(policy.digest, self.contract.contract_name, self.contract.digest, best.source)
        if certificate is not None:
            self.store.put_certificate(
                certificate.digest, policy.digest, self.contract.digest, certificate.payload().decode()
            )  # fmt: skip
        examples = self.archive.counterexamples
        note = getattr(self.proposer, "note", "")
        if note:
            self.notes.append(note)
        if self.by_clock:
            shown = ", ".join(str(number) for number in self.by_clock[:6]) + (", ..." if len(self.by_clock) > 6 else "")
            self.notes.append(
                f"{len(self.by_clock)} candidates ({shown}) were stopped by the clock: the same seed may give another run"
            )
        return EvolutionResult(
            run=self.id,
            contract=self.contract.contract_name,
            seconds=self.spent,
            proposed=self.proposed,
            rejected=self.rejected,
            evaluated=self.evaluated,
            objective=self.objective,
            best=policy,
            best_id=best.id,
            best_origin=best.move,
            runners_up=tuple(
                Policy.from_source(elite.source, self.contract)
                for elite in [elite for elite in ranked if elite.digest != policy.digest][:RUNNERS_UP]
            ),
            fitness=best.fitness,
            held_out=pooled(ours),
            baselines=baselines,
            improvement=None if default is None else improvement(self.objective, default, measured[default], ours),
            over_best_baseline=None
            if strongest is None
            else improvement(self.objective, strongest, measured[strongest], ours),
            certificate=certificate,
            counterexample=examples[-1] if examples else None,
            workload=self.workload,
            curves={name: curves(parts) for name, parts in ({"evolved": ours} | measured).items()},
            notes=tuple(self.notes),
        )

    def _ranked(self, executor: Executor) -> list[Elite]:
        """Return the best candidates, the winner first."""
        if self.archive.best is None:
            raise EvolutionError("no candidate passed the gates and was evaluated: give a larger budget")
        self._tell("certify")
        default = next(iter(self.contract.baselines().values()), None)
        return steadiest_first(self.archive, executor, self.objectives, default)

    def _warm_start(self, wanted: bool | Sequence[str]) -> list[str]:
        if wanted is True:
            return [source for _, source in self.store.certified(self.contract.digest)][-MAX_WARM_START:]
        return list(wanted) if wanted else []

    def _row(self) -> RunRow:
        return RunRow(
            id=self.id,
            contract=self.contract.contract_name,
            contract_digest=self.contract.digest,
            seed=self.seed,
            status="running",
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            config={
                "budget": self.budget.to_json(),
                "objectives": self.objectives,
                "warm_start": self.warm,
                "proposer": dict(self.proposer.describe()),
                "workload": self.workload,
            },
        )

    def _note_withheld(self, before: Any) -> None:
        """Add a note if the secrets of an endpoint's URL are missing in a resumed run.

        The store does not keep such secrets, so the user must give the whole URL again.
        """
        now = _json(dict(self.proposer.describe()))
        for name, kept in _texts((before or {}).get("base_url")):
            if HIDDEN in kept and name in (given := dict(_texts(now.get("base_url")))) and HIDDEN not in given[name]:
                self.notes.append(
                    f"this run began with the endpoint {kept}, whose secrets are not kept: give its whole URL again by "
                    "--base-url or AUTOPOIESIS_BASE_URL"
                )

    def _check_same(self, row: RunRow) -> None:
        if row.contract_digest != self.contract.digest:
            raise EvolutionError(
                f"run {row.id} was about another contract or version of it ({row.contract}); start a new run"
            )
        if row.config["workload"] != _json(self.workload):
            raise EvolutionError(f"run {row.id} was scored on another workload; resume it with the same one")

    def _tell(self, phase: str) -> None:
        if self.progress is None:
            return
        done = self.evaluated + sum(self.rejected.values())
        note = getattr(self.proposer, "note", "")
        self.progress(
            Progress(
                run=self.id, phase=phase, seconds=self.spent, done=done, total=self.budget.candidates,
                rejected=dict(self.rejected), best=self.archive.best, generation=self.generation, note=str(note),
            )
        )  # fmt: skip


def _regression(example: Mapping[str, Any]) -> dict[str, Any]:
    return {"obligation": example["obligation"], "arguments": example["arguments"]}


def _texts(value: Any) -> list[tuple[str, str]]:
    """Return the named texts of a setting that is either one text or one text per model."""
    pairs = value.items() if isinstance(value, Mapping) else [("", value)]
    return [(name, text) for name, text in pairs if isinstance(text, str)]


def _json(value: Any) -> Any:
    return json.loads(json.dumps(value))
