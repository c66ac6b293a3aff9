"""The store: real SQLite files and (in CI) a real PostgreSQL server."""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from autopoiesis_lib.store import CandidateRow, ProposalRow, RunRow, Store, StoreError


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server of our own on a Unix socket; its programs are found on PATH or where Debian puts them."""
    initdb, pg_ctl = _program("initdb"), _program("pg_ctl")
    assert initdb and pg_ctl, "PostgreSQL is not installed: `apt-get install postgresql`, as .ci/run does"
    folder = tmp_path_factory.mktemp("postgres")
    run_as: dict[str, object] = {}
    if os.getuid() == 0:  # the server refuses to run as root
        shutil.chown(folder, "nobody")
        for parent in folder.parents:
            if parent.stat().st_uid == 0 and parent != Path("/") and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
        run_as = {"user": "nobody"}
    data = folder / "data"
    subprocess.run(
        [initdb, "-D", data, "-U", "tester", "-A", "trust"], check=True, capture_output=True, cwd="/", **run_as
    )  # type: ignore[call-overload]
    options = f"-k {folder} -c listen_addresses='' -c fsync=off"
    start = [pg_ctl, "-D", data, "-w", "-o", options, "-l", folder / "log", "start"]
    subprocess.run(start, check=True, stdout=subprocess.DEVNULL, cwd="/", **run_as)  # type: ignore[call-overload]
    try:
        yield f"postgresql://tester@/postgres?host={folder}"
    finally:
        subprocess.run(
            [pg_ctl, "-D", data, "-m", "immediate", "stop"], check=True, capture_output=True, cwd="/", **run_as
        )  # type: ignore[call-overload]


def _program(name: str) -> str | None:
    found = shutil.which(name)
    if found is not None:
        return found
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(debian[-1]) if debian else None


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "sqlite":
        opened = Store.open(tmp_path / "store.db")
    else:
        url = request.getfixturevalue("postgres")
        engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        engine.dispose()
        opened = Store.open(url)
    yield opened
    opened.close()


RUN = RunRow(
    id="20260101-aa", contract="request-ordering", contract_digest="c" * 64, seed=1, status="running",
    config={"budget": {"candidates": 3}}, started_at="2026-01-01T00:00:00",
)  # fmt: skip


def proposal(number: int, parents: tuple[int, ...] = ()) -> ProposalRow:
    return ProposalRow(
        id=number, generation=1, source=f"text {number}", move="tune", parents=parents, details={"sigma": 0.5}
    )


def test_what_is_committed_is_read_back(store: Store) -> None:
    store.start_run(RUN)
    store.propose(RUN.id, [proposal(0), proposal(1, (0,)), proposal(2, (1, 0))])
    row = CandidateRow(id=1, verdict="PROVED", digest="d", fingerprint="f", scores={"ttft_mean_us": 2.5}, fitness=0.5)
    rejected = CandidateRow(
        id=0, verdict="REFUTED", gate="proof", detail="starves", counterexample={"obligation": "ages"}
    )
    store.commit(RUN.id, row)
    store.commit(RUN.id, rejected)
    assert store.candidates(RUN.id) == [rejected, row]
    assert [item.parents for item in store.proposals(RUN.id)] == [(), (0,), (1, 0)]
    assert store.run("20260101") == RUN
    store.update_run(RUN.id, status="done", spent_seconds=3.5, result={"best": 1})
    assert store.run(RUN.id).result == {"best": 1}


def test_a_candidate_is_committed_once(store: Store) -> None:
    store.start_run(RUN)
    store.propose(RUN.id, [proposal(0)])
    store.commit(RUN.id, CandidateRow(id=0, verdict="PROVED"))
    with pytest.raises(sa.exc.IntegrityError):
        store.commit(RUN.id, CandidateRow(id=0, verdict="REFUTED"))


def test_policies_and_certificates_are_addressed_by_content(store: Store) -> None:
    for _ in range(2):
        store.put_policy("p1", "request-ordering", "c1", "source one")
        store.put_certificate("k1", "p1", "c1", '{"a": 1}')
    store.put_policy("p2", "request-ordering", "c1", "never certified")
    assert store.policy_source("p1") == "source one"
    assert store.certificate("k1") == '{"a": 1}'
    assert store.certified("c1") == [("p1", "source one")]
    with pytest.raises(StoreError, match="no policy"):
        store.policy_source("p3")


def test_lineage_deployments_policies_and_certificates_cannot_be_rewritten(store: Store) -> None:
    store.start_run(RUN)
    store.propose(RUN.id, [proposal(0), proposal(1, (0,))])
    store.put_policy("p1", "request-ordering", "c1", "source one")
    store.put_certificate("k1", "p1", "c1", "{}")
    store.log_deployment("/channel", "promote", actor="me", policy_digest="p1")
    for statement in (
        "UPDATE lineage SET parent = 7", "DELETE FROM lineage", "UPDATE deployments SET action = 'x'", "DELETE FROM deployments",
        "UPDATE policies SET source = 'x'", "DELETE FROM certificates",
    ):  # fmt: skip
        with pytest.raises(sa.exc.DatabaseError, match="append-only"), store._engine.begin() as connection:
            connection.exec_driver_sql(statement)
    assert store.deployments("/channel")[0].action == "promote"


def test_a_counterexample_is_kept_once_per_contract_in_the_order_found(store: Store) -> None:
    first, second = {"obligation": "ages", "arguments": {"aging": 2}}, {"obligation": "ages", "arguments": {"aging": 1}}
    assert store.put_counterexamples("c1", [first]) == 1
    assert store.put_counterexamples("c1", [first, second, second]) == 1
    assert store.put_counterexamples("c1", [first]) == 0
    assert store.put_counterexamples("c2", [first]) == 1
    assert store.counterexamples("c1") == [first, second]
    assert store.counterexamples("c1", newest=1) == [second]
    assert store.put_counterexamples("c1", [{"number": i} for i in range(9)], limit=5) == 3
    assert store.counterexamples("c1")[2:] == [{"number": 0}, {"number": 1}, {"number": 2}]


def test_a_new_sqlite_store_is_in_wal_mode(tmp_path: Path) -> None:
    Store.open(tmp_path / "s.db").close()
    assert sqlite3.connect(tmp_path / "s.db").execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_store_of_another_schema_version_is_refused_with_both_versions(tmp_path: Path) -> None:
    Store.open(tmp_path / "s.db").close()
    with sqlite3.connect(tmp_path / "s.db") as connection:
        connection.execute("UPDATE meta SET value = '99'")
    with pytest.raises(StoreError, match="schema version 99, and this library reads version 1"):
        Store.open(tmp_path / "s.db")


def test_what_is_no_store_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database at all, however long it may be" * 40)
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE albums (id INTEGER)")
    for where in (
        tmp_path / "text.db",
        tmp_path / "other.db",
        tmp_path,
        "nonsense://x",
        "postgresql://nobody@127.0.0.1:1/x",
    ):
        with pytest.raises(StoreError) as caught:
            Store.open(where)
        assert "\n" not in str(caught.value)


def test_a_password_in_a_url_is_never_shown() -> None:
    with pytest.raises(StoreError) as caught:
        Store.open("postgresql://user:hunter2@127.0.0.1:1/x")
    assert "hunter2" not in str(caught.value)


def test_a_store_that_stays_locked_is_a_typed_error_and_can_be_written_afterwards(tmp_path: Path) -> None:
    """A control plane tries again in its next round; any other exception would end it."""
    store = Store.open(tmp_path / "store.db")
    sa.event.listen(store._engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout=20"))
    store.close()  # connections made from now on wait 20 ms instead of a minute
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match=r"cannot be written: database is locked; nothing was written, try again"):
        store.log_deployment("channel", "watch", actor="test")
    other.execute("ROLLBACK")
    other.close()
    store.log_deployment("channel", "watch", actor="test")
    assert [row.action for row in store.deployments("channel")] == ["watch"]
    store.close()
