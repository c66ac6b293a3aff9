"""`autopoiesis evolve`: evolve a policy on traces."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from autopoiesis_cli.answer import DONE, INTERRUPTED, REFUSED, Answer, Json, answering, note, one_line, people
from autopoiesis_cli.options import (
    ContractArgument,
    ObjectiveOption,
    SettingsOption,
    StoreOption,
    contract_from,
    objectives_from,
)
from autopoiesis_cli.workloads import OVERLOAD, CalibrationOption, RateOption, TraceOption, evaluator_of, workload_of

if TYPE_CHECKING:
    from autopoiesis_lib.evolution import EvolutionResult, Progress
    from autopoiesis_lib.synthesis import Proposer

__all__ = ["evolve"]

DEFAULT_SECONDS = 60.0


@answering
def evolve(
    contract: ContractArgument,
    trace: TraceOption,
    proposer: Annotated[Literal["search", "llm"], typer.Option(help="Who writes candidates.")] = "search",
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="PROVIDER/NAME", help="A language model, with --proposer llm. May be repeated."),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="An OpenAI-compatible endpoint, with --proposer llm; default: AUTOPOIESIS_BASE_URL, which other users do not "
            "see in the list of processes.",
        ),
    ] = None,
    candidates: Annotated[int | None, typer.Option(min=1, help="Stop after this many candidates.")] = None,
    seconds: Annotated[
        float | None, typer.Option(min=1, help="Stop after this long; default 60, or none with --candidates.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed and --candidates: same winner.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; default: one a CPU.")] = None,
    executor: Annotated[Literal["local", "ray"], typer.Option(help="Where candidates are evaluated.")] = "local",
    calibration: CalibrationOption = None,
    rate: RateOption = OVERLOAD,
    store: StoreOption = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the winner goes; default: .autopoiesis/runs/RUN.")
    ] = None,
    resume: Annotated[str | None, typer.Option(metavar="RUN", help="Go on with an interrupted run.")] = None,
    objective: ObjectiveOption = None,
    settings: SettingsOption = None,
    json: Json = False,
) -> Answer:
    """Evolve a policy on real traffic; only a policy that is proved safe can win."""
    from autopoiesis_cli.rendering.evolution import render_result
    from autopoiesis_lib.evolution import Budget
    from autopoiesis_lib.evolution import evolve as run

    chosen = contract_from(contract, settings)
    writer = _proposer(proposer, model, base_url)
    limit = seconds if seconds is not None or candidates is not None else DEFAULT_SECONDS
    workloads = [workload_of(text, calibration, rate) for text in trace]
    for workload in workloads:
        note(f"workload {workload.describe()}")
    with _progress(limit, candidates) as progress:
        result = run(
            chosen,
            evaluator_of(chosen, workloads),
            writer,
            None
            if resume is not None and seconds is None and candidates is None
            else Budget(candidates=candidates, seconds=limit),
            seed=seed,
            workers=workers,
            executor=executor,
            store=store,
            resume=resume,
            objectives=objectives_from(objective),
            progress=progress,
        )
    result = result.write(out or Path(".autopoiesis") / "runs" / result.run)
    report = _write_report(result, store)
    better = result.improvement is None or result.improvement.better
    return Answer(
        document={
            **result.to_json(),
            "workload": [workload.to_dict() for workload in workloads],
            "claims": list(result.certificate.claims) if result.certificate is not None else [],
            "bounds": dict(result.certificate.bounds) if result.certificate is not None else {},
            "counterexample": result.counterexample,
            "report": report,
            "notes": list(result.notes),
        },
        shown=render_result(result, [workload.describe() for workload in workloads], report),
        code=DONE if better else REFUSED,
        error="" if better else "no candidate is better than the default beyond noise on held-out windows",
    )


def _proposer(kind: str, models: list[str] | None, base_url: str | None) -> "Proposer":
    from autopoiesis_lib.synthesis import ProposerError, SearchProposer

    if kind == "search":
        if models or base_url is not None:
            raise ProposerError("--model and --base-url go with --proposer llm")
        return SearchProposer()
    if not models:
        raise ProposerError("--proposer llm needs --model PROVIDER/NAME, such as openai/gpt-4.1-mini")
    from autopoiesis_lib.synthesis import LLMProposer

    return LLMProposer(dict.fromkeys(models, 1.0), base_url=base_url or os.environ.get("AUTOPOIESIS_BASE_URL") or None)


def _write_report(result: "EvolutionResult", store: str | None) -> str:
    from autopoiesis_lib.evolution.report import write_report
    from autopoiesis_lib.store import Store

    assert result.path is not None
    with closing(Store.open(store)) as opened:
        return str(write_report(opened, result.run, Path(result.path).with_name("report.html")))


@contextmanager
def _progress(seconds: float | None, candidates: int | None) -> "Iterator[Callable[[Progress], None]]":
    """Show progress on stderr, as a bar on a terminal and as lines elsewhere; on Ctrl-C, print how to resume."""
    from rich.progress import BarColumn, Progress as Bar, TextColumn, TimeElapsedColumn  # noqa: I001

    seen: list[Progress] = []
    every = max(1.0, (seconds or 60.0) / 12)
    said = [0.0]
    console = people(sys.stderr)
    total: float | None = float(candidates) if candidates is not None else seconds
    said_of = TextColumn("{task.fields[best]}", markup=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), said_of, TimeElapsedColumn())
    with Bar(*columns, console=console, disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("preparing", total=total, best="")

        def tell(progress: "Progress") -> None:
            seen[:] = [progress]
            line = one_line(_line(progress))
            bar.update(
                task,
                description=progress.phase,
                completed=progress.done if candidates is not None else progress.seconds,
                best=line,
            )
            if bar.disable and (progress.seconds >= said[0] + every or progress.phase != "search"):
                said[0] = progress.seconds
                note(f"{progress.seconds:6.1f} s  {progress.phase}: {line}")

        try:
            yield tell
        except KeyboardInterrupt:
            bar.stop()
            hint = f"; go on with --resume {seen[0].run}" if seen else ""
            note(f"error: interrupted{hint}")
            raise typer.Exit(INTERRUPTED) from None


def _line(progress: "Progress") -> str:
    best = "" if progress.best is None else f", best {progress.best.fitness:.3f} of the default ({progress.best.move})"
    words = f"; {progress.note}" if progress.note else ""
    return f"{progress.done} candidates, {sum(progress.rejected.values())} rejected{best}{words}"
