"""A wall-clock limit on the gates that holds even inside a solver: they run in a process that can be killed."""

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from autopoiesis_lib.environment import only_clean_environment_inherited

if TYPE_CHECKING:
    from autopoiesis_lib import Contract
    from autopoiesis_lib.gates import GateReport, GateResult

__all__ = ["OutOfTime", "check_within"]

READY = "ready"


class OutOfTime(Exception):
    """A time limit that passed."""


def check_within(
    seconds: float, text: str, contract: "Contract", certify: bool, on_gate: "Callable[[GateResult], None]"
) -> "GateReport":
    """Run `gates.check` in a separate process that is killed after `seconds` (its start-up is not counted).

    Raises:
        OutOfTime: it was killed, or died; `on_gate` was called for each finished gate.
    """
    from autopoiesis_lib.gates import GateReport, GateResult

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    worker = context.Process(target=_work, args=(theirs, text, contract, certify), daemon=True)
    with only_clean_environment_inherited():
        worker.start()
    theirs.close()
    try:
        ours.recv()
        end = time.monotonic() + seconds
        while ours.poll(max(0.0, end - time.monotonic())):
            match ours.recv():
                case GateResult() as gate:
                    on_gate(gate)
                case GateReport() as report:
                    return report
                case Exception() as error:
                    raise error
        raise OutOfTime
    except EOFError:
        raise OutOfTime from None
    finally:
        worker.kill()
        worker.join()
        ours.close()


def _work(connection: Connection, text: str, contract: "Contract", certify: bool) -> None:
    from autopoiesis_lib.errors import AutopoiesisError
    from autopoiesis_lib.gates import check

    connection.send(READY)
    try:
        connection.send(check(text, contract, explain=True, certify=certify, on_gate=connection.send))
    except AutopoiesisError as error:
        connection.send(error)
