"""Runs and deployments, for people."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from autopoiesis_lib.store import DeploymentRow, RunRow

__all__ = ["render_log", "render_run_list", "render_status"]


def render_run_list(runs: "Sequence[RunRow]") -> "list[RenderableType]":
    """Return a table with one line per run."""
    if not runs:
        return [Text("no runs yet; start one with `autopoiesis evolve`")]
    table = _table("run", "contract", "status", "seed", "started", "seconds")
    for row in runs:
        table.add_row(row.id, row.contract, row.status, str(row.seed), row.started_at, f"{row.spent_seconds:.1f}")
    return [table]


def render_status(document: Mapping[str, Any]) -> "list[RenderableType]":
    """Return the policies a channel wants, those each engine runs, and the latest actions on the channel."""
    wanted = document["active"]
    if wanted is None:
        line = "nothing was published yet"
    else:
        line = f"wanted: {_digest(wanted['digest'])} (publication {wanted['sequence']}) {wanted['note']}".rstrip()
    shown: list[RenderableType] = [Text(f"channel {document['channel']}: {line}")]
    for contract, notice in document["levers"].items():
        if notice is not None:
            shown.append(Text(f"{contract}: {_digest(notice['digest'])} (publication {notice['sequence']})"))
    if document["disabled"]:
        shown.append(Text("DISABLED: every engine serves its built-in rules", style="bold yellow"))
    if document["frozen"]:
        shown.append(Text("FROZEN: nothing new is published", style="bold yellow"))
    for digest, why in document["quarantined"].items():
        shown.append(Text(f"in quarantine: {digest[:12]} ({why})"))
    for where, problem in document["problems"].items():
        shown.append(Text(f"{where}: {problem}", style="bold red"))
    for problem in document["permissions"]:
        shown.append(Text(f"open to others: {problem}", style="bold yellow"))
    engines = document["engines"]
    if engines:
        table = _table("engine", "heard", "slot", "wanted", "runs", "T", "refused", "quarantined")
        for name, status in engines.items():
            heard = "now" if status["silent_since"] is None else f"silent since {_time(status['silent_since'])}"
            for slot, state in {"request-ordering": status, **status["levers"]}.items():
                aging = state.get("aging_us")
                idle = slot != "request-ordering" and not state["sequence"] and not state["refusal"]
                if not idle:
                    table.add_row(
                        name,
                        Text(heard, style="" if heard == "now" else "bold yellow"),
                        slot,
                        "" if not state["sequence"] else f"{_digest(state['wanted'])} ({state['sequence']})",
                        _digest(state["digest"]),
                        "" if aging is None else f"{aging:,} us",
                        Text(state["refusal"]),
                        ", ".join(str(digest)[:12] for digest in state["quarantined"]),
                    )
        shown.append(table)
        shown += _about_engines(engines)
    else:
        shown.append(Text("no engine watches this channel yet"))
    if document["log"]:
        shown.append(
            _log_table((row["at"], row["action"], row["policy_digest"], row["actor"]) for row in document["log"])
        )
    return shown


def _about_engines(engines: Mapping[str, Any]) -> "list[RenderableType]":
    """Return one line per engine about its version and order, and one for each restriction of it."""
    lines: list[RenderableType] = []
    for name, status in engines.items():
        if status["serves"]:
            lines.append(Text(f"{name}: {status['serves']}, its own order is {status['scheduling']}"))
        lines += [Text(f"{name}: warning: {what}", style="bold yellow") for what in status["warnings"]]
        lines += [Text(f"{name}: {contract} is off: {why}") for contract, why in status["off"].items()]
        lines += [Text(f"{name}: not covered: {what}") for what in status["uncovered"]]
        for slot, state in status["levers"].items():
            for event in ("oldest_preempted", "oldest_idle"):
                if state["counters"].get(event):
                    lines.append(Text(f"{name}: {slot}: {event} {state['counters'][event]} times; no proof covers it"))
    return lines


def render_log(rows: "Sequence[DeploymentRow]") -> "list[RenderableType]":
    """Return the audit log as a table."""
    if not rows:
        return [Text("nothing was done to this channel with this store yet")]
    return [_log_table((row.at, row.action, row.policy_digest, row.actor) for row in rows)]


def _log_table(rows: "Iterable[tuple[str, str, str | None, str]]") -> Table:
    table = _table("when", "what", "policy", "who")
    for at, action, digest, actor in rows:
        table.add_row(at, Text(action), _digest(digest), Text(actor))
    return table


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(min(seconds, 4e9), UTC).isoformat(timespec="seconds") if seconds else "ever"


def _digest(digest: str | None) -> str:
    return "built-in rule" if digest is None else digest[:12]


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in headings:
        table.add_column(heading)
    return table
