"""`autopoiesis deploy` and `keys`: only what an engine would accept is published, and it can be undone."""

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from autopoiesis_adapters.loading import load_ordering
from autopoiesis_contracts.admission import Admission
from autopoiesis_contracts.preemption import Preemption
from autopoiesis_contracts.request_ordering import RequestOrdering

from autopoiesis_lib import Certificate, Contract, Policy
from autopoiesis_lib.protocol.channel import Channel, Trust
from autopoiesis_lib.protocol.status import IGNORES_PRIORITY

from .conftest import Command


@pytest.fixture
def certified(command: Command, policies: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two certified policies, each with its certificate beside it, and a key to sign with."""
    assert command("keys", "new", "fleet").code == 0
    found = []
    for name in ("fcfs", "sjf_aging"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "policy.py").write_text((policies / f"{name}.py").read_text())
        ran = command(
            "verify",
            folder / "policy.py",
            "--contract",
            "request-ordering",
            "--certificate",
            folder / "certificate.json",
        )
        assert ran.code == 0
        found.append(folder / "policy.py")
    return found[0], found[1]


def channel_in(folder: Path) -> Channel:
    """The channel as an engine of the fleet reads it."""
    return Channel(folder / "channel", trust=Trust(folder / ".autopoiesis" / "keys"))


def test_a_signed_policy_is_published_as_an_engine_will_accept_it(
    command: Command, certified: tuple[Path, Path], tmp_path: Path
) -> None:
    ran = command("deploy", certified[1], "--channel", "channel", "--key", "fleet", "--json")
    assert ran.code == 0, ran.err
    channel = channel_in(tmp_path)
    notice = channel.read()
    assert notice is not None and notice.digest is not None
    assert notice.digest == ran.document["digest"]
    loaded = load_ordering(
        channel.policy_path(notice.digest).read_text(),
        channel.certificate_path(notice.digest).read_text(),
        keys=tmp_path / ".autopoiesis" / "keys",
    )
    assert loaded.aging_us == 8_191_000


def test_an_unsigned_policy_needs_leave(command: Command, certified: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / ".autopoiesis" / "keys" / "fleet.key").unlink()
    refused = command("deploy", certified[0], "--channel", "channel")
    assert refused.code == 1
    assert "not signed" in refused.err
    assert channel_in(tmp_path).read() is None
    assert command("deploy", certified[0], "--channel", "channel", "--allow-unsigned").code == 0
    status = command("deploy", "status", "--channel", "channel", "--json").document
    assert status["active"]["mode"] == "active" and "not signed" in status["problems"]["request-ordering"]


@pytest.mark.parametrize(("name", "contract"), [("admission", Admission()), ("preemption", Preemption())])
def test_every_lever_has_a_slot_of_its_own_to_publish_in_and_to_roll_back(
    command: Command, certified: tuple[Path, Path], name: str, contract: Contract, tmp_path: Path
) -> None:
    ordering = command("deploy", certified[0], "--channel", "channel", "--json").document["digest"]
    (tmp_path / "lever.py").write_text(next(iter(contract.baselines().values())))
    ran = command("deploy", "lever.py", "--contract", name, "--channel", "channel", "--json")
    assert ran.code == 0, ran.err
    channel = channel_in(tmp_path)
    there = channel.read(name)
    assert there is not None and there.digest == ran.document["digest"]
    status = command("deploy", "status", "--channel", "channel", "--json").document
    assert status["levers"][name]["digest"] == there.digest
    assert status["active"]["digest"] == ordering
    assert command("deploy", "rollback", "--channel", "channel", "--contract", name).code == 0
    undone, untouched = channel.read(name), channel.read()
    assert undone is not None and undone.digest is None
    assert untouched is not None and untouched.digest == ordering
    assert command("deploy", "rollback", "--channel", "channel", "--json").document["digest"] is None


def test_a_policy_that_was_changed_since_is_not_published(
    command: Command, certified: tuple[Path, Path], tmp_path: Path
) -> None:
    certified[0].write_text(certified[0].read_text().replace("request.waited_us", "request.waited_us + 1"))
    ran = command("deploy", certified[0], "--channel", "channel")
    assert ran.code == 1
    assert "not the certified one" in ran.err
    assert channel_in(tmp_path).read() is None


def test_a_forged_certificate_is_neither_signed_nor_published(
    command: Command, certified: tuple[Path, Path], policies: Path, tmp_path: Path
) -> None:
    """Whoever can write a file must not get a signature for it: a refuted policy under the certificate of another one."""
    refuted = Policy.from_file(policies / "sjf.py", RequestOrdering())
    path = certified[1].with_name("certificate.json")
    forged = Certificate.read(path).model_copy(
        update={"policy_digest": refuted.digest, "policy_source": refuted.source, "bounds": {"ages": 0}}
    )
    forged.write(path)
    certified[1].write_text(refuted.source)
    for leave in (("--key", "fleet"), ()):
        ran = command("deploy", certified[1], "--channel", "channel", *leave)
        assert ran.code == 1 and "REFUTED" in ran.err
    assert channel_in(tmp_path).read() is None


def test_a_bound_that_is_not_the_proved_one_is_not_signed(
    command: Command, certified: tuple[Path, Path], tmp_path: Path
) -> None:
    path = certified[1].with_name("certificate.json")
    Certificate.read(path).model_copy(update={"bounds": {"ages": 1_000}}).write(path)
    ran = command("deploy", certified[1], "--channel", "channel", "--key", "fleet")
    assert ran.code == 1
    assert "8191000" in ran.err and str(path) in ran.err
    assert channel_in(tmp_path).read() is None


def test_nothing_new_is_published_on_a_frozen_channel_but_going_back_is_allowed(
    command: Command, certified: tuple[Path, Path]
) -> None:
    for path in certified:
        command("deploy", path, "--channel", "channel")
    frozen = command("deploy", "freeze", "--channel", "channel", "--json").document
    status = command("deploy", "status", "--channel", "channel", "--json").document
    assert frozen["active"] == status["active"]["digest"] and frozen["frozen"] and status["frozen"]
    assert "FROZEN" in command("deploy", "status", "--channel", "channel").out
    ran = command("deploy", certified[0], "--channel", "channel")
    assert ran.code == 1 and "deploy unfreeze" in ran.err
    assert command("deploy", "rollback", "--channel", "channel").code == 0
    assert command("deploy", "unfreeze", "--channel", "channel").code == 0
    assert command("deploy", certified[1], "--channel", "channel").code == 0


def test_a_policy_without_certificate_is_verified_now_and_refused_when_it_fails(
    command: Command, policies: Path
) -> None:
    command("keys", "new", "fleet")
    ran = command("deploy", policies / "sjf.py", "--channel", "channel", "--json")
    assert ran.code == 1
    assert ran.document["published"] is False
    assert "REFUTED" in ran.err


def test_rollback_goes_back_one_policy_at_a_time_to_the_builtin_order(
    command: Command, certified: tuple[Path, Path]
) -> None:
    digests = [command("deploy", path, "--channel", "channel", "--json").document["digest"] for path in certified]
    first = command("deploy", "rollback", "--channel", "channel", "--json").document
    assert (first["was"], first["digest"]) == (digests[1], digests[0])
    second = command("deploy", "rollback", "--channel", "channel", "--json").document
    assert (second["was"], second["digest"]) == (digests[0], None)
    assert command("deploy", "rollback", "--channel", "channel").code == 2
    back = command("deploy", "rollback", "--channel", "channel", "--to", digests[1][:10], "--json").document
    assert back["digest"] == digests[1]
    status = command("deploy", "status", "--channel", "channel", "--json").document
    assert status["active"]["digest"] == digests[1]
    assert [row["action"] for row in status["log"]] == ["promote", "promote", "rollback", "rollback", "rollback"]


def test_status_shows_what_an_engine_says_of_itself(
    command: Command, certified: tuple[Path, Path], tmp_path: Path
) -> None:
    digest = command("deploy", certified[0], "--channel", "channel", "--json").document["digest"]
    channel_in(tmp_path).report("engine-1", {"digest": digest, "aging_us": 0, "refusal": "", "quarantined": {}})
    ran = command("deploy", "status", "--channel", "channel")
    assert "engine-1" in ran.out
    assert digest[:12] in ran.out


class TestPriorityEngines:
    """An engine that orders by priority, and a policy that does not, are named before anybody waits for it."""

    @staticmethod
    def deployed(command: Command, channel: Channel, policy: Path, **status: object) -> list[str]:
        channel.report("engine-1", {"heartbeat": time.time(), "scheduling": "priority", **status})
        ran = command("deploy", policy, "--channel", "channel", "--json")
        assert ran.code == 0
        return list(ran.document["warnings"])

    def test_deploy_warns(self, command: Command, certified: tuple[Path, Path], tmp_path: Path) -> None:
        command("deploy", "init", "--channel", "channel")
        warnings = self.deployed(command, channel_in(tmp_path), certified[0])
        assert warnings == [f"engine-1: {IGNORES_PRIORITY}"]
        shown = command("deploy", certified[0], "--channel", "channel").out
        assert "urgent requests lose their precedence" in " ".join(shown.split())

    @pytest.mark.parametrize("status", [{"scheduling": "fcfs"}, {"heartbeat": 1.0}], ids=["fcfs", "silent"])
    def test_other_engines_are_no_reason(
        self, command: Command, certified: tuple[Path, Path], tmp_path: Path, status: dict[str, object]
    ) -> None:
        command("deploy", "init", "--channel", "channel")
        assert self.deployed(command, channel_in(tmp_path), certified[0], **status) == []

    def test_status_says_what_an_engine_cannot_do(self, command: Command, tmp_path: Path) -> None:
        command("keys", "new", "fleet")
        command("deploy", "init", "--channel", "channel")
        slot = {"counters": {"oldest_idle": 7}}
        about = {"serves": "vLLM 0.32.0", "scheduling": "priority", "off": {"preemption": "a reason"}}
        more = {"warnings": ["a warning"], "uncovered": ["a gap"], "levers": {"admission": slot}}
        channel_in(tmp_path).report("engine-1", {"heartbeat": time.time(), **about, **more})
        shown = command("deploy", "status", "--channel", "channel").out
        for line in (
            "engine-1: vLLM 0.32.0, its own order is priority",
            "engine-1: warning: a warning",
            "engine-1: preemption is off: a reason",
            "engine-1: not covered: a gap",
            "engine-1: admission: oldest_idle 7 times",
        ):
            assert line in shown


def test_serve_starts_the_server_that_works_for_both_vllm_builds(command: Command, tmp_path: Path) -> None:
    document = command(
        "deploy", "serve", "some/model", "--channel", "channel", "--dry-run", "--json", "--max-num-seqs", "8"
    ).document
    assert document["command"][1:] == [
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        "some/model",
        "--scheduler-cls",
        "autopoiesis_adapters.vllm.make_scheduler",
        "--max-num-seqs",
        "8",
    ]
    assert document["environment"] == {"AUTOPOIESIS_CHANNEL": str(tmp_path / "channel")}
    made = command("deploy", "init", "--channel", "channel", "--json").document
    document = command("deploy", "serve", "m", "--channel", "channel", "--dry-run", "--json").document
    assert document["environment"]["AUTOPOIESIS_CHANNEL_ID"] == made["id"]


def test_keys_are_listed_without_their_secret(command: Command) -> None:
    made = command("keys", "new", "fleet", "--json").document
    listed = command("keys", "list", "--json")
    assert listed.document == {"keys": [{"name": "fleet", "key_id": made["key_id"], "can_sign": True}]}
    assert command("keys", "new", "fleet").code == 2


class TestStandingOrders:
    """Freeze and quarantine hold wherever a command is run from, and however it spells the channel."""

    @pytest.mark.parametrize("spelling", ["absolute", "dotted", "symlink"])
    def test_another_directory_and_spelling(
        self,
        command: Command,
        certified: tuple[Path, Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        spelling: str,
    ) -> None:
        digest = command("deploy", certified[0], "--channel", "channel", "--json").document["digest"]
        assert command("deploy", "freeze", "--channel", "channel", "--note", "hands off").code == 0
        (tmp_path / "alias").symlink_to(tmp_path / "channel")
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(elsewhere)
        channel = {
            "absolute": tmp_path / "channel",
            "dotted": Path("..") / "elsewhere" / ".." / "channel",
            "symlink": Path("..") / "alias",
        }[spelling]
        keys = ("--keys", tmp_path / ".autopoiesis" / "keys")
        frozen = command("deploy", certified[1], "--channel", channel, *keys)
        assert frozen.code == 1 and "frozen" in frozen.err
        assert command("deploy", "unfreeze", "--channel", channel, *keys).code == 0
        assert command("deploy", "quarantine", digest, "--channel", channel, *keys).code == 0
        refused = command("deploy", certified[0], "--channel", channel, *keys)
        assert refused.code == 1 and "quarantine" in refused.err
        monkeypatch.chdir(tmp_path)
        refused = command("deploy", certified[0], "--channel", "channel")
        assert refused.code == 1 and "quarantine" in refused.err
        assert command("deploy", "release", digest, "--channel", "channel").code == 0
        assert command("deploy", certified[0], "--channel", channel, *keys).code == 0

    def test_an_order_needs_a_key(self, command: Command, tmp_path: Path) -> None:
        ran = command("deploy", "freeze", "--channel", "channel")
        assert ran.code == 2 and "keys new NAME" in ran.err and ran.err.count("\n") == 1
        assert not (tmp_path / "channel" / "orders.json").exists()


class TestVersion1:
    """What earlier versions left gets one clear line."""

    def test_a_channel(self, command: Command, certified: tuple[Path, Path], tmp_path: Path) -> None:
        (tmp_path / "channel").mkdir()
        old = {"sequence": 3, "digest": "0" * 64, "contract": "request-ordering", "mode": "active", "base": None}
        (tmp_path / "channel" / "active.json").write_text(json.dumps(old))
        status = command("deploy", "status", "--channel", "channel", "--json").document
        assert "format 1" in status["problems"]["request-ordering"]
        assert command("deploy", certified[0], "--channel", "channel").code == 0
        assert command("deploy", "status", "--channel", "channel", "--json").document["problems"] == {}

    def test_a_certificate(self, command: Command, certified: tuple[Path, Path]) -> None:
        path = certified[0].with_name("certificate.json")
        old = json.loads(path.read_text())["predicate"] | {"format": 1, "signature": None}
        path.write_text(json.dumps(old))
        ran = command("deploy", certified[0], "--channel", "channel")
        assert ran.code == 2 and "format 1" in ran.err and "autopoiesis verify" in ran.err
        assert ran.err.count("\n") == 1


class TestDoctor:
    def test_open_modes_are_named(self, command: Command, tmp_path: Path) -> None:
        command("keys", "new", "fleet")
        command("deploy", "init", "--channel", "channel")
        assert command("doctor", "--channel", "channel").code == 0
        (tmp_path / "channel").chmod(0o777)
        (tmp_path / ".autopoiesis" / "keys").chmod(0o775)
        ran = command("doctor", "--channel", "channel", "--json")
        assert ran.code == 1
        assert len(ran.document["problems"]) == 2
        engine = command("doctor", "--channel", "channel", "--engine", "--json").document["problems"]
        assert any("private key that this engine" in line for line in engine)


class TestLog:
    def test_a_whole_log_is_said_to_be_whole(self, command: Command, certified: tuple[Path, Path]) -> None:
        for path in certified:
            assert command("deploy", path, "--channel", "channel").code == 0
        assert command("deploy", "freeze", "--channel", "channel").code == 0
        ran = command("deploy", "log", "--check", "--channel", "channel", "--json")
        assert ran.code == 0, ran.err
        assert ran.document["check"] == ran.document["check"] | {"whole": True, "entries": 3, "covered": 3}
        assert "promote" in command("deploy", "log", "--channel", "channel").out

    @pytest.mark.parametrize(
        "change", ["UPDATE deployments SET actor = 'nobody' WHERE entry = 1", "DELETE FROM deployments WHERE entry = 3"]
    )
    def test_a_rewritten_log_is_found_out(
        self, command: Command, certified: tuple[Path, Path], tmp_path: Path, change: str
    ) -> None:
        for path in (*certified, certified[0]):
            assert command("deploy", path, "--channel", "channel").code == 0
        with closing(sqlite3.connect(tmp_path / ".autopoiesis" / "store.db")) as database, database:
            for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                database.execute(f"DROP TRIGGER {name}")
            database.execute(change)
        ran = command("deploy", "log", "--check", "--channel", "channel", "--json")
        assert ran.code == 1 and not ran.document["check"]["whole"]
        assert ran.err.count("\n") == 1

    def test_no_head_of_a_damaged_log_is_signed(
        self, command: Command, certified: tuple[Path, Path], tmp_path: Path
    ) -> None:
        for path in (*certified, certified[0]):
            command("deploy", path, "--channel", "channel")
        with closing(sqlite3.connect(tmp_path / ".autopoiesis" / "store.db")) as database, database:
            for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                database.execute(f"DROP TRIGGER {name}")
            database.execute("DELETE FROM deployments WHERE entry = 3")
        assert command("deploy", certified[1], "--channel", "channel").code == 0
        ran = command("deploy", "log", "--check", "--channel", "channel", "--json")
        assert ran.code == 1, "the next entry took the place of the removed one, and the signed head shows it"

    def test_publishing_with_two_stores_signs_both(self, command: Command, certified: tuple[Path, Path]) -> None:
        assert command("deploy", certified[0], "--channel", "channel").code == 0
        assert command("deploy", certified[1], "--channel", "channel", "--store", "other.db").code == 0
        for store in (".autopoiesis/store.db", "other.db"):
            ran = command("deploy", "log", "--check", "--channel", "channel", "--store", store, "--json")
            assert ran.code == 0 and ran.document["check"]["covered"] == 1


class TestParameters:
    """A contract's parameters weaken what is proved, so the person who deploys says them, not the certificate."""

    def certify(self, command: Command, tmp_path: Path) -> Path:
        source = next(iter(Preemption().baselines().values()))
        (tmp_path / "victims.py").write_text(source)
        ran = command(
            "verify", "victims.py", "--contract", "preemption", "--set", "max_preemption_gap=60000", "--certificate",
            "certificate.json",
        )  # fmt: skip
        assert ran.code == 0, ran.err
        return tmp_path / "victims.py"

    def test_those_of_a_certificate_are_not_taken(self, command: Command, tmp_path: Path) -> None:
        command("keys", "new", "fleet")
        path = self.certify(command, tmp_path)
        refused = command("deploy", path, "--channel", "channel")
        assert refused.code == 1 and "--set max_preemption_gap=60000" in refused.err
        assert not (tmp_path / "channel" / "active-preemption.json").exists()
        given = command("deploy", path, "--channel", "channel", "--set", "max_preemption_gap=60000")
        assert given.code == 0, given.err


class TestKeyRotation:
    def test_after_it_deploy_rollback_and_log_go_on(
        self, command: Command, certified: tuple[Path, Path], tmp_path: Path
    ) -> None:
        digests = [command("deploy", path, "--channel", "channel", "--json").document["digest"] for path in certified]
        assert command("deploy", "freeze", "--channel", "channel").code == 0
        assert command("deploy", "unfreeze", "--channel", "channel").code == 0
        keys = tmp_path / ".autopoiesis" / "keys"
        (keys / "fleet.key").unlink()
        (keys / "fleet.pub").unlink()
        assert command("keys", "new", "next").code == 0
        back = command("deploy", "rollback", "--channel", "channel", "--to", digests[0], "--json")
        if back.code != 0:  # the standing notice is of a key that nobody trusts any more
            assert command("deploy", certified[1], "--channel", "channel").code == 0
            back = command("deploy", "rollback", "--channel", "channel", "--to", digests[0], "--json")
        assert back.code == 0, back.err
        channel = channel_in(tmp_path)
        notice = channel.accept()
        assert notice is not None and notice.digest == digests[0]
        source, certificate = channel.files_of(notice, digests[0])
        assert load_ordering(source, certificate, keys=keys).digest == digests[0]
        assert channel.accept_orders() is not None
        checked = command("deploy", "log", "--check", "--channel", "channel", "--json")
        assert checked.code == 0 and checked.document["check"]["covered"] == checked.document["check"]["entries"]


class TestOtherStores:
    def test_a_rollback_from_one_that_knows_nothing_is_refused(
        self, command: Command, certified: tuple[Path, Path]
    ) -> None:
        for path in certified:
            command("deploy", path, "--channel", "channel")
        ran = command("deploy", "rollback", "--channel", "channel", "--store", "other.db")
        assert ran.code == 2 and "--store" in ran.err and "--builtin" in ran.err
        assert command("deploy", "rollback", "--builtin", "--channel", "channel", "--store", "other.db").code == 0

    def test_one_without_the_log_is_not_called_whole(self, command: Command, certified: tuple[Path, Path]) -> None:
        command("deploy", certified[0], "--channel", "channel")
        ran = command("deploy", "log", "--check", "--channel", "channel", "--store", "other.db")
        assert ran.code == 1 and "--store" in ran.err

    def test_an_order_is_given_without_any(
        self, command: Command, certified: tuple[Path, Path], tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("in the way")
        ran = command("deploy", "freeze", "--channel", "channel", "--store", "file/store.db", "--json")
        assert ran.code == 0 and ran.document["frozen"]
        assert "not logged" in ran.err

    def test_a_restored_one_is_anchored_again(
        self, command: Command, certified: tuple[Path, Path], tmp_path: Path
    ) -> None:
        store = tmp_path / ".autopoiesis" / "store.db"
        command("deploy", certified[0], "--channel", "channel")
        with closing(sqlite3.connect(store)) as database, closing(sqlite3.connect(tmp_path / "backup.db")) as backup:
            database.backup(backup)
        command("deploy", certified[1], "--channel", "channel")
        for name in ("store.db", "store.db-wal", "store.db-shm"):
            (tmp_path / ".autopoiesis" / name).unlink(missing_ok=True)
        (tmp_path / "backup.db").rename(store)
        assert command("deploy", "log", "--check", "--channel", "channel").code == 1
        assert command("deploy", "log", "--anchor", "--channel", "channel").code == 0
        ran = command("deploy", "log", "--check", "--channel", "channel", "--json")
        assert ran.code == 0 and ran.document["entries"][-1]["action"] == "anchor"


@pytest.mark.parametrize("reason", ["x" * 5_000, "\x1b[2J\u202e", "\udcff"])
def test_any_reason_may_be_given(command: Command, certified: tuple[Path, Path], reason: str) -> None:
    assert command("deploy", "freeze", "--channel", "channel", "--note", reason).code == 0
    assert command("deploy", "unfreeze", "--channel", "channel").code == 0
    digest = command("deploy", certified[0], "--channel", "channel", "--note", reason, "--json").document["digest"]
    assert command("deploy", "quarantine", digest[:12], "--channel", "channel", "--note", reason).code == 0
    assert "\x1b" not in command("deploy", "status", "--channel", "channel").out
    assert command("deploy", "quarantine", "abc", "--channel", "channel").code == 2


def test_a_user_without_a_name_is_a_number(
    command: Command, certified: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _uid: (_ for _ in ()).throw(KeyError("no such user")))
    assert command("deploy", certified[0], "--channel", "channel").code == 0
    log = command("deploy", "log", "--channel", "channel", "--json").document["entries"]
    assert log[0]["actor"].startswith("uid ")
