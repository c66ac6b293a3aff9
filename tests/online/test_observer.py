"""Claims about what the control plane sees of many engines, of hostile telemetry, and of engines that are gone."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter

from autopoiesis_lib import Policy, verify
from autopoiesis_lib.online import observer as module
from autopoiesis_lib.online.memory import CanaryStart, Due, Memory, ShadowStart
from autopoiesis_lib.online.observer import SILENT_S, Observer
from autopoiesis_lib.online.rollout import Evidence
from autopoiesis_lib.online.window import Window, WindowError
from autopoiesis_lib.protocol.telemetry import TelemetryProblem, pack, write_piece
from tests.online.live import LiveEngine
from tests.online.streams import drawn_window, leave, poisson_trace, recorded, served
from tests.online.test_controller import controlling, quiet
from tests.protocol.pieces import archive, columns, member_of, members
from tests.support.fleet import Fleet

TRACE = poisson_trace(1, rate=6.0, seconds=40)
WINDOW_S = 20.0
KEPT_S = 12 * WINDOW_S


@dataclass
class Clock:
    """A clock that a test sets."""

    now_s: float = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def short(channel: Path, engine: str, number: int = 1) -> Path:
    """Leave one small piece; return the engine's folder."""
    return write_piece(channel, engine, number, columns(start_us=number * 1_000_000, first=4 * number)).parent


class TestEngines:
    @pytest.mark.parametrize("count", [2, 8])
    def test_every_engine_is_seen_with_all_its_requests(self, count: int, tmp_path: Path) -> None:
        pieces = recorded(served(TRACE), TRACE)
        names = [f"host-{index}-rank-0-a1b2" for index in range(count)]
        observer = Observer(tmp_path, WINDOW_S)
        for piece in pieces:
            for name in names:
                leave(tmp_path, [replace(piece, engine=name)])
            if piece.number % 7 == 0:
                observer.look()
        observer.look()
        assert observer.replicas == count
        assert not observer.refused
        for name in names:
            window = observer.named(name)
            assert window is not None
            assert len(window.between(0, 10**12)) == len(TRACE)
            assert window.count == len(TRACE)

    def test_the_busiest_is_one_that_serves(self, tmp_path: Path, clock: Clock) -> None:
        observer = Observer(tmp_path, WINDOW_S, clock)
        for number in range(1, 5):
            short(tmp_path, "first", number)
        observer.look()
        clock.now_s += SILENT_S + 1
        assert observer.busiest() is observer.named("first"), "while there is no other"
        short(tmp_path, "second")
        observer.look()
        assert observer.busiest() is observer.named("second")
        assert observer.replaced("first") is observer.named("second")
        assert observer.replaced("never heard of") is observer.named("second")
        assert observer.replaced("second") is None
        assert [observer.serving(name) for name in ("first", "second")] == [False, True]

    def test_an_engine_silent_for_long_is_forgotten(self, tmp_path: Path, clock: Clock) -> None:
        observer = Observer(tmp_path, WINDOW_S, clock)
        short(tmp_path, "first")
        observer.look()
        clock.now_s += KEPT_S + SILENT_S + 1
        short(tmp_path, "second")
        observer.look()
        assert observer.named("first") is None
        short(tmp_path, "first", 2)
        observer.look()
        window = observer.named("first")
        assert window is not None and window.count == 4

    def test_engines_that_come_and_go_leave_nothing(self, tmp_path: Path, clock: Clock) -> None:
        observer = Observer(tmp_path, WINDOW_S, clock)
        for start in range(60):
            folder = short(tmp_path, f"engine-{start}")
            observer.look()
            for path in (*folder.iterdir(), folder):
                path.rmdir() if path.is_dir() else path.unlink()
            clock.now_s += SILENT_S
        assert len(observer._windows) == len(observer._heard) <= 1 + (KEPT_S + SILENT_S) / SILENT_S
        assert len(observer._readers) <= 1

    def test_all_engines_together_keep_a_bounded_number_of_rows(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "MAX_ROWS", 100)
        observer = Observer(tmp_path, WINDOW_S)
        for number in range(1, 20):
            short(tmp_path, "large", number)
        short(tmp_path, "small")
        observer.look()
        large, small = observer.named("large"), observer.named("small")
        assert large is not None and small is not None
        assert small.rows == 12
        assert 20 <= large.rows <= 88
        assert large.now_us == 19_000_000 + 330_000


def make_link(path: Path) -> None:
    (path.parent.parent / "elsewhere").mkdir()
    path.symlink_to(path.parent.parent / "elsewhere")


FOLDERS: dict[str, tuple[str, Callable[[Path], object], TelemetryProblem]] = {
    "link": ("other", make_link, TelemetryProblem.FOLDER),
    "link to itself": ("other", lambda path: path.symlink_to("other"), TelemetryProblem.FOLDER),
    "link to a device": ("other", lambda path: path.symlink_to("/dev/zero"), TelemetryProblem.FOLDER),
    "fifo": ("other", os.mkfifo, TelemetryProblem.FOLDER),
    "file": ("other", Path.touch, TelemetryProblem.FOLDER),
    "escape characters": ("\x1b[2J\x07", Path.mkdir, TelemetryProblem.NAME),
    "bidi": ("\u202egnp", Path.mkdir, TelemetryProblem.NAME),
    "newline": ("a\nb", Path.mkdir, TelemetryProblem.NAME),
    "other letters": ("²", Path.mkdir, TelemetryProblem.NAME),
    "too long": ("x" * 200, Path.mkdir, TelemetryProblem.NAME),
    "leading dash": ("-rf", Path.mkdir, TelemetryProblem.NAME),
}


class TestHostileFolders:
    @pytest.mark.parametrize("kind", FOLDERS)
    def test_what_is_no_engines_folder_is_told_and_passed_over(
        self, kind: str, tmp_path: Path, exported: InMemoryLogRecordExporter
    ) -> None:
        channel = tmp_path / "channel"
        root = short(channel, "engine-0").parent
        name, make, problem = FOLDERS[kind]
        make(root / name)
        observer = Observer(channel, WINDOW_S)
        observer.look()
        short(channel, "engine-0", 2)
        observer.look()
        window = observer.named("engine-0")
        assert window is not None and window.count == 8
        assert observer.refused == {"": {problem: 1}}
        (told,) = exported.get_finished_logs()
        assert told.log_record.event_name == "autopoiesis.telemetry.refused"
        assert str(told.log_record.body).isprintable()

    @pytest.mark.parametrize("kind", ["link", "fifo", "file", "link to itself"])
    def test_a_telemetry_folder_that_is_none_is_told(self, kind: str, tmp_path: Path) -> None:
        channel = tmp_path / "channel"
        channel.mkdir()
        FOLDERS[kind][1](channel / "telemetry" if "itself" not in kind else channel / "other")
        if "itself" in kind:
            (channel / "telemetry").symlink_to("telemetry")
        observer = Observer(channel, WINDOW_S)
        observer.look()
        assert observer.refused == {"": {TelemetryProblem.FOLDER: 1}}
        assert observer.busiest() is None

    def test_thousands_of_folders_hide_no_engine_that_serves(self, tmp_path: Path) -> None:
        observer = Observer(tmp_path, WINDOW_S)
        root = short(tmp_path, "engine-0").parent
        observer.look()
        for number in range(3_000):
            (root / f"a-{number}").mkdir()
        observer.look()
        short(tmp_path, "engine-0", 2)
        observer.look()
        window = observer.named("engine-0")
        assert window is not None and window.count == 8
        assert observer.refused[""] == {TelemetryProblem.CROWDED: 3_001 - module.MAX_ENGINES}

    def test_refused_pieces_are_counted_and_each_reason_told_once(
        self, tmp_path: Path, exported: InMemoryLogRecordExporter
    ) -> None:
        folder = short(tmp_path, "engine-0")
        observer = Observer(tmp_path, WINDOW_S)
        for number in range(2, 12, 2):
            (folder / f"{number:08}.npz").write_bytes(b"bad")
            short(tmp_path, "engine-0", number + 1)
            observer.look()
            observer.look()
        assert observer.refused == {"engine-0": {TelemetryProblem.ARCHIVE: 5}}
        (told,) = exported.get_finished_logs()
        attributes = dict(told.log_record.attributes or {})
        assert attributes["autopoiesis.engine"] == "engine-0"
        assert attributes["autopoiesis.reason"] == "archive"

    def test_a_request_told_twice_counts_once(self, tmp_path: Path) -> None:
        observer = Observer(tmp_path, WINDOW_S)
        write_piece(tmp_path, "engine-0", 1, columns())
        write_piece(tmp_path, "engine-0", 2, columns())
        observer.look()
        window = observer.named("engine-0")
        assert window is not None and window.count == len(window.between(0, 10**12)) == 4
        assert observer.refused == {"engine-0": {TelemetryProblem.DUPLICATE: 8}}


class TestWatching:
    def test_a_controller_goes_on_amid_hostile_telemetry(self, tmp_path: Path) -> None:
        bad = {
            "²": b"", "00000001": b"PK", "4294967295": archive(members()), "999999999999": archive(members()),
            "00000050": archive(members() | {"steps.at_us.npy": member_of(np.zeros((2, 2), np.int64))}),
        }  # fmt: skip
        with controlling(tmp_path) as controller:
            live = LiveEngine(channel=Fleet(tmp_path).reader(tmp_path / "channel"), keys=Fleet(tmp_path).keys)
            root = tmp_path / "channel" / "telemetry"
            for seed in (1, 2, 3):
                live.serve(quiet(seed))
                for name, content in bad.items():
                    for engine in (live.name, "hostile"):
                        (root / engine).mkdir(exist_ok=True)
                        path = root / engine / f"{name}.npz"
                        if not path.exists():
                            path.write_bytes(content)
                said = controller.tick()
                assert said.startswith("watching"), said
            window = controller.observer.named(live.name)
            assert window is not None
            assert window.now_us > live.now_us - 60_000_000
            assert controller.lookout.reference is not None
            assert controller.lookout.reference.window.engine == live.name
            assert controller.observer.refused[live.name][TelemetryProblem.NAME] == 1

    @pytest.mark.parametrize("stage", ["canary", "shadow", "due"])
    def test_what_waits_for_an_engine_goes_on_with_its_successor(self, stage: str, tmp_path: Path) -> None:
        with controlling(tmp_path) as controller:
            live = LiveEngine(
                channel=Fleet(tmp_path).reader(tmp_path / "channel"), keys=Fleet(tmp_path).keys, name="host-2-0-ffff"
            )
            memory = controller.memory
            digest = ""
            if stage != "due":
                certificate = verify(Policy.from_source(BASELINES["shortest-prompt-aging"], RequestOrdering()))
                digest = certificate.policy_digest
                controller.rollout.propose(certificate)
            if stage == "canary":
                good = Evidence(objective="ttft_mean_us", reduction=0.3, ci95=(0.2, 0.4), requests=9, window="w")
                controller.rollout.start_canary(good)
            memory.keep_canary(CanaryStart(engine="dead", at_us=2**49, fallbacks=0, wall_s=1e12))
            memory.keep_shadow(ShadowStart(candidate=digest, engine="dead", since_us=2**49, looks=1, next_us=2**49))
            if stage == "due":
                memory.keep_due(Due(reason="drift", engine="dead", since_us=2**49, rounds=0))
            live.serve(quiet(1))
            said = controller.tick()
            kept = {"canary": memory.canary(), "shadow": memory.shadow(digest), "due": memory.due()}[stage]
            assert kept is not None, said
            assert kept.engine == live.name, said
            start_us = kept.at_us if isinstance(kept, CanaryStart) else kept.since_us
            assert 0 < start_us < live.now_us
            if isinstance(kept, ShadowStart):
                assert kept.looks == 1
            if isinstance(kept, CanaryStart):
                assert kept.wall_s == 1e12, "the wait for a verdict goes on"


DAMAGE = [
    "", "null", "[]", "3", '"text"', "{", "[" * 100_000, '{"engine": 3}', "NaN",
    '{"reason": 1, "engine": "e", "since_us": 0}', '{"reason": "r", "engine": "e", "since_us": "0"}',
    '{"reason": "r", "engine": "e", "since_us": null}', '{"reason": "r", "engine": "e", "since_us": -1}',
    '{"reason": "r", "engine": "e", "since_us": 1e400}', '{"reason": "r", "engine": "e", "since_us": 1.5}',
    '{"reason": "r", "engine": "e", "since_us": true}', '{"reason": "r", "engine": "e", "since_us": ' + "9" * 5_000 + "}",
    '{"reason": "r", "engine": ["e"], "since_us": 0}', '{"reason": "r", "engine": "e", "since_us": 0, "looks": {}}',
    '{"reason": "r", "engine": "e", "since_us": 0, "rounds": 99999999999999}', "x" * 100_000,
    '{"candidate": "", "engine": [], "since_us": 0}', '{"candidate": "", "engine": "e", "since_us": 0, "next_us": "x"}',
    '{"engine": "e", "at_us": [], "fallbacks": 0, "wall_s": 0}',
    '{"engine": "e", "at_us": 0, "fallbacks": 0, "wall_s": Infinity}',
    '{"engine": "e", "end_us": {}}', '{"replicas": 0}', '{"replicas": "2"}', '{"seed": [], "reason": "", "run": null}',
]  # fmt: skip


class TestMemory:
    @pytest.mark.parametrize("text", DAMAGE)
    def test_a_damaged_file_is_as_good_as_none(self, text: str, tmp_path: Path) -> None:
        memory = Memory(tmp_path)
        drawn_window(np.random.default_rng(0), seconds=20).write(tmp_path / "reference.npz")
        for name in ("due", "shadow", "canary", "checked", "reference", "evolving", "calibration"):
            (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")
        assert (memory.due(), memory.shadow(""), memory.canary(), memory.checked()) == (None,) * 4
        assert memory.reference() is None
        with pytest.raises(WindowError):
            memory.task()

    def test_what_is_kept_is_read_again(self, tmp_path: Path) -> None:
        memory = Memory(tmp_path)
        due = Due(reason="r", engine="e", since_us=5, looks=1)
        canary = CanaryStart(engine="e", at_us=1, fallbacks=2, wall_s=3.5)
        memory.keep_due(due)
        memory.keep_canary(canary)
        memory.keep_checked("e", 7)
        assert (memory.due(), memory.canary(), memory.checked()) == (due, canary, ("e", 7))
        assert json.loads((tmp_path / "due.json").read_text())["since_us"] == 5

    @pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
    def test_a_file_that_is_none_blocks_nothing(self, make: Callable[[Path], object], tmp_path: Path) -> None:
        memory = Memory(tmp_path)
        (tmp_path / "windows").mkdir()
        for name in ("due.json", "reference.npz", "windows/000001.npz"):
            make(tmp_path / name)
        for name in ("²", "0", "9" * 30):
            (tmp_path / "windows" / f"{name}.npz").touch()
        assert memory.due() is None
        assert memory.remembered() == {}

    @pytest.mark.parametrize(
        "change",
        [
            {"requests.stamp_us": -1},
            {"requests.num_prompt_tokens": 2**62},
            {"requests.finished_us": 1},
            {"steps.at_us": 2**60},
            {"span": -5},
            {"span": 2**60},
            {"engine": 300},
            {"engine": 27},
        ],
        ids=str,
    )
    def test_a_window_no_engine_reports_is_not_read(self, change: dict[str, int], tmp_path: Path) -> None:
        path = tmp_path / "w.npz"
        drawn_window(np.random.default_rng(0), seconds=20).write(path)
        with np.load(path) as content:
            found = {name: content[name] for name in content.files}
        assert len(Window.read(path)) > 10
        for name, value in change.items():
            found[name] = found[name].copy()
            found[name][0] = value
        path.write_bytes(pack(found))
        with pytest.raises(WindowError):
            Window.read(path)
