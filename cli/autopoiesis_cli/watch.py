"""`autopoiesis watch`: the control plane of a channel, and the commands with which a person controls it."""

import logging
import re
import signal
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autopoiesis_cli.answer import Answer, Json, answering, note, person
from autopoiesis_cli.keys import (
    DEFAULT_KEYS,
    FolderOption,
    KeyOption,
    UnsignedOption,
    channel_at,
    signing_channel,
    signing_key,
)
from autopoiesis_cli.options import ObjectiveOption, SettingsOption, StoreOption, contract_from, objectives_from
from autopoiesis_cli.workloads import CalibrationOption, read_engine
from autopoiesis_lib.protocol.text import printable

if TYPE_CHECKING:
    from autopoiesis_lib.online.rollout import Rollout
    from autopoiesis_lib.online.state import RolloutState
    from autopoiesis_lib.protocol.channel import Channel
    from autopoiesis_lib.store import Store

__all__ = ["approve", "freeze", "quarantine", "release", "unfreeze", "watch"]

ChannelOption = Annotated[Path, typer.Option("--channel", metavar="DIR", help="The directory that the engines watch.")]


@answering
def watch(
    channel: ChannelOption,
    contract: Annotated[str, typer.Option("--contract", metavar="NAME", help="The policy type.")] = "request-ordering",
    store: StoreOption = None,
    calibration: CalibrationOption = None,
    window: Annotated[float, typer.Option(min=1, help="Seconds of telemetry in a window.")] = 300.0,
    evolve_window: Annotated[
        float | None, typer.Option(min=1, help="Seconds of telemetry to evolve on; default: a window.")
    ] = None,
    known: Annotated[
        list[Path] | None,
        typer.Option(
            "--known",
            metavar="FILE",
            help="A policy to try as soon as work has changed, before evolving; may be repeated.",
        ),
    ] = None,
    known_first: Annotated[
        bool,
        typer.Option(
            "--known-first/--no-known-first",
            help="Let a known policy (given, certified, or a baseline) answer a change at once if one is better.",
        ),
    ] = True,
    idle: Annotated[
        bool,
        typer.Option(
            "--idle",
            help="Take only CPU time that nobody else on this machine wants (Linux), and rest while requests wait.",
        ),
    ] = False,
    back_to_back: Annotated[
        bool, typer.Option("--back-to-back", help="Evolve on every new window, drift or not.")
    ] = False,
    evolve_first: Annotated[
        bool, typer.Option("--evolve-first", help="Answer the first requests as a change, before there was any drift.")
    ] = False,
    objective: ObjectiveOption = None,
    min_requests: Annotated[
        int, typer.Option(min=2, help="Requests a window needs before anything is concluded from it.")
    ] = 60,
    false_alarm_rate: Annotated[
        float,
        typer.Option(min=0.003, max=0.5, help="Greatest probability of a false drift alarm in the time of a window."),
    ] = 0.01,
    seconds: Annotated[float, typer.Option(min=1, help="Budget of one evolution.")] = 60.0,
    candidates: Annotated[int | None, typer.Option(min=1, help="Budget of one evolution, in candidates.")] = None,
    canary: Annotated[float, typer.Option(min=1, help="Seconds a canary decides before it is judged.")] = 120.0,
    canary_channel: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Canaries decide only on the engines that watch this directory."),
    ] = None,
    require_approval: Annotated[
        bool, typer.Option("--require-approval", help="Nothing decides before `deploy approve`.")
    ] = False,
    key: KeyOption = None,
    keys: FolderOption = DEFAULT_KEYS,
    allow_unsigned: UnsignedOption = False,
    allow_single_solver: Annotated[
        bool,
        typer.Option(
            "--allow-single-solver", help="Publish proofs that only one solver finished; engines must allow it too."
        ),
    ] = False,
    state: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where windows are kept and remembered; default: CHANNEL/controller."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the first evolution; each has its own.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; default: one a CPU.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Stop after this many looks at the channel.")] = None,
    settings: SettingsOption = None,
    json: Json = False,
) -> Answer:
    """Watch engines, evolve when their work changes, and roll out what is proved and better. Runs until it is
    stopped."""
    from autopoiesis_lib.evolution import Budget
    from autopoiesis_lib.evolution.priority import give_way
    from autopoiesis_lib.online.controller import Controller
    from autopoiesis_lib.online.drift import DriftSettings
    from autopoiesis_lib.online.settings import WatchSettings
    from autopoiesis_lib.policy import Policy
    from autopoiesis_lib.protocol.permissions import permission_problems
    from autopoiesis_lib.store import Store

    own = signing_key(key, keys, allow_unsigned)
    there = channel_at(channel, keys, own, allow_unsigned)
    canaries = None if canary_channel is None else channel_at(canary_channel, keys, own, allow_unsigned)
    if idle:
        give_way()
    _log_to_stderr()
    for problem in permission_problems(there.root, keys):
        note(f"warning: {problem}")
    chosen = contract_from(contract, settings)
    model, engine = read_engine(calibration)
    how = WatchSettings(
        window_s=window,
        evolve_window_s=evolve_window,
        known_first=known_first,
        back_to_back=back_to_back,
        evolve_first=evolve_first,
        drift=DriftSettings(false_alarm_rate=false_alarm_rate, min_requests=min_requests),
        objectives=objectives_from(objective) or WatchSettings().objectives,
        budget=Budget(candidates=candidates, seconds=seconds),
        seed=seed,
        workers=workers,
        give_way=idle,
        canary_s=canary,
        allow_single_solver=allow_single_solver,
    )
    with closing(Store.open(store)) as opened:
        rollout = _rollout(opened, there, contract, "watch", canaries, require_approval)
        with Controller(
            chosen,
            rollout,
            opened,
            model.model_copy(update={"engine": engine}),
            state or channel / "controller",
            how,
            known=[Policy.from_file(path, chosen) for path in known or ()],
        ) as controller:
            controller.run(_stop_after(rounds))
            standing = rollout.state
            drift = controller.lookout.last_drift
    return _answer(channel, standing, {"drift": None if drift is None else drift.to_json()})


class _Printable(logging.Formatter):
    """A formatter of lines for a terminal: control characters are printed as escapes."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record's text; a traceback keeps its lines."""
        return printable(super().format(record), allowed="\n" if record.exc_info else "")


def _log_to_stderr() -> None:
    """Log one line per action to stderr.

    Other records (the rows of the audit log) are for handlers configured elsewhere.
    """
    logger = logging.getLogger("autopoiesis.online")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_Printable("%(asctime)s %(message)s"))
        logger.addHandler(handler)
    logging.getLogger("autopoiesis").setLevel(logging.INFO)


@answering
def approve(
    channel: ChannelOption,
    digest: Annotated[str | None, typer.Argument(metavar="[DIGEST]", help="Default: the one that waits.")] = None,
    keys: FolderOption = DEFAULT_KEYS,
    store: StoreOption = None,
    json: Json = False,
) -> Answer:
    """Say yes to the policy that waits for approval."""
    return _say(channel_at(channel, keys, allow_unsigned=True), store, lambda rollout: rollout.approve(digest))


@answering
def freeze(
    channel: ChannelOption,
    why: Annotated[str, typer.Option("--note", help="Why, for people.")] = "",
    key: KeyOption = None,
    keys: FolderOption = DEFAULT_KEYS,
    allow_unsigned: UnsignedOption = False,
    store: StoreOption = None,
    json: Json = False,
) -> Answer:
    """Publish nothing new on a channel; what runs goes on running."""
    there = signing_channel(channel, key, keys, allow_unsigned)
    return _say(there, store, lambda rollout: rollout.freeze(why), lambda there: there.freeze(why))


@answering
def unfreeze(
    channel: ChannelOption,
    key: KeyOption = None,
    keys: FolderOption = DEFAULT_KEYS,
    allow_unsigned: UnsignedOption = False,
    store: StoreOption = None,
    json: Json = False,
) -> Answer:
    """Allow new policies again."""
    there = signing_channel(channel, key, keys, allow_unsigned)
    return _say(there, store, lambda rollout: rollout.unfreeze(), lambda there: there.unfreeze())


@answering
def release(
    digest: Annotated[str, typer.Argument(metavar="DIGEST", help="The policy's digest, or how it begins.")],
    channel: ChannelOption,
    key: KeyOption = None,
    keys: FolderOption = DEFAULT_KEYS,
    allow_unsigned: UnsignedOption = False,
    store: StoreOption = None,
    json: Json = False,
) -> Answer:
    """Take a policy out of quarantine, so that it may be proposed again."""
    there = signing_channel(channel, key, keys, allow_unsigned)
    whole = _whole_digest(there, digest)
    return _say(there, store, lambda rollout: rollout.release(whole), lambda there: there.release(whole))


@answering
def quarantine(
    digest: Annotated[str, typer.Argument(metavar="DIGEST", help="The policy's digest, or how it begins.")],
    channel: ChannelOption,
    why: Annotated[str, typer.Option("--note", help="Why, for people.")] = "",
    key: KeyOption = None,
    keys: FolderOption = DEFAULT_KEYS,
    allow_unsigned: UnsignedOption = False,
    store: StoreOption = None,
    json: Json = False,
) -> Answer:
    """Keep a policy out of every engine of a channel; one that runs it drops it at once."""
    there = signing_channel(channel, key, keys, allow_unsigned)
    whole, reason = _whole_digest(there, digest), why or "a person put it there"
    return _say(
        there,
        store,
        lambda rollout: rollout.quarantine(whole, reason),
        lambda there: there.quarantine(whole, reason),
        _slot_of(there, whole),
    )


def _say(
    channel: "Channel",
    store: str | None,
    what: "Callable[[Rollout], RolloutState]",
    order: "Callable[[Channel], object] | None" = None,
    contract: str = "request-ordering",
) -> Answer:
    """Apply a person's command. An order of the channel is given even if there is no store for its log entry."""
    from dataclasses import replace

    from autopoiesis_lib.online.state import RolloutState, Stage
    from autopoiesis_lib.protocol.channel import ChannelError
    from autopoiesis_lib.store import Store, StoreError

    try:
        opened = Store.open(store)
    except StoreError as error:
        if order is None:
            raise
        order(channel)
        note(f"warning: ordered, and not logged: {error}")
        orders = channel.known_orders()
        assert orders is not None
        return _answer(
            channel.root, RolloutState(frozen=orders.frozen, quarantined=dict(orders.quarantined)), {"logged": False}
        )
    with closing(opened):
        rollout = _rollout(opened, channel, contract, f"{person()} (command line)")
        state, notice = what(rollout), None
        with suppress(ChannelError):
            notice = channel.read(contract)
    if notice is not None and state.stage is Stage.IDLE:
        state = replace(
            state, active=notice.decides
        )  # a control plane may not have adopted yet what a person published
    return _answer(channel.root, state, {})


def _whole_digest(channel: "Channel", prefix: str) -> str:
    """Return the whole digest of a published policy from a prefix; a whole digest need not have been published."""
    from autopoiesis_lib.protocol.channel import ChannelError

    if re.fullmatch("[0-9a-f]{64}", prefix):
        return prefix
    known = channel.known_orders()
    found = {path.stem for path in (channel.root / "policies").glob("*.py")} | set(known.quarantined if known else ())
    matching = sorted(digest for digest in found if prefix and digest.startswith(prefix))
    if len(matching) != 1:
        raise ChannelError(
            f"{'several policies begin' if matching else 'no policy begins'} with {prefix!r} on {channel.root}"
        )
    return matching[0]


def _slot_of(channel: "Channel", digest: str) -> str:
    """Return the policy type in whose slot a policy stands; request ordering if it is in no slot."""
    from autopoiesis_lib.protocol.channel import LEVERS, ORDERING, ChannelError

    for contract in (ORDERING, *LEVERS):
        with suppress(ChannelError):
            notice = channel.read(contract)
            if notice is not None and digest in (notice.digest, notice.base):
                return contract
    return ORDERING


def _rollout(
    store: "Store",
    channel: "Channel",
    contract: str,
    actor: str,
    canary: "Channel | None" = None,
    require_approval: bool = False,
) -> "Rollout":
    from autopoiesis_lib.online.rollout import Rollout

    return Rollout(
        store,
        channel,
        contract=contract,
        actor=actor,
        canary_channel=canary,
        require_approval=require_approval,
    )


def _stop_after(rounds: int | None) -> Any:
    """Return a function that is true after SIGTERM, and after a number of rounds if one is given."""
    asked: list[bool] = []
    signal.signal(signal.SIGTERM, lambda _number, _frame: asked.append(True))
    done = iter(range(rounds)) if rounds is not None else None
    return lambda: bool(asked) or (done is not None and next(done, None) is None)


def _answer(channel: Path, state: "RolloutState", more: dict[str, Any]) -> Answer:
    from rich.text import Text

    document = {
        "channel": str(channel),
        "stage": str(state.stage),
        "candidate": state.candidate,
        "active": state.active,
        "frozen": state.frozen,
        "quarantined": dict(state.quarantined),
        **more,
    }
    candidate = f", {state.candidate[:12]} in {state.stage}" if state.candidate is not None else ""
    frozen = ", frozen" if state.frozen else ""
    return Answer(
        document=document, shown=[Text(f"{channel}: active {(state.active or 'built-in')[:12]}{candidate}{frozen}")]
    )
