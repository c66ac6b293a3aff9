"""`autopoiesis report`: a run as one self-contained HTML page."""

from pathlib import Path
from typing import Annotated

import typer

from autopoiesis_cli.answer import Answer, Json, answering
from autopoiesis_cli.options import StoreOption

__all__ = ["report"]


@answering
def report(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="A run's id, or its beginning; without it runs are listed.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page; default: .autopoiesis/runs/RUN/report.html.")
    ] = None,
    store: StoreOption = None,
    json: Json = False,
) -> Answer:
    """Lineage, score over time, Pareto front, latency distributions, the winner with its diff and claims."""
    from rich.text import Text

    from autopoiesis_cli.rendering.runs import render_run_list
    from autopoiesis_lib.evolution.report import write_report
    from autopoiesis_lib.store import Store

    opened = Store.open(store)
    try:
        if run is None:
            runs = opened.runs()
            return Answer(
                document={
                    "runs": [
                        {
                            "run": row.id,
                            "contract": row.contract,
                            "status": row.status,
                            "seed": row.seed,
                            "started_at": row.started_at,
                        }
                        for row in runs
                    ]
                },
                shown=render_run_list(runs),
            )
        row = opened.run(run)
        target = out or Path(".autopoiesis") / "runs" / row.id / "report.html"
        write_report(opened, row.id, target)
    finally:
        opened.close()
    return Answer(document={"run": row.id, "report": str(target)}, shown=[Text(f"report: {target}")])
