"""`autopoiesis trace`: inspect a trace, or convert it to another format."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from autopoiesis_cli.answer import Answer, Json, answering
from autopoiesis_cli.workloads import read_trace

if TYPE_CHECKING:
    from autopoiesis_lib.simulation import Trace

__all__ = ["app"]

app = typer.Typer(help="Look at traces and convert them.", no_args_is_help=True)

Format = Literal["azure", "mooncake", "vllm-run", "openai", "autopoiesis"]
_PERCENTILES = (50, 90, 99)


@app.command("inspect")
@answering
def inspect(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A trace file, or the name of a shipped one such as azure-conv.")
    ],
    json: Json = False,
) -> Answer:
    """Show how many requests a trace has, how fast they arrive, how long they are, and what they share."""
    from autopoiesis_cli.rendering.simulation import render_trace

    trace = read_trace(file)
    facts = facts_of(trace)
    return Answer(document=facts, shown=render_trace(facts))


@app.command("convert")
@answering
def convert(
    source: Annotated[str, typer.Argument(metavar="FROM", help="A trace file, or the name of a shipped one.")],
    target: Annotated[Path, typer.Argument(metavar="TO", help="The new file; gzipped when it ends in .gz.")],
    to: Annotated[Format, typer.Option("--to", help="The new format.")] = "autopoiesis",
    rate: Annotated[float, typer.Option(metavar="FACTOR", help="Make requests arrive this much faster.")] = 1.0,
    skip_malformed: Annotated[
        bool, typer.Option("--skip-malformed", help="Leave malformed rows out instead of stopping.")
    ] = False,
    json: Json = False,
) -> Answer:
    """Write a trace in another format; the format of FROM is recognised."""
    from rich.text import Text

    from autopoiesis_lib.simulation import Trace

    trace = Trace.read(source, on_malformed="skip") if skip_malformed else read_trace(source)
    written = trace if rate == 1.0 else trace.scaled(rate)
    written.write(target, format=to)
    skipped = f", {trace.skipped_rows} malformed rows left out" if trace.skipped_rows else ""
    return Answer(
        document={
            "path": str(target),
            "format": to,
            "requests": len(written),
            "skipped_rows": trace.skipped_rows,
            "rate_factor": rate,
        },
        shown=[Text(f"wrote {len(written):,} requests to {target} ({to}{skipped})")],
    )


def facts_of(trace: "Trace") -> dict[str, Any]:
    """Return a trace in numbers; lengths in tokens, gaps between arrivals in seconds."""
    import numpy as np

    def spread(values: Any) -> dict[str, float]:
        if not len(values):
            return {}
        quantiles = np.percentile(values, _PERCENTILES)
        return {
            "mean": float(np.mean(values)),
            **{f"p{p}": float(q) for p, q in zip(_PERCENTILES, quantiles, strict=True)},
            "max": float(np.max(values)),
        }

    gaps = np.diff(trace.arrival_us) / 1e6
    _, per_second = np.unique(trace.arrival_us // 1_000_000, return_counts=True)
    prefixes = trace.prefixes
    return {
        "name": trace.name,
        "source": trace.source,
        "requests": len(trace),
        "duration_s": trace.duration_s,
        "rate_rps": trace.rate,
        "peak_second": int(per_second.max(initial=0)),
        "arrival_gap_cv": float(gaps.std() / gaps.mean()) if len(gaps) and gaps.mean() > 0 else None,
        "num_prompt_tokens": spread(trace.num_prompt_tokens),
        "num_output_tokens": spread(trace.num_output_tokens),
        "max_tokens": spread(trace.max_tokens),
        "priorities": sorted({int(value) for value in np.unique(trace.priority)}),
        "prefix_blocks": None
        if prefixes is None
        else {
            "entries": len(prefixes.ids),
            "distinct": len(np.unique(prefixes.ids)),
            "tokens_each": prefixes.block_tokens,
        },
    }
