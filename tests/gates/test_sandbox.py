"""Child processes with limits: what they answer, and every way in which they do not."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from autopoiesis_contracts.request_ordering import RequestOrdering

from autopoiesis_lib import Certificate, Policy, PolicyError, verify
from autopoiesis_lib.differences import differences
from autopoiesis_lib.protocol.envelope import CERTIFICATE, Envelope
from autopoiesis_lib.sandbox import (
    Limits,
    NotProved,
    SandboxError,
    SandboxProblem,
    run_isolated,
    verify_isolated,
)

LIMITS = Limits(seconds=60)
HERE = "child_functions"
"""The module of the functions below, in the child."""


def echo(payload: bytes) -> bytes:
    return payload


def noisy(payload: bytes) -> bytes:
    print("not an answer")
    os.write(1, b"\xff" * 100)
    os.write(2, b"noise " * 100_000)
    return payload


def hang(payload: bytes) -> bytes:
    while True:
        pass


def sleep(payload: bytes) -> bytes:
    time.sleep(600)
    return payload


def exits(payload: bytes) -> bytes:
    os._exit(3)


def aborts(payload: bytes) -> bytes:
    os.abort()


def raises(payload: bytes) -> bytes:
    raise ValueError("a defect of ours")


def refuses(payload: bytes) -> bytes:
    raise PolicyError("no such thing:\x1b[31m")


def eats(payload: bytes) -> bytes:
    return bytes(8 << 30)


def floods(payload: bytes) -> bytes:
    return bytes(1 << 20)


def lies(payload: bytes) -> bytes:
    # The answer's own descriptor is the highest one that is open.
    for handle in range(3, 64):
        try:
            os.write(handle, b"\x00" * 7 + b"\x02Zz")
        except OSError:
            continue
    os._exit(0)


def half(payload: bytes) -> bytes:
    for handle in range(3, 64):
        try:
            os.write(handle, b"\x00" * 7 + b"\x09Ax")
        except OSError:
            continue
    os._exit(0)


def forks(payload: bytes) -> bytes:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    return str(child.pid).encode()


def writes(payload: bytes) -> bytes:
    Path(payload.decode()).write_bytes(b"x" * 10)
    return b""


def surroundings(payload: bytes) -> bytes:
    return json.dumps(
        {
            "path": sys.path,
            "variables": dict(os.environ),
            "folder": str(Path.cwd()),
            "handles": sorted(int(name) for name in os.listdir("/proc/self/fd")),  # noqa: PTH208
            "niceness": os.nice(0),
            "temporary": tempfile.gettempdir(),
        }
    ).encode()


@pytest.fixture(autouse=True)
def _importable(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a child import the functions of this file."""
    folder = tmp_path_factory.mktemp("functions")
    (folder / f"{HERE}.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    before = os.environ.get("PYTHONPATH")
    root = str(Path(__file__).parents[2])
    parts = [str(folder), root, *(str(Path(root) / name) for name in ("contracts", "runtime_adapters", "cli"))]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*parts, *([before] if before else [])]))


def run(function: str, payload: bytes = b"", limits: Limits = LIMITS) -> bytes:
    return run_isolated(f"{HERE}:{function}", payload, limits)


class TestAnswers:
    @pytest.mark.parametrize("payload", [b"", b"\x00\xff", bytes(range(256)) * 40_000], ids=["none", "two", "10 MB"])
    def test_bytes_go_in_and_come_out(self, payload: bytes) -> None:
        assert run("echo", payload) == payload

    def test_what_a_library_prints_is_no_answer(self) -> None:
        assert run("noisy", b"answer") == b"answer"


class TestFailures:
    @pytest.mark.parametrize(
        ("function", "problem"),
        [
            ("exits", SandboxProblem.CRASHED),
            ("aborts", SandboxProblem.CRASHED),
            ("raises", SandboxProblem.CRASHED),
            ("missing", SandboxProblem.CRASHED),
            ("refuses", SandboxProblem.FAILED),
            ("eats", SandboxProblem.MEMORY),
            ("lies", SandboxProblem.MALFORMED),
            ("half", SandboxProblem.CRASHED),
        ],
    )
    def test_it_is_told_apart_from_an_answer(self, function: str, problem: SandboxProblem) -> None:
        with pytest.raises(SandboxError) as raised:
            run(function)
        assert raised.value.problem is problem
        assert str(raised.value).isprintable()

    @pytest.mark.parametrize("function", ["hang", "sleep"])
    def test_one_that_takes_too_long_is_killed(self, function: str) -> None:
        with pytest.raises(SandboxError) as raised:
            run(function, limits=replace(LIMITS, seconds=2))
        assert raised.value.problem is SandboxProblem.TIMEOUT
        assert not _children()

    def test_an_answer_that_is_too_large_is_refused(self) -> None:
        with pytest.raises(SandboxError) as raised:
            run("floods", limits=replace(LIMITS, answer_bytes=1_000))
        assert raised.value.problem is SandboxProblem.TOO_LARGE

    def test_an_interpreter_that_cannot_start_is_a_typed_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "executable", "/nonexistent")
        with pytest.raises(SandboxError) as raised:
            run("echo")
        assert raised.value.problem is SandboxProblem.NOT_STARTED

    def test_a_temporary_folder_that_is_missing_is_a_typed_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
        with pytest.raises(SandboxError) as raised:
            run("echo")
        assert raised.value.problem is SandboxProblem.NOT_STARTED


class TestLimits:
    def test_whatever_it_started_is_killed_too(self) -> None:
        started = int(run("forks"))
        try:
            psutil.Process(started).wait(30)
        except psutil.NoSuchProcess:
            return
        assert not psutil.pid_exists(started)

    def test_it_writes_no_file_unless_it_may(self, tmp_path: Path) -> None:
        target = str(tmp_path / "file").encode()
        with pytest.raises(SandboxError) as raised:
            run("writes", target)
        assert raised.value.problem is SandboxProblem.CRASHED
        assert (tmp_path / "file").stat().st_size == 0
        run("writes", target, replace(LIMITS, file_bytes=10))
        assert (tmp_path / "file").stat().st_size == 10

    def test_it_sees_no_secret_no_file_and_no_working_directory(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("SECRET_TOKEN", "hunter2")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ["PYTHONPATH"], "", "relative"]))
        monkeypatch.chdir(tmp_path)
        (tmp_path / "json.py").write_text("raise SystemExit('taken from the working directory')")
        with (tmp_path / "open").open("w") as file:
            os.set_inheritable(file.fileno(), True)
            found = json.loads(run("surroundings", limits=replace(LIMITS, file_bytes=1_000)))
        assert not any("hunter2" in value for value in found["variables"].values())
        assert str(tmp_path) not in found["path"] and "" not in found["path"]
        assert all(Path(part).is_absolute() for part in found["path"])
        assert len(found["handles"]) <= 6
        assert found["niceness"] >= 10
        assert found["temporary"] == found["folder"] != str(tmp_path)
        assert not Path(found["temporary"]).exists()

    def test_other_threads_run_while_one_waits(self) -> None:
        errors: list[SandboxProblem] = []

        def wait() -> None:
            try:
                run("sleep", limits=replace(LIMITS, seconds=3))
            except SandboxError as error:
                errors.append(error.problem)

        thread = threading.Thread(target=wait)
        thread.start()
        turns = 0
        while thread.is_alive():
            turns += 1
            time.sleep(0.001)
        assert errors == [SandboxProblem.TIMEOUT]
        assert turns > 100


class TestVerifyIsolated:
    def test_it_makes_the_certificate_that_verify_makes(self, contract: RequestOrdering) -> None:
        policy = Policy.from_source(contract.baselines()["shortest-prompt-aging"], contract)
        payload = verify_isolated(policy.source, "request-ordering", contract.model_dump())
        made = Certificate.of(Envelope(payload, CERTIFICATE, {}))
        assert made.payload() == payload
        assert differences(made, verify(policy)) == ()

    def test_a_refuted_policy_is_not_proved(self, ordering) -> None:  # type: ignore[no-untyped-def]
        with pytest.raises(NotProved, match="REFUTED: proof") as raised:
            verify_isolated(ordering("-request.num_prompt_tokens"), "request-ordering", {})
        assert raised.value.verdict == "REFUTED"
        assert json.loads(raised.value.report)["verdict"] == "REFUTED"

    @pytest.mark.parametrize("source", ["", "import os", "\x00", "\ud800", "def score(:", "(" * 60_000, "x" * 100_000])
    def test_a_text_that_is_no_policy_is_not_proved(self, source: str) -> None:
        with pytest.raises(NotProved) as raised:
            verify_isolated(source, "request-ordering", {})
        assert raised.value.verdict in ("INVALID", "UNSUPPORTED")

    @pytest.mark.parametrize(
        ("contract", "parameters"),
        [
            ("no-such", {}),
            ("", {}),
            ("request-ordering", {"max_aging_us": -1}),
            ("request-ordering", {"name": 1}),
            ("request-ordering", {"self": 1}),
            ("request-ordering", {"\x1b": 1}),
            ("request-ordering", {"max_aging_us": 10**30}),
        ],
    )
    def test_a_contract_that_is_not_there_is_a_typed_error(self, contract: str, parameters: dict[str, int]) -> None:
        with pytest.raises(SandboxError) as raised:
            verify_isolated("", contract, parameters)
        assert raised.value.problem is SandboxProblem.FAILED
        assert str(raised.value).isprintable()

    def test_no_solver_is_loaded_where_it_is_called(self) -> None:
        code = (
            "import sys; from autopoiesis_lib.sandbox import verify_isolated, SandboxError\n"
            "try: verify_isolated('', 'no-such', {})\n"
            "except SandboxError: print(sorted({'z3', 'cvc5', 'mypy', 'hypothesis', 'llvmlite'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


def _children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "autopoiesis_lib.sandbox" in " ".join(child.cmdline())]
