"""Claims about rollouts: what may be published when, what survives a crash, and who has the last word."""

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from autopoiesis_adapters.loading import load_ordering
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter

from autopoiesis_lib import Certificate, Policy, verify
from autopoiesis_lib.online.rollout import Evidence, Rollout
from autopoiesis_lib.online.state import RolloutError, Stage
from autopoiesis_lib.protocol.channel import Channel, ChannelError, ChannelProblem, Mode, Notice, Trust
from autopoiesis_lib.protocol.keys import load_key, new_key
from autopoiesis_lib.store import Store
from tests.support.fleet import Fleet

GOOD = Evidence(objective="ttft_mean_us", reduction=0.3, ci95=(0.2, 0.4), requests=500, window="w")
NOISE = Evidence(objective="ttft_mean_us", reduction=0.05, ci95=(-0.01, 0.1), requests=500, window="w")


@pytest.fixture(scope="module")
def certificates() -> dict[str, Certificate]:
    names = ("shortest-prompt-aging", "priority-aging")
    return {name: verify(Policy.from_source(BASELINES[name], RequestOrdering())) for name in names}


@pytest.fixture
def first(certificates: dict[str, Certificate]) -> Certificate:
    return certificates["shortest-prompt-aging"]


@pytest.fixture
def second(certificates: dict[str, Certificate]) -> Certificate:
    return certificates["priority-aging"]


def rollout(folder: Path, *, require_approval: bool = False, canary: Path | None = None) -> Rollout:
    return Rollout(
        Store.open(folder / "store.db"),
        Fleet(folder).publisher(folder / "channel"),
        contract="request-ordering",
        actor="test",
        require_approval=require_approval,
        canary_channel=Fleet(folder).publisher(canary) if canary is not None else None,
    )


def wanted(folder: Path) -> str | None:
    notice = Fleet(folder.parent).publisher(folder).read()
    return notice.digest if notice is not None else "nothing"


def actions(folder: Path) -> list[str]:
    return [row.action for row in Store.open(folder / "store.db").deployments()]


def test_a_better_candidate_goes_through_shadow_and_canary_to_promotion(tmp_path: Path, first: Certificate) -> None:
    channel = tmp_path / "channel"
    assert rollout(tmp_path).propose(first).stage is Stage.SHADOW
    assert wanted(channel) == "nothing"
    assert rollout(tmp_path).start_canary(GOOD).stage is Stage.CANARY
    assert wanted(channel) == first.policy_digest
    state = rollout(tmp_path).promote(GOOD)
    assert (state.stage, state.active, state.history, state.owed) == (Stage.IDLE, first.policy_digest, (None,), False)
    assert wanted(channel) == first.policy_digest
    assert actions(tmp_path) == ["propose", "canary", "published", "promote", "published"]


def test_a_canary_is_bounded_in_the_engine_itself_and_promotion_lifts_the_bound(
    tmp_path: Path, first: Certificate, second: Certificate
) -> None:
    ours, channel = rollout(tmp_path), Fleet(tmp_path).publisher(tmp_path / "channel")
    ours.canary_bound_s = 90.0
    for certificate, base in ((first, None), (second, first.policy_digest)):
        ours.propose(certificate)
        ours.start_canary(GOOD)
        notice = channel.read()
        assert notice is not None
        assert (notice.mode, notice.seconds, notice.base) == ("canary", 90.0, base)
        ours.promote(GOOD)
        notice = channel.read()
        assert notice is not None
        assert (notice.mode, notice.seconds, notice.digest) == ("active", None, certificate.policy_digest)


def test_what_is_within_noise_is_never_published(tmp_path: Path, first: Certificate) -> None:
    ours = rollout(tmp_path)
    ours.propose(first)
    with pytest.raises(RolloutError, match="beyond noise"):
        ours.start_canary(NOISE)
    assert wanted(tmp_path / "channel") == "nothing"
    ours.start_canary(GOOD)
    with pytest.raises(RolloutError, match="worse beyond noise"):
        ours.promote(replace(NOISE, reduction=-0.05, ci95=(-0.1, -0.01)))
    assert ours.state.active is None
    assert ours.roll_back("not better after all").stage is Stage.IDLE
    assert wanted(tmp_path / "channel") is None


def test_a_candidate_waits_for_a_persons_yes(tmp_path: Path, first: Certificate) -> None:
    ours = rollout(tmp_path, require_approval=True)
    ours.propose(first)
    with pytest.raises(RolloutError, match="waits for approval"):
        ours.start_canary(GOOD)
    assert wanted(tmp_path / "channel") == "nothing"
    rollout(tmp_path).approve()
    assert ours.start_canary(GOOD).stage is Stage.CANARY


def test_nothing_new_is_published_while_frozen_but_going_back_is_allowed(
    tmp_path: Path, first: Certificate, second: Certificate
) -> None:
    ours = rollout(tmp_path)
    ours.propose(first)
    ours.start_canary(GOOD)
    ours.promote(GOOD)
    ours.freeze("an incident")
    with pytest.raises(RolloutError, match="frozen"):
        ours.propose(second)
    ours.unfreeze()
    ours.propose(second)
    ours.freeze()
    with pytest.raises(RolloutError, match="frozen"):
        ours.start_canary(GOOD)
    ours.unfreeze()
    ours.start_canary(GOOD)
    ours.freeze()
    assert ours.roll_back("the incident goes on").active == first.policy_digest
    assert wanted(tmp_path / "channel") == first.policy_digest
    assert ours.roll_back("to the very beginning").active is None
    assert wanted(tmp_path / "channel") is None
    with pytest.raises(RolloutError, match="nothing to go back to"):
        ours.roll_back("further")


def test_a_quarantined_policy_is_never_proposed_again_until_released(tmp_path: Path, first: Certificate) -> None:
    ours = rollout(tmp_path)
    ours.propose(first)
    ours.start_canary(GOOD)
    ours.roll_back("a guard tripped", quarantine=True)
    with pytest.raises(RolloutError, match="in quarantine \\(a guard tripped\\)"):
        ours.propose(first)
    ours.release(first.policy_digest)
    assert ours.propose(first).stage is Stage.SHADOW


def test_quarantining_the_active_policy_takes_it_off_the_channel(tmp_path: Path, first: Certificate) -> None:
    ours = rollout(tmp_path)
    ours.propose(first)
    ours.start_canary(GOOD)
    ours.promote(GOOD)
    ours.quarantine(first.policy_digest, "engine-0 dropped it")
    assert wanted(tmp_path / "channel") is None


def test_one_rollout_at_a_time(tmp_path: Path, first: Certificate, second: Certificate) -> None:
    ours = rollout(tmp_path)
    ours.propose(first)
    with pytest.raises(RolloutError, match="is being rolled out"):
        ours.propose(second)
    with pytest.raises(RolloutError, match="not in canary"):
        ours.promote(GOOD)
    ours.reject("no")
    ours.propose(second)


class Unwritable(Channel):
    """A channel whose disk is full."""

    def publish(self, digest: str, source: str, certificate: str, **_how: Any) -> Notice:
        raise ChannelError(f"{self.root} cannot be written: No space left on device")


@pytest.mark.parametrize("publishing_died", [True, False], ids=["before-publishing", "after-publishing"])
def test_a_decision_whose_publication_was_cut_off_is_completed_after_a_restart(
    tmp_path: Path, first: Certificate, publishing_died: bool
) -> None:
    ours = rollout(tmp_path)
    ours.propose(first)
    working = ours.channel
    ours.channel = ours.canary_channel = Unwritable(working.root, working.key, working.trust, working.state)
    with pytest.raises(ChannelError):
        ours.start_canary(GOOD)
    if not publishing_died:
        text = Fleet(tmp_path).certificate(first)
        Fleet(tmp_path).publisher(tmp_path / "channel").publish(
            first.policy_digest, first.policy_source, text, note="died right after", mode="canary", seconds=60.0
        )
    again = rollout(tmp_path)
    assert again.state.owed
    state = again.reconcile()
    assert (state.stage, state.owed) == (Stage.CANARY, False)
    assert wanted(tmp_path / "channel") == first.policy_digest
    assert again.reconcile() == state


def test_what_a_person_publishes_is_adopted_not_overwritten(
    tmp_path: Path, first: Certificate, second: Certificate
) -> None:
    ours = rollout(tmp_path)
    ours.propose(first)
    ours.start_canary(GOOD)
    ours.promote(GOOD)
    by_hand = Fleet(tmp_path).certificate(second)
    Fleet(tmp_path).publisher(tmp_path / "channel").publish(
        second.policy_digest, second.policy_source, by_hand, note="by hand"
    )
    state = ours.reconcile()
    assert (state.active, state.history[-1]) == (second.policy_digest, first.policy_digest)
    assert wanted(tmp_path / "channel") == second.policy_digest
    assert ours.roll_back("back").active == first.policy_digest
    assert wanted(tmp_path / "channel") == first.policy_digest


def test_a_person_who_undoes_a_canary_is_not_overruled(tmp_path: Path, first: Certificate) -> None:
    ours = rollout(tmp_path)
    ours.propose(first)
    ours.start_canary(GOOD)
    Fleet(tmp_path).publisher(tmp_path / "channel").publish_builtin(note="by hand")
    state = ours.reconcile()
    assert (state.stage, state.active) == (Stage.IDLE, None)
    assert wanted(tmp_path / "channel") is None
    with pytest.raises(RolloutError, match="a person took it out"):
        ours.propose(first)


def test_a_separate_canary_channel_leaves_the_others_alone(tmp_path: Path, first: Certificate) -> None:
    ours = rollout(tmp_path, canary=tmp_path / "canaries")
    ours.propose(first)
    ours.start_canary(GOOD)
    assert (wanted(tmp_path / "channel"), wanted(tmp_path / "canaries")) == ("nothing", first.policy_digest)
    assert ours.reconcile().stage is Stage.CANARY
    ours.promote(GOOD)
    assert (wanted(tmp_path / "channel"), wanted(tmp_path / "canaries")) == (first.policy_digest, first.policy_digest)
    ours.roll_back("no")
    assert (wanted(tmp_path / "channel"), wanted(tmp_path / "canaries")) == (None, None)


def test_the_log_cannot_be_rewritten(tmp_path: Path, first: Certificate) -> None:
    rollout(tmp_path).propose(first)
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'store.db'}")
    for statement in ("UPDATE deployments SET action = 'promote'", "DELETE FROM deployments"):
        with pytest.raises(sa.exc.DatabaseError, match="append-only"), engine.begin() as connection:
            connection.exec_driver_sql(statement)
    assert actions(tmp_path) == ["propose"]


def test_each_row_of_the_audit_log_goes_to_opentelemetry_as_an_event(
    tmp_path: Path, first: Certificate, exported: InMemoryLogRecordExporter
) -> None:
    rolling = rollout(tmp_path)
    rolling.propose(first)
    rolling.start_canary(GOOD)
    rolling.roll_back("a guard tripped", quarantine=True)
    records = [item.log_record for item in exported.get_finished_logs()]
    assert [record.event_name for record in records] == [
        f"autopoiesis.rollout.{action}" for action in actions(tmp_path)
    ]
    (canary,) = (record for record in records if record.event_name == "autopoiesis.rollout.canary")
    found = dict(canary.attributes or {})
    assert found["autopoiesis.digest"] == first.policy_digest and found["autopoiesis.contract"] == "request-ordering"
    assert (found["autopoiesis.reduction"], found["autopoiesis.ci95"]) == (0.3, "[0.2, 0.4]")
    assert canary.body == f"autopoiesis: canary {first.policy_digest[:12]}"


def test_a_detail_under_the_name_of_an_attribute_breaks_nothing(
    tmp_path: Path, exported: InMemoryLogRecordExporter
) -> None:
    rollout(tmp_path).note("calibrate", contract="mine", message="hello", level=3, nothing=None)
    (record,) = (item.log_record for item in exported.get_finished_logs())
    found = dict(record.attributes or {})
    assert found["autopoiesis.contract"] == "request-ordering" and found["autopoiesis.message"] == "hello"
    assert "autopoiesis.nothing" not in found


class TestTrialsOfSomebodyElse:
    """A shadow or canary that somebody else published decides nothing for good, so it is not taken for the active policy."""

    @pytest.mark.parametrize("mode", ["canary", "shadow"])
    @pytest.mark.parametrize("held", ["free", "approval", "frozen"])
    def test_a_foreign_trial_is_not_adopted(
        self, tmp_path: Path, first: Certificate, second: Certificate, mode: Mode, held: str
    ) -> None:
        ours = rollout(tmp_path, require_approval=held == "approval")
        ours.propose(first)
        if held != "approval":
            ours.start_canary(GOOD)
            ours.promote(GOOD)
        Fleet(tmp_path).publish(
            tmp_path / "channel", policy_of(second), second, mode=mode, seconds=60.0 if mode == "canary" else None
        )
        if held == "frozen":
            ours.freeze("hands off")
        before = ours.state
        state = ours.reconcile()
        assert (state.active, state.stage, state.candidate) == (before.active, before.stage, before.candidate)
        assert ours.foreign is not None and ours.foreign.digest == second.policy_digest
        assert "adopt" not in actions(tmp_path)
        standing = Fleet(tmp_path).publisher(tmp_path / "channel").read()
        assert standing is not None and standing.mode == mode, "it is left alone"
        ours.reconcile()
        assert actions(tmp_path).count("trial-seen") == 1

    def test_our_canary_is_over_when_somebody_elses_takes_its_place(
        self, tmp_path: Path, first: Certificate, second: Certificate
    ) -> None:
        ours = rollout(tmp_path)
        ours.propose(first)
        ours.start_canary(GOOD)
        Fleet(tmp_path).publish(tmp_path / "channel", policy_of(second), second, mode="canary", seconds=60.0)
        state = ours.reconcile()
        assert (state.stage, state.candidate, state.active, state.owed) == (Stage.IDLE, None, None, False)
        assert wanted(tmp_path / "channel") == second.policy_digest

    def test_when_a_foreign_canary_is_over_its_base_is_active(
        self, tmp_path: Path, first: Certificate, second: Certificate
    ) -> None:
        ours = rollout(tmp_path)
        ours.propose(first)
        ours.start_canary(GOOD)
        ours.promote(GOOD)
        Fleet(tmp_path).publish(tmp_path / "channel", policy_of(second), second, mode="canary", decisions=5)
        assert ours.reconcile().active == first.policy_digest and ours.foreign is not None
        ours.channel.report(
            "one", {"heartbeat": time.time(), "trial": {"digest": second.policy_digest, "ended": "5 decisions"}}
        )
        state = ours.reconcile()
        assert ours.foreign is None and state.active == first.policy_digest
        standing = Fleet(tmp_path).publisher(tmp_path / "channel").read()
        assert standing is not None and (standing.digest, standing.mode) == (first.policy_digest, "active")

    def test_a_foreign_canary_that_was_promoted_is_adopted(self, tmp_path: Path, first: Certificate) -> None:
        ours = rollout(tmp_path)
        Fleet(tmp_path).publish(tmp_path / "channel", policy_of(first), first, mode="canary", seconds=60.0)
        assert ours.reconcile().active is None
        Fleet(tmp_path).publish(tmp_path / "channel", policy_of(first), first)
        assert ours.reconcile().active == first.policy_digest


class TestNoticesNobodyVouchesFor:
    def test_a_forged_notice_is_replaced_by_what_is_wanted(
        self, tmp_path: Path, first: Certificate, second: Certificate
    ) -> None:
        ours = rollout(tmp_path)
        ours.propose(first)
        ours.start_canary(GOOD)
        ours.promote(GOOD)
        stranger = Fleet(tmp_path / "stranger")
        (tmp_path / "stranger").mkdir()
        forged = stranger.publisher(tmp_path / "elsewhere")
        forged.publish(second.policy_digest, second.policy_source, stranger.certificate(second))
        (tmp_path / "channel" / "active.json").write_bytes((tmp_path / "elsewhere" / "active.json").read_bytes())
        state = ours.reconcile()
        assert state.active == first.policy_digest
        assert wanted(tmp_path / "channel") == first.policy_digest
        assert "healed" in actions(tmp_path)

    def test_an_old_notice_that_was_put_back_is_replaced(
        self, tmp_path: Path, first: Certificate, second: Certificate
    ) -> None:
        ours = rollout(tmp_path)
        path = tmp_path / "channel" / "active.json"
        ours.propose(first)
        ours.start_canary(GOOD)
        ours.promote(GOOD)
        old = path.read_bytes()
        ours.roll_back("it did harm", quarantine=True)
        path.write_bytes(old)
        assert ours.reconcile().active is None
        assert wanted(tmp_path / "channel") is None

    def test_orders_nobody_vouches_for_are_those_of_before(self, tmp_path: Path, first: Certificate) -> None:
        ours = rollout(tmp_path)
        ours.freeze("hands off")
        (tmp_path / "channel" / "orders.json").write_text("{}")
        with pytest.raises(RolloutError, match="frozen"):
            ours.propose(first)
        ours.reconcile()
        assert Fleet(tmp_path).reader(tmp_path / "channel").accept_orders().frozen  # type: ignore[union-attr]

    @pytest.mark.parametrize("what", ["active.json", "channel"])
    def test_a_notice_that_is_gone_is_published_again(self, tmp_path: Path, first: Certificate, what: str) -> None:
        ours = rollout(tmp_path)
        ours.propose(first)
        ours.start_canary(GOOD)
        ours.promote(GOOD)
        if what == "channel":
            shutil.rmtree(tmp_path / "channel")
        else:
            (tmp_path / "channel" / what).unlink()
        ours.reconcile()
        assert wanted(tmp_path / "channel") == first.policy_digest
        accepted = Fleet(tmp_path).reader(tmp_path / "channel").accept()
        assert accepted is not None and accepted.digest == first.policy_digest

    def test_a_key_taken_out_of_trust_is_replaced(self, tmp_path: Path, first: Certificate) -> None:
        ours = rollout(tmp_path)
        ours.propose(first)
        ours.start_canary(GOOD)
        ours.promote(GOOD)
        ours.freeze("while keys change")
        new_key(tmp_path / "secret", "next")
        (tmp_path / "trusted" / "fleet.pub").unlink()
        (tmp_path / "trusted" / "next.pub").write_text((tmp_path / "secret" / "next.pub").read_text())
        key = load_key(tmp_path / "secret", "next")
        trust = Trust(tmp_path / "trusted")
        channel = Channel(tmp_path / "channel", key, trust, tmp_path / "state" / "publisher")
        again = Rollout(Store.open(tmp_path / "store.db"), channel, contract="request-ordering", actor="test")
        assert again.reconcile().frozen
        engine = Channel(tmp_path / "channel", trust=trust, state=tmp_path / "state" / "engine")
        notice = engine.accept()
        assert notice is not None and notice.digest == first.policy_digest
        source, certificate = engine.files_of(notice, first.policy_digest)
        assert load_ordering(source, certificate, keys=tmp_path / "trusted").digest == first.policy_digest
        assert engine.accept_orders().frozen  # type: ignore[union-attr]


class TestStandingOrders:
    def test_they_hold_for_every_store_and_spelling(self, tmp_path: Path, first: Certificate) -> None:
        rollout(tmp_path).freeze("hands off")
        (tmp_path / "alias").symlink_to(tmp_path / "channel")
        other = Rollout(
            Store.open(tmp_path / "other.db"),
            Fleet(tmp_path).publisher(tmp_path / "x" / ".." / "alias"),
            contract="request-ordering",
            actor="test",
        )
        with pytest.raises(RolloutError, match="frozen"):
            other.propose(first)
        other.unfreeze()
        other.quarantine(first.policy_digest, "seen to fail")
        with pytest.raises(RolloutError, match="quarantine"):
            rollout(tmp_path).propose(first)
        with pytest.raises(ChannelError, match="quarantine") as refused:
            Fleet(tmp_path).publish(tmp_path / "alias", policy_of(first), first)
        assert refused.value.problem is ChannelProblem.QUARANTINED

    def test_a_notice_is_renewed_long_before_it_expires(self, tmp_path: Path, first: Certificate) -> None:
        ours = rollout(tmp_path)
        Fleet(tmp_path).publish(tmp_path / "channel", policy_of(first), first, valid_s=3_600.0)
        assert ours.reconcile().active == first.policy_digest
        assert ours.reconcile().active == first.policy_digest
        renewed = Fleet(tmp_path).publisher(tmp_path / "channel").read()
        assert renewed is not None and renewed.expires - time.time() > 86_400
        assert ours.reconcile() == ours.state


class TestGoingBack:
    def test_what_is_in_quarantine_is_passed_over(
        self, tmp_path: Path, first: Certificate, second: Certificate
    ) -> None:
        ours = rollout(tmp_path)
        for certificate in (first, second):
            ours.propose(certificate)
            ours.start_canary(GOOD)
            ours.promote(GOOD)
        ours.quarantine(first.policy_digest, "seen to fail")
        state = ours.roll_back("so did this one", quarantine=True)
        assert (state.active, state.history, state.owed) == (None, (), False)
        assert wanted(tmp_path / "channel") is None
        assert rollout(tmp_path).state == state

    def test_each_policy_type_has_a_state_of_its_own(self, tmp_path: Path, first: Certificate) -> None:
        ours = rollout(tmp_path)
        ours.propose(first)
        ours.start_canary(GOOD)
        ours.promote(GOOD)
        other = Rollout(
            Store.open(tmp_path / "store.db"),
            Fleet(tmp_path).publisher(tmp_path / "channel"),
            contract="admission",
            actor="test",
        )
        assert other.state.active is None and other.state.history == ()
        assert ours.state.active == first.policy_digest


class TestSeparateCanaries:
    @pytest.mark.parametrize("act", ["quarantine", "freeze"])
    def test_orders_of_the_main_channel_reach_them(self, tmp_path: Path, first: Certificate, act: str) -> None:
        ours = rollout(tmp_path, canary=tmp_path / "canaries")
        ours.propose(first)
        ours.start_canary(GOOD)
        person = rollout(tmp_path)  # a command that knows of no canary channel
        if act == "quarantine":
            person.quarantine(first.policy_digest, "seen to fail")
        else:
            person.freeze("hands off")
        ours.reconcile()
        orders = Fleet(tmp_path).reader(tmp_path / "canaries", "canary").accept_orders()
        assert orders is not None
        if act == "quarantine":
            assert first.policy_digest in orders.quarantined
            assert wanted(tmp_path / "canaries") is None, "the canary is taken back"
        else:
            assert orders.frozen


def policy_of(certificate: Certificate) -> Policy:
    return Policy.from_source(certificate.policy_source, RequestOrdering())
