"""`autopoiesis deploy` and `keys`: only what an engine would accept is published, and it can be undone."""

from pathlib import Path

import pytest
from autopoiesis_adapters.loading import load_ordering
from autopoiesis_contracts.admission import Admission
from autopoiesis_contracts.preemption import Preemption
from autopoiesis_contracts.request_ordering import RequestOrdering

from autopoiesis_lib import Certificate, Contract, Policy
from autopoiesis_lib.protocol.channel import Channel

from .conftest import Command


@pytest.fixture
def certified(command: Command, policies: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two certified policies, each with its certificate beside it."""
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


def test_a_signed_policy_is_published_as_an_engine_will_accept_it(
    command: Command, certified: tuple[Path, Path], tmp_path: Path
) -> None:
    assert command("keys", "new", "fleet").code == 0
    ran = command("deploy", certified[1], "--channel", "channel", "--key", "fleet", "--json")
    assert ran.code == 0, ran.err
    channel = Channel(tmp_path / "channel")
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
    refused = command("deploy", certified[0], "--channel", "channel")
    assert refused.code == 1
    assert "not signed" in refused.err
    assert Channel(tmp_path / "channel").read() is None
    assert command("deploy", certified[0], "--channel", "channel", "--allow-unsigned").code == 0


@pytest.mark.parametrize(("name", "contract"), [("admission", Admission()), ("preemption", Preemption())])
def test_every_lever_has_a_slot_of_its_own_to_publish_in_and_to_roll_back(
    command: Command, certified: tuple[Path, Path], name: str, contract: Contract, tmp_path: Path
) -> None:
    ordering = command("deploy", certified[0], "--channel", "channel", "--allow-unsigned", "--json").document["digest"]
    (tmp_path / "lever.py").write_text(next(iter(contract.baselines().values())))
    ran = command("deploy", "lever.py", "--contract", name, "--channel", "channel", "--allow-unsigned", "--json")
    assert ran.code == 0, ran.err
    channel = Channel(tmp_path / "channel")
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
    ran = command("deploy", certified[0], "--channel", "channel", "--allow-unsigned")
    assert ran.code == 1
    assert "not the certified one" in ran.err
    assert Channel(tmp_path / "channel").read() is None


def test_a_forged_certificate_is_neither_signed_nor_published(
    command: Command, certified: tuple[Path, Path], policies: Path, tmp_path: Path
) -> None:
    """Whoever can write a file must not get a signature for it: a refuted policy under the certificate of another one."""
    command("keys", "new", "fleet")
    refuted = Policy.from_file(policies / "sjf.py", RequestOrdering())
    path = certified[1].with_name("certificate.json")
    forged = Certificate.read(path).model_copy(
        update={"policy_digest": refuted.digest, "policy_source": refuted.source, "bounds": {"ages": 0}}
    )
    forged.write(path)
    certified[1].write_text(refuted.source)
    for leave in (("--key", "fleet"), ("--allow-unsigned",)):
        ran = command("deploy", certified[1], "--channel", "channel", *leave)
        assert ran.code == 1 and "REFUTED" in ran.err
    assert Channel(tmp_path / "channel").read() is None


def test_a_bound_that_is_not_the_proved_one_is_not_signed(
    command: Command, certified: tuple[Path, Path], tmp_path: Path
) -> None:
    command("keys", "new", "fleet")
    path = certified[1].with_name("certificate.json")
    Certificate.read(path).model_copy(update={"bounds": {"ages": 1_000}}).write(path)
    ran = command("deploy", certified[1], "--channel", "channel", "--key", "fleet")
    assert ran.code == 1
    assert "8191000" in ran.err and str(path) in ran.err
    assert Channel(tmp_path / "channel").read() is None


def test_nothing_new_is_published_on_a_frozen_channel_but_going_back_is_allowed(
    command: Command, certified: tuple[Path, Path]
) -> None:
    for path in certified:
        command("deploy", path, "--channel", "channel", "--allow-unsigned")
    frozen = command("deploy", "freeze", "--channel", "channel", "--json").document
    status = command("deploy", "status", "--channel", "channel", "--json").document
    assert frozen["active"] == status["active"]["digest"] and frozen["frozen"] and status["frozen"]
    assert "FROZEN" in command("deploy", "status", "--channel", "channel").out
    ran = command("deploy", certified[0], "--channel", "channel", "--allow-unsigned")
    assert ran.code == 1 and "deploy unfreeze" in ran.err
    assert command("deploy", "rollback", "--channel", "channel").code == 0
    assert command("deploy", "unfreeze", "--channel", "channel").code == 0
    assert command("deploy", certified[1], "--channel", "channel", "--allow-unsigned").code == 0


def test_a_policy_without_certificate_is_verified_now_and_refused_when_it_fails(
    command: Command, policies: Path
) -> None:
    ran = command("deploy", policies / "sjf.py", "--channel", "channel", "--allow-unsigned", "--json")
    assert ran.code == 1
    assert ran.document["published"] is False
    assert "REFUTED" in ran.err


def test_rollback_goes_back_one_policy_at_a_time_to_the_builtin_order(
    command: Command, certified: tuple[Path, Path]
) -> None:
    digests = [
        command("deploy", path, "--channel", "channel", "--allow-unsigned", "--json").document["digest"]
        for path in certified
    ]
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
    digest = command("deploy", certified[0], "--channel", "channel", "--allow-unsigned", "--json").document["digest"]
    Channel(tmp_path / "channel").report(
        "engine-1", {"digest": digest, "aging_us": 0, "refusal": "", "quarantined": {}}
    )
    ran = command("deploy", "status", "--channel", "channel")
    assert "engine-1" in ran.out
    assert digest[:12] in ran.out


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


def test_keys_are_listed_without_their_secret(command: Command) -> None:
    made = command("keys", "new", "fleet", "--json").document
    listed = command("keys", "list", "--json")
    assert listed.document == {"keys": [{"name": "fleet", "key_id": made["key_id"], "can_sign": True}]}
    assert command("keys", "new", "fleet").code == 2
