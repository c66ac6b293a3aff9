"""`autopoiesis calibrate`: fit the latency model to an engine's measurements, and report its error on unseen ones."""

from pathlib import Path
from typing import Annotated

import typer

from autopoiesis_cli.answer import Answer, Json, answering

__all__ = ["calibrate"]


@answering
def calibrate(
    requests: Annotated[
        Path, typer.Argument(metavar="FILE", help="Request timestamps in the vLLM run format (JSON lines).")
    ],
    total_blocks: Annotated[int, typer.Option(min=1, help="KV-cache blocks of the engine that was measured.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the calibration goes.")] = Path("calibration.json"),
    name: Annotated[str | None, typer.Option(help="What to call it; default: the file's name.")] = None,
    block_size: Annotated[int, typer.Option(min=1, help="Tokens in a block.")] = 16,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Requests that may run at once.")] = 256,
    max_num_batched_tokens: Annotated[int, typer.Option(min=1, help="Tokens in one step.")] = 2_048,
    json: Json = False,
) -> Answer:
    """Fit step times to the first half of measured requests, and report the errors on the other half."""
    from pydantic import ValidationError
    from rich.table import Table

    from autopoiesis_lib.simulation.calibration import CalibrationError, EngineConfig
    from autopoiesis_lib.simulation.fitting import MeasuredRequests
    from autopoiesis_lib.simulation.fitting import calibrate as fit

    try:
        engine = EngineConfig(
            total_blocks=total_blocks,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
        )
    except ValidationError as wrong:
        raise CalibrationError(f"the engine cannot be so: {wrong.errors()[0]['msg']}") from None
    found = fit(MeasuredRequests.read(requests), engine, name=name or out.stem, source=str(requests.name))
    out.parent.mkdir(parents=True, exist_ok=True)
    found.write(out)
    table = Table(title=f"{found.name}: {found.method}")
    table.add_column("measure")
    table.add_column("error on the unseen half", justify="right")
    for measure, relative in found.errors.items():
        table.add_row(measure, f"{relative:+.1%}")
    return Answer(
        document={"path": str(out), "calibration": found.model_dump(mode="json")},
        shown=[table, f"written to {out}; use it with --calibration {out}"],
    )
