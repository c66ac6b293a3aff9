"""Isolation: a library function in a child process with limits, for foreign material and for work that may never end.

The child has limits on memory, processor time and files. It sees no variable that may be a secret, and inherits no open
file. It is killed with all processes it started when it has answered or its time is over. Importing this module loads
no solver, and waiting for a child releases the GIL, so an engine may call it from a thread.
"""

import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from importlib import import_module
from math import ceil
from pathlib import Path
from typing import Final

from .environment import clean_environment
from .errors import AutopoiesisError
from .protocol.text import printable

__all__ = [
    "SOLVING",
    "VERIFYING",
    "Limits",
    "NotProved",
    "SandboxError",
    "SandboxProblem",
    "run_isolated",
    "verify_isolated",
]


class SandboxProblem(StrEnum):
    """The reason why a child gave no valid answer."""

    NOT_STARTED = "not-started"
    TIMEOUT = "timeout"
    """A child that still ran when its wall-clock or processor time was over."""
    CRASHED = "crashed"
    """A child that ended without an answer, or was killed by another process."""
    MEMORY = "memory"
    """A child that exceeded its memory limit."""
    TOO_LARGE = "too-large"
    """An answer larger than the limit."""
    MALFORMED = "malformed"
    """Output that is no answer."""
    FAILED = "failed"
    """An `AutopoiesisError` that was raised in the child; the detail is its message."""


class SandboxError(AutopoiesisError):
    """A child process that gave no valid answer; `problem` says why."""

    def __init__(self, problem: SandboxProblem, detail: str) -> None:
        super().__init__(detail)
        self.problem = problem


class NotProved(AutopoiesisError):
    """A policy that did not pass the gates in a child process."""

    def __init__(self, verdict: str, gate: str, detail: str, report: bytes) -> None:
        super().__init__(f"{verdict}: {gate}: {detail}")
        self.verdict, self.gate, self.detail = verdict, gate, detail
        self.report = report
        """The `GateReport`, with verdicts and counterexamples, as JSON."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Resource limits of a child."""

    seconds: float
    """Seconds until the child is killed."""
    memory: int = 6 << 30
    """Bytes of address space."""
    file_bytes: int = 0
    """Greatest size of any file that it writes; 0 means that it can write none."""
    open_files: int = 256
    answer_bytes: int = 16 << 20
    niceness: int = 10


SOLVING: Final = Limits(seconds=120, memory=4 << 30)
"""Limits for solving the texts of a certificate."""
VERIFYING: Final = Limits(seconds=120, file_bytes=256 << 20)
"""Limits for all gates: mypy and compiled code are kept in files."""

_LENGTH: Final = 8
"""Number of bytes before an answer that hold its length."""
_ANSWER, _FAILED, _NO_MEMORY = b"A", b"F", b"M"
_LAST_WORDS: Final = 4_096
"""Number of bytes of a child's error stream that are kept."""
_CHILD: Final = "from autopoiesis_lib.sandbox import serve; serve()"


def run_isolated(function: str, payload: bytes, limits: Limits) -> bytes:
    """Return the answer of a function from bytes to bytes, run in a child process.

    Args:
        function: an importable function of this library, as `module:name`.
        payload: its argument.
        limits: the child's limits.

    Raises:
        SandboxError: there is no answer within the limits, or the function raised an `AutopoiesisError`.
    """
    command = [sys.executable, "-P", "-B", "-c", _CHILD, function, json.dumps(asdict(limits))]
    with ExitStack() as cleanup:
        try:
            folder = cleanup.enter_context(
                tempfile.TemporaryDirectory(prefix="autopoiesis-", ignore_cleanup_errors=True)
            )
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=folder,
                env=_environment(folder),
                start_new_session=True,
            )
        except OSError as error:
            detail = f"no child process can be started: {error.strerror or error}"
            raise SandboxError(SandboxProblem.NOT_STARTED, detail) from None
        cleanup.enter_context(process)
        cleanup.callback(_kill, process)
        return _Exchange(process, payload, limits).answer()


def _environment(folder: str) -> dict[str, str]:
    """Return the child's variables; `folder` is its own, for temporary files."""
    found = {**clean_environment(), "TMPDIR": folder, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    # An empty or relative part of a path would mean the child's own folder.
    parts = [str(Path(part).absolute()) for part in found.pop("PYTHONPATH", "").split(os.pathsep) if part]
    return {**found, "PYTHONPATH": os.pathsep.join(parts)} if parts else found


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill a child that was not waited for, and all processes it started; its process id is not reused until then."""
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def verify_isolated(
    source: str, contract: str, parameters: Mapping[str, int | bool], *, seconds: float = VERIFYING.seconds
) -> bytes:
    """Run all gates on a policy in a child process and return the payload of the new certificate.

    Args:
        source: the policy's text.
        contract: the name of an installed contract.
        parameters: the contract's parameters.
        seconds: time until the child is killed.

    Raises:
        NotProved: a gate was not green.
        SandboxError: there is no answer within the limits, or no such contract.
    """
    asked = json.dumps({"source": source, "contract": contract, "parameters": dict(parameters)}).encode()
    answer = run_isolated("autopoiesis_lib.certificate:verify_here", asked, replace(VERIFYING, seconds=seconds))
    kind, content = answer[:1], answer[1:]
    if kind == b"C":
        return content
    try:
        said = json.loads(content)
        raise NotProved(str(said["verdict"]), str(said["gate"]), str(said["detail"]), said["report"].encode())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SandboxError(SandboxProblem.MALFORMED, "the child process gave no verdict") from None


class _Exchange:
    """The exchange with a child: the payload is sent and the answer received within the child's time."""

    def __init__(self, process: "subprocess.Popen[bytes]", payload: bytes, limits: Limits) -> None:
        self._process, self._limits = process, limits
        self._left = memoryview(payload)
        self._end = time.monotonic() + limits.seconds
        self._out, self._errors = bytearray(), bytearray()

    def answer(self) -> bytes:
        """Return the answer.

        Raises:
            SandboxError: there is no valid answer.
        """
        self._exchange()
        if len(self._out) < _LENGTH:
            raise self._without_answer()
        length = int.from_bytes(self._out[:_LENGTH], "big")
        kind, content = bytes(self._out[_LENGTH : _LENGTH + 1]), bytes(self._out[_LENGTH + 1 :])
        if length > self._limits.answer_bytes:
            raise SandboxError(
                SandboxProblem.TOO_LARGE,
                f"the child process answers {length:,} bytes; at most {self._limits.answer_bytes:,} are accepted",
            )
        if 0 < length > len(content) + 1:
            raise self._without_answer()
        if length != len(content) + 1 or kind not in (_ANSWER, _FAILED, _NO_MEMORY):
            raise SandboxError(SandboxProblem.MALFORMED, "the child process wrote what is no answer")
        if kind == _NO_MEMORY:
            raise SandboxError(SandboxProblem.MEMORY, _no_memory(self._limits))
        if kind == _FAILED:
            raise SandboxError(SandboxProblem.FAILED, printable(content.decode(errors="replace")))
        return content

    def _exchange(self) -> None:
        """Move bytes until the answer is whole or too large, the child has closed its side, or its time is over."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        with selectors.DefaultSelector() as selector:
            for stream, event in (
                (process.stdin, selectors.EVENT_WRITE),
                (process.stdout, selectors.EVENT_READ),
                (process.stderr, selectors.EVENT_READ),
            ):
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, event)
            while process.stdout in selector.get_map() and not self._whole():
                ready = selector.select(max(0.0, self._end - time.monotonic()))
                if not ready and time.monotonic() >= self._end:
                    return
                for key, _ in ready:
                    if key.fileobj is process.stdin:
                        if not self._sent(key.fd):
                            selector.unregister(process.stdin)
                            with suppress(BrokenPipeError):
                                process.stdin.close()
                    elif not self._received(key.fd, self._out if key.fileobj is process.stdout else self._errors):
                        selector.unregister(key.fileobj)
                del self._errors[:-_LAST_WORDS]

    def _whole(self) -> bool:
        length = int.from_bytes(self._out[:_LENGTH], "big")
        return len(self._out) >= _LENGTH and (length > self._limits.answer_bytes or len(self._out) >= _LENGTH + length)

    def _sent(self, handle: int) -> bool:
        """Send a part of the payload; return true if there is more to send."""
        try:
            self._left = self._left[os.write(handle, self._left[: 1 << 16]) :]
        except BlockingIOError:
            return True
        except OSError:
            return False
        return len(self._left) > 0

    @staticmethod
    def _received(handle: int, into: bytearray) -> bool:
        """Receive a part from the child; return False when there is no more."""
        try:
            piece = os.read(handle, 1 << 16)
        except BlockingIOError:
            return True
        except OSError:
            return False
        into += piece
        return bool(piece)

    def _without_answer(self) -> SandboxError:
        """Return an error that says why a child has written no whole answer."""
        _kill(self._process)  # a child that has ended keeps its own exit code
        code = self._process.wait()
        over = time.monotonic() >= self._end
        if code in (-signal.SIGALRM, -signal.SIGXCPU) or (code == -signal.SIGKILL and over):
            return SandboxError(
                SandboxProblem.TIMEOUT, f"the child process was stopped after {self._limits.seconds:g} s"
            )
        said = self._errors.decode(errors="replace").strip().rpartition("\n")[2]
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        detail = f"the child process ended {how} and without an answer" + (f": {printable(said)[:200]}" if said else "")
        return SandboxError(SandboxProblem.CRASHED, detail)


def _no_memory(limits: Limits) -> str:
    return f"the child process needs more than the {limits.memory >> 20:,} MiB of memory it may use"


def serve() -> None:
    """Limit this process, run the function named on its command line on its input, and write the answer."""
    limits = Limits(**json.loads(sys.argv[2]))
    _limit(limits)
    answers = os.dup(1)
    with Path(os.devnull).open("wb") as nowhere:  # output that libraries print is no answer
        os.dup2(nowhere.fileno(), 1)
    module, _, name = sys.argv[1].partition(":")
    try:
        said = _ANSWER + getattr(import_module(module), name)(sys.stdin.buffer.read())
    except AutopoiesisError as error:
        said = _FAILED + str(error)[:4_000].encode(errors="replace")
    except MemoryError:
        said = _NO_MEMORY
    message = memoryview(len(said).to_bytes(_LENGTH, "big") + said)
    while message:
        message = message[os.write(answers, message) :]
    os._exit(0)


def _limit(limits: Limits) -> None:
    """Apply limits to this process, all before it reads anything foreign."""
    seconds = ceil(limits.seconds)
    for kind, value in (
        (resource.RLIMIT_AS, limits.memory),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        lower = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (lower, lower))
    # The two values differ: at the second value the kernel sends SIGKILL, which does not tell the reason.
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = 2 * seconds if hard == resource.RLIM_INFINITY else min(2 * seconds, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, soft + 5 if hard == resource.RLIM_INFINITY else hard))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds + 1)  # if the parent dies, the child ends too
    os.nice(limits.niceness)
