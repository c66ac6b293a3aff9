"""Claims about the store: real SQLite files and a real PostgreSQL server."""

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from autopoiesis_cli.main import main
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from autopoiesis_lib.store import (
    CandidateRow,
    LogBreak,
    LogHead,
    LogProblem,
    ProposalRow,
    RunRow,
    Store,
    StoreError,
    log_text,
)
from autopoiesis_lib.store.log import chain_after

CHANNEL = "/channel"


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """A PostgreSQL server of our own on a Unix socket; its programs are found on PATH or where Debian puts them."""
    initdb, pg_ctl = _program("initdb"), _program("pg_ctl")
    assert initdb and pg_ctl, "PostgreSQL is not installed: `apt-get install postgresql`, as .ci/run does"
    with tempfile.TemporaryDirectory(prefix="autopoiesis-postgres-") as folder:  # pytest's own are for one user only
        run_as: dict[str, Any] = {"cwd": "/"}
        if os.getuid() == 0:  # the server refuses to run as root
            shutil.chown(folder, "nobody")
            run_as["user"] = "nobody"
        data = f"{folder}/data"
        subprocess.run([initdb, "-D", data, "-U", "tester", "-A", "trust"], check=True, capture_output=True, **run_as)
        options = f"-k {folder} -c listen_addresses='' -c fsync=off"
        start = [pg_ctl, "-D", data, "-w", "-o", options, "-l", f"{folder}/log", "start"]
        subprocess.run(start, check=True, stdout=subprocess.DEVNULL, **run_as)
        try:
            yield f"postgresql://tester@/postgres?host={folder}"
        finally:
            subprocess.run([pg_ctl, "-D", data, "-m", "immediate", "stop"], check=True, capture_output=True, **run_as)


def _program(name: str) -> str | None:
    found = shutil.which(name)
    if found is not None:
        return found
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(debian[-1]) if debian else None


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    server = str(request.getfixturevalue("postgres")).replace("postgresql://", "postgresql+psycopg://")
    engine = sa.create_engine(server)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    engine.dispose()
    return server


@pytest.fixture
def store(url: str) -> Iterator[Store]:
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


def fill(store: Store) -> None:
    """Put a row or two into every append-only table."""
    store.start_run(RUN)
    store.propose(RUN.id, [proposal(0), proposal(1, (0,)), proposal(2, (1,))])
    for name in ("1", "2"):
        store.put_policy(f"p{name}", "request-ordering", "c1", "source one")
        store.put_certificate(f"k{name}", f"p{name}", "c1", "{}")
        store.log_deployment(CHANNEL, "promote", actor="me", policy_digest=f"p{name}")


def execute(store: Store, *statements: str) -> None:
    with store._engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


class TestRuns:
    def test_reads_back_what_was_committed(self, store: Store) -> None:
        store.start_run(RUN)
        store.propose(RUN.id, [proposal(0), proposal(1, (0,)), proposal(2, (1, 0))])
        row = CandidateRow(
            id=1, verdict="PROVED", digest="d", fingerprint="f", scores={"ttft_mean_us": 2.5}, fitness=0.5
        )
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

    def test_commits_a_candidate_once(self, store: Store) -> None:
        store.start_run(RUN)
        store.propose(RUN.id, [proposal(0)])
        store.commit(RUN.id, CandidateRow(id=0, verdict="PROVED"))
        with pytest.raises(StoreError, match="nothing was written"):
            store.commit(RUN.id, CandidateRow(id=0, verdict="REFUTED"))
        assert [row.verdict for row in store.candidates(RUN.id)] == ["PROVED"]


class TestContent:
    def test_is_addressed_by_digest(self, store: Store) -> None:
        for _ in range(2):
            store.put_policy("p1", "request-ordering", "c1", "source one")
            store.put_certificate("k1", "p1", "c1", '{"a": 1}')
        store.put_policy("p2", "request-ordering", "c1", "never certified")
        assert store.policy_source("p1") == "source one"
        assert store.certificate("k1") == '{"a": 1}'
        assert store.certified("c1") == [("p1", "source one")]
        with pytest.raises(StoreError, match="no policy"):
            store.policy_source("p3")

    def test_keeps_a_counterexample_once_per_contract(self, store: Store) -> None:
        first = {"obligation": "ages", "arguments": {"aging": 2}}
        second = {"obligation": "ages", "arguments": {"aging": 1}}
        assert store.put_counterexamples("c1", [first]) == 1
        assert store.put_counterexamples("c1", [first, second, second]) == 1
        assert store.put_counterexamples("c1", [first]) == 0
        assert store.put_counterexamples("c2", [first]) == 1
        assert store.counterexamples("c1") == [first, second]
        assert store.counterexamples("c1", newest=1) == [second]
        assert store.put_counterexamples("c1", [{"number": i} for i in range(9)], limit=5) == 3
        assert store.counterexamples("c1")[2:] == [{"number": 0}, {"number": 1}, {"number": 2}]


ROW = "(id, at, channel, entry, action, policy_digest, certificate_digest, actor, detail, chain)"
VALUES = "'at', '/channel', {entry}, 'evil', NULL, NULL, 'me', '{{}}', 'c'"

REWRITES = (
    "UPDATE lineage SET parent = 7",
    "UPDATE deployments SET action = 'evil'",
    "UPDATE deployments SET id = 9 WHERE id = 1",
    "UPDATE policies SET source = 'evil'",
    "UPDATE certificates SET content = 'evil'",
    "DELETE FROM lineage",
    "DELETE FROM deployments",
    "DELETE FROM policies WHERE digest = 'p1'",
    "DELETE FROM certificates",
    f"INSERT INTO deployments {ROW} VALUES (1, {VALUES.format(entry=9)}) ON CONFLICT (id) DO UPDATE SET action = 'evil'",
    f"INSERT INTO deployments {ROW} VALUES (9, {VALUES.format(entry=1)}) "
    "ON CONFLICT (channel, entry) DO UPDATE SET action = 'evil'",
    "INSERT INTO policies VALUES ('p1', 'a', 'b', 'evil', 'at') ON CONFLICT (digest) DO UPDATE SET source = 'evil'",
    f"INSERT INTO lineage VALUES ('{RUN.id}', 1, 0, 9) ON CONFLICT (run, child, position) DO UPDATE SET parent = 9",
)
SQLITE_REWRITES = (
    *(
        f"INSERT OR REPLACE INTO deployments {ROW} VALUES ({key}, {VALUES.format(entry=9)})"
        for key in ("1", "'1'", "1.0", "-1")
    ),
    *(
        f"INSERT OR REPLACE INTO deployments {ROW} VALUES ({key}, {VALUES.format(entry=entry)})"
        for key in ("NULL", "9")
        for entry in ("1", "'1'", "1.0")
    ),
    f"REPLACE INTO deployments {ROW.replace('(id', '(oid')} VALUES (2, {VALUES.format(entry=9)})",
    f"REPLACE INTO deployments {ROW} SELECT id, at, channel, entry, 'evil', NULL, NULL, actor, detail, chain FROM deployments",
    "REPLACE INTO policies VALUES ('p1', 'a', 'b', 'evil', 'at')",
    "INSERT OR REPLACE INTO certificates VALUES ('k1', 'p', 'c', 'evil', 'at')",
    f"REPLACE INTO lineage VALUES ('{RUN.id}', '1', 0.0, 9)",
    *(
        statement
        for alias in ("rowid", "oid", "_rowid_")
        for key in ("1", "-1", "'2'")
        for statement in (
            f"REPLACE INTO policies ({alias}, digest, contract, contract_digest, source, at) "
            f"VALUES ({key}, 'new', 'a', 'b', 'evil', 'at')",
            f"REPLACE INTO certificates ({alias}, digest, policy_digest, contract_digest, content, at) "
            f"VALUES ({key}, 'new', 'a', 'b', 'evil', 'at')",
            f"REPLACE INTO lineage ({alias}, run, child, position, parent) VALUES ({key}, '{RUN.id}', 0, 0, 9)",
        )
    ),
    "UPDATE OR REPLACE policies SET digest = 'p2' WHERE digest = 'p1'",
    "UPDATE OR REPLACE policies SET rowid = 2 WHERE digest = 'p1'",
    "UPDATE OR REPLACE deployments SET id = 2 WHERE id = 1",
    "UPDATE OR IGNORE deployments SET entry = 2",
)


class TestAppendOnlyTables:
    @pytest.mark.parametrize("statement", REWRITES)
    def test_refuse_to_change_a_row(self, store: Store, statement: str) -> None:
        fill(store)
        before = frozen_rows(store)
        with pytest.raises(sa.exc.DatabaseError, match="append-only"):
            execute(store, statement)
        assert frozen_rows(store) == before

    @pytest.mark.parametrize("pragma", ["recursive_triggers", "foreign_keys"])
    def test_refuse_to_replace_a_row(self, tmp_path: Path, pragma: str) -> None:
        with_rows = Store.open(tmp_path / "store.db")
        fill(with_rows)
        before = frozen_rows(with_rows)
        connection = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
        for value in ("OFF", "ON"):
            connection.execute(f"PRAGMA {pragma}={value}")
            for statement in (*REWRITES, *SQLITE_REWRITES):
                with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                    connection.execute(statement)
        connection.close()
        assert frozen_rows(with_rows) == before
        with_rows.close()

    @pytest.mark.slow
    def test_refuse_truncate_and_replicas_on_postgresql(self, postgres: str) -> None:
        with_rows = Store.open(postgres)
        for table in ("lineage", "deployments", "policies", "certificates", "proposals"):
            with pytest.raises(sa.exc.DatabaseError, match="append-only"):
                execute(with_rows, f"TRUNCATE {table} CASCADE")
        with_rows.log_deployment(CHANNEL, "promote", actor="me")
        for statement in ("DELETE FROM deployments", "TRUNCATE deployments"):
            with pytest.raises(sa.exc.DatabaseError, match="append-only"):
                execute(with_rows, "SET LOCAL session_replication_role = replica", statement)
        with_rows.close()


def frozen_rows(store: Store) -> list[list[tuple[Any, ...]]]:
    with store._engine.connect() as connection:
        return [
            [tuple(row) for row in connection.exec_driver_sql(f"SELECT * FROM {table} ORDER BY 1, 2, 3")]
            for table in ("lineage", "deployments", "policies", "certificates")
        ]


COLUMNS = ("id", "at", "channel", "entry", "action", "policy_digest", "certificate_digest", "actor", "detail", "chain")


def unlock(store: Store) -> None:
    """Take away everything that the database itself holds against a change of the log, as somebody with the file can."""
    if store._engine.dialect.name == "sqlite":
        columns = ", ".join(COLUMNS)
        execute(
            store,
            f"CREATE TABLE loose ({columns})",
            f"INSERT INTO loose SELECT {columns} FROM deployments",
            "DROP TABLE deployments",
            "ALTER TABLE loose RENAME TO deployments",
        )
    else:
        execute(
            store,
            "ALTER TABLE deployments DISABLE TRIGGER ALL",
            "ALTER TABLE deployments DROP CONSTRAINT deployments_channel_entry_key",
            "ALTER TABLE deployments DROP CONSTRAINT deployments_pkey",
        )


def rows_of(store: Store, channel: str = CHANNEL) -> list[dict[str, Any]]:
    with store._engine.connect() as connection:
        found = connection.execute(
            sa.text("SELECT * FROM deployments WHERE channel = :channel ORDER BY entry, id"), {"channel": channel}
        )
        return [dict(row) for row in found.mappings()]


def put_back(store: Store, rows: list[dict[str, Any]]) -> None:
    """Make these the rows of the channel."""
    with store._engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM deployments WHERE channel = :channel"), {"channel": CHANNEL})
        for row in rows:
            connection.execute(
                sa.text(f"INSERT INTO deployments ({', '.join(COLUMNS)}) VALUES (:{', :'.join(COLUMNS)})"), row
            )


def rewritten(rows: list[dict[str, Any]], start: int, before: str) -> list[dict[str, Any]]:
    """The rows with another actor from an index on, chained by somebody who knows how: `before` is the chain before it."""
    result = rows[:start]
    for row in rows[start:]:
        changed = {**row, "actor": "somebody else"}
        before = chain_after(before, changed)
        result.append({**changed, "chain": before})
    return result


class TestLog:
    def test_numbers_and_chains_each_channel_for_itself(self, store: Store) -> None:
        empty = store.log_head("/a")
        for channel in ("/a", "/b", "/a", "/a"):
            store.log_deployment(channel, "note", actor="me", detail={"é": [1.5, None]})
        rows = store.deployments("/a")
        assert [row.entry for row in rows] == [1, 2, 3]
        assert [row.entry for row in store.deployments()] == [1, 1, 2, 3]
        assert rows[0].detail == {"é": [1.5, None]}
        assert len({row.chain for row in store.deployments()}) == 4
        assert empty.entries == 0 and empty != store.log_head("/b")
        assert store.log_head("/a") == LogHead(entries=3, chain=rows[2].chain)
        assert store.log_head("/b") == LogHead(entries=1, chain=store.deployments("/b")[0].chain)

    def test_is_whole_when_nobody_touched_it(self, store: Store) -> None:
        heads = [store.log_head(CHANNEL)]
        for _ in range(3):
            store.log_deployment(CHANNEL, "note", actor="me")
            heads.append(store.log_head(CHANNEL))
        for signed in (None, *heads):
            check = store.check_log(CHANNEL, signed)
            assert check.whole and check.head == heads[-1] and check.entries == 3
            assert check.covered == (0 if signed is None else signed.entries)

    def test_is_bound_to_its_store_and_channel(self, store: Store, tmp_path: Path) -> None:
        other = Store.open(tmp_path / "other.db")
        assert other.identity != store.identity
        for one in (store, other):
            one.log_deployment(CHANNEL, "note", actor="me")
        signed = other.log_head(CHANNEL)
        assert store.check_log(CHANNEL, signed).broken == LogBreak(entry=1, problem=LogProblem.FORKED)
        assert store.check_log("/b", other.log_head("/b")).broken is not None
        assert store.check_log("/b", store.log_head("/c")).broken is not None
        other.close()

    def test_shows_another_identity(self, url: str) -> None:
        store = Store.open(url)
        store.log_deployment(CHANNEL, "note", actor="me")
        signed = store.log_head(CHANNEL)
        execute(store, "UPDATE meta SET value = 'another' WHERE key = 'identity'")
        store.close()
        again = Store.open(url)
        assert again.check_log(CHANNEL, signed).broken == LogBreak(entry=1, problem=LogProblem.CHANGED)
        again.close()

    def test_keeps_its_identity(self, url: str) -> None:
        first = Store.open(url)
        first.close()
        again = Store.open(url)
        assert again.identity == first.identity
        again.close()

    @pytest.mark.parametrize("column", [name for name in COLUMNS if name not in ("channel", "entry")])
    def test_shows_a_changed_column(self, store: Store, column: str) -> None:
        signed = log_of(store, 4)
        rows = rows_of(store)
        rows[1][column] = 77 if column == "id" else "other"
        put_back(store, rows)
        expected = LogProblem.REORDERED if column == "id" else LogProblem.CHANGED
        assert store.check_log(CHANNEL, signed).broken == LogBreak(entry=2, problem=expected)
        assert store.check_log(CHANNEL).broken == LogBreak(entry=2, problem=expected)

    @pytest.mark.parametrize(
        ("tamper", "entry", "problem"),
        [
            (lambda rows: [rows[0], *rows[2:]], 2, LogProblem.MISSING),
            (lambda rows: rows[1:], 1, LogProblem.MISSING),
            (lambda rows: [rows[0], {**rows[1], "channel": "/elsewhere"}, *rows[2:]], 2, LogProblem.MISSING),
            (lambda rows: [*rows, {**rows[1], "id": 50}], 2, LogProblem.FORKED),
            (lambda rows: [*rows, {**rows[3], "id": 50, "entry": 5}], 5, LogProblem.CHANGED),
            (lambda rows: [*rows, {**rows[3], "entry": 0}], 5, LogProblem.CHANGED),
            (lambda rows: [rows[0], {**rows[2], "entry": 2}, {**rows[1], "entry": 3}, rows[3]], 2, LogProblem.REORDERED),
            (lambda rows: [{**rows[3], "entry": 1}, rows[1], rows[2], {**rows[0], "entry": 4}], 1, LogProblem.REORDERED),
        ],
    )  # fmt: skip
    def test_shows_rows_that_were_removed_added_or_moved(
        self, store: Store, tamper: Callable[[Any], Any], entry: int, problem: LogProblem
    ) -> None:
        log_of(store, 4)
        put_back(store, tamper(rows_of(store)))
        check = store.check_log(CHANNEL)
        assert check.broken == LogBreak(entry=entry, problem=problem)
        assert str(entry) in log_text(check)

    def test_shows_a_missing_tail_by_the_signed_head_only(self, store: Store) -> None:
        signed = log_of(store, 4)
        put_back(store, rows_of(store)[:2])
        assert store.check_log(CHANNEL).whole
        check = store.check_log(CHANNEL, signed)
        assert check.broken == LogBreak(entry=3, problem=LogProblem.TRUNCATED) and check.covered == 0
        assert check.head.entries == check.entries == 2

    def test_shows_a_consistent_rewrite_by_the_signed_head_only(self, store: Store) -> None:
        signed = log_of(store, 4)
        rows = rows_of(store)
        put_back(store, rewritten(rows, 2, rows[1]["chain"]))
        assert store.check_log(CHANNEL).whole
        assert store.check_log(CHANNEL, signed).broken == LogBreak(entry=4, problem=LogProblem.FORKED)
        earlier = LogHead(entries=2, chain=rows[1]["chain"])
        check = store.check_log(CHANNEL, earlier)  # what came after the signed head is not proved by it, and it says so
        assert check.whole and check.covered == 2 < check.entries == 4

    def test_shows_a_tail_that_was_cut_off_and_written_anew(self, store: Store) -> None:
        signed = log_of(store, 4)
        put_back(store, rows_of(store)[:3])
        store.log_deployment(CHANNEL, "note", actor="me")
        assert store.check_log(CHANNEL).whole
        assert store.check_log(CHANNEL, signed).broken == LogBreak(entry=4, problem=LogProblem.FORKED)

    @pytest.mark.parametrize("value", [b"\xff", b"note", None, 7, 2.5, "\xff"])
    @pytest.mark.parametrize("column", ["action", "detail", "entry", "chain"])
    def test_shows_a_value_of_another_type(self, tmp_path: Path, column: str, value: object) -> None:
        store = Store.open(tmp_path / "store.db")
        signed = log_of(store, 3)
        execute(store, f"UPDATE deployments SET {column} = {literal(value)} WHERE id = 2")
        check = store.check_log(CHANNEL, signed)
        expected = (2, LogProblem.MISSING) if column == "entry" else (2, LogProblem.CHANGED)
        assert check.broken == LogBreak(entry=expected[0], problem=expected[1])
        store.close()

    def test_leaves_what_cannot_be_written_unwritten(self, store: Store) -> None:
        for bad in ({"a": object()}, {"a": {1, 2}}):
            with pytest.raises(StoreError, match="nothing was written"):
                store.log_deployment(CHANNEL, "note", actor="me", detail=bad)
        with pytest.raises(StoreError, match="nothing was written"):
            store.log_deployment(CHANNEL, "note", actor="\udcff")
        assert store.log_head(CHANNEL).entries == 0

    @pytest.mark.parametrize("version", [None, 1])
    def test_takes_four_writers_at_once(self, url: str, version: int | None) -> None:
        """They race for the creation of the store, or its migration, too."""
        earlier = 0 if version is None else build_version_1(url)
        writers = [subprocess.Popen([sys.executable, "-c", WRITER, url, CHANNEL, str(i)]) for i in range(4)]
        assert [writer.wait(120) for writer in writers] == [0, 0, 0, 0]
        store = Store.open(url)
        rows = store.deployments(CHANNEL)[earlier:]
        assert [row.entry for row in rows] == list(range(earlier + 1, earlier + 201))
        for i in range(4):
            assert [row.detail["number"] for row in rows if row.actor == str(i)] == list(range(50))
        check = store.check_log(CHANNEL, store.log_head(CHANNEL))
        assert check.whole and check.covered == earlier + 200
        store.close()


WRITER = """
import sys
from autopoiesis_lib.store import Store
store = Store.open(sys.argv[1])
for number in range(50):
    store.log_deployment(sys.argv[2], "note", actor=sys.argv[3], detail={"number": number})
"""


def log_of(store: Store, entries: int) -> LogHead:
    """Write a log, and take away what protects it. Returns its head."""
    for number in range(entries):
        store.log_deployment(CHANNEL, "note", actor="me", detail={"number": number})
    signed = store.log_head(CHANNEL)
    unlock(store)
    return signed


def literal(value: object) -> str:
    if isinstance(value, bytes):
        return f"x'{value.hex()}'"
    if value == "\xff":
        return "CAST(x'ff' AS TEXT)"  # text that is not UTF-8
    return "NULL" if value is None else repr(value)


class TamperedLog(RuleBasedStateMachine):
    """A log that is written, signed and tampered with in any order, against a second implementation of the check."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store.open("sqlite://")
        unlock(self.store)
        self.honest: list[dict[str, Any]] | None = []
        """The rows, while nobody has touched them."""
        self.signed: LogHead | None = None
        self.proved: list[dict[str, Any]] = []
        """The rows that were signed."""

    def teardown(self) -> None:
        self.store.close()

    @rule(number=st.integers(), text=st.text(max_size=4))
    def append(self, number: int, text: str) -> None:
        if not self.store.check_log(CHANNEL, self.signed).whole:
            return
        self.store.log_deployment(CHANNEL, "note", actor="me", detail={text: number})
        if self.honest is not None:
            self.honest = rows_of(self.store)

    @rule()
    def sign(self) -> None:
        if self.store.check_log(CHANNEL, self.signed).whole:
            self.signed, self.proved = self.store.log_head(CHANNEL), rows_of(self.store)

    @precondition(lambda self: rows_of(self.store))
    @rule(data=st.data(), column=st.sampled_from(COLUMNS), value=st.one_of(st.integers(-1, 9), st.text(max_size=3)))
    def change(self, data: st.DataObject, column: str, value: object) -> None:
        rows = rows_of(self.store)
        rows[self._index(data, rows)][column] = value
        self._tamper(rows)

    @precondition(lambda self: rows_of(self.store))
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        rows = rows_of(self.store)
        del rows[self._index(data, rows)]
        self._tamper(rows)

    @precondition(lambda self: rows_of(self.store))
    @rule(data=st.data(), entry=st.integers(1, 9))
    def insert(self, data: st.DataObject, entry: int) -> None:
        rows = rows_of(self.store)
        self._tamper([*rows, {**rows[self._index(data, rows)], "entry": entry}])

    @precondition(lambda self: len(rows_of(self.store)) > 1)
    @rule(data=st.data(), columns=st.sets(st.sampled_from(COLUMNS), min_size=1))
    def swap(self, data: st.DataObject, columns: set[str]) -> None:
        rows = rows_of(self.store)
        one, other = rows[self._index(data, rows)], rows[self._index(data, rows)]
        for column in columns:
            one[column], other[column] = other[column], one[column]
        self._tamper(rows)

    @precondition(lambda self: rows_of(self.store))
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        rows = rows_of(self.store)
        self._tamper(rows[: self._index(data, rows)])

    @precondition(lambda self: rows_of(self.store))
    @rule(data=st.data())
    def rewrite(self, data: st.DataObject) -> None:
        rows = rows_of(self.store)
        start = self._index(data, rows)
        before = rows[start - 1]["chain"] if start else genesis_of(self.store)
        self._tamper(rewritten(rows, start, str(before)))

    @invariant()
    def finds_all_there_is_to_find(self) -> None:
        rows = rows_of(self.store)
        check = self.store.check_log(CHANNEL, self.signed)
        assert check.whole == consistent(self.store, rows, self.signed)
        assert check.entries == len(rows)
        if check.whole and self.signed is not None:
            assert rows[: self.signed.entries] == self.proved
            assert check.covered == len(self.proved)
        if rows == self.honest:
            assert check.whole and check.head.entries == len(rows)
        if check.broken is not None:
            assert check.broken.entry >= 1
            assert log_text(check)

    def _index(self, data: st.DataObject, rows: list[dict[str, Any]]) -> int:
        return data.draw(st.integers(0, len(rows) - 1))

    def _tamper(self, rows: list[dict[str, Any]]) -> None:
        if rows != rows_of(self.store):
            self.honest = None
        put_back(self.store, rows)


TamperedLog.TestCase.settings = settings(max_examples=60, stateful_step_count=12, deadline=None, derandomize=True)
TestTamperedLog = TamperedLog.TestCase


def sha(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def genesis_of(store: Store) -> str:
    return sha(["autopoiesis log", store.identity, CHANNEL])


def consistent(store: Store, rows: list[dict[str, Any]], signed: LogHead | None) -> bool:
    """The definition of a whole log, by itself."""
    chains = [genesis_of(store)]
    for row in rows:
        chains.append(sha([chains[-1], {name: row[name] for name in COLUMNS if name != "chain"}]))
    return (
        [row["entry"] for row in rows] == list(range(1, len(rows) + 1))
        and [row["chain"] for row in rows] == chains[1:]
        and (signed is None or (signed.entries < len(chains) and chains[signed.entries] == signed.chain))
    )


VERSION_1 = """
CREATE TABLE meta (key VARCHAR(64) NOT NULL, value TEXT NOT NULL, PRIMARY KEY (key));
CREATE TABLE policies (
    digest VARCHAR(128) NOT NULL, contract VARCHAR(128) NOT NULL, contract_digest VARCHAR(128) NOT NULL,
    source TEXT NOT NULL, at VARCHAR(32) NOT NULL, PRIMARY KEY (digest));
CREATE INDEX ix_policies_contract_digest ON policies (contract_digest);
CREATE TABLE certificates (
    digest VARCHAR(128) NOT NULL, policy_digest VARCHAR(128) NOT NULL, contract_digest VARCHAR(128) NOT NULL,
    content TEXT NOT NULL, at VARCHAR(32) NOT NULL, PRIMARY KEY (digest));
CREATE INDEX ix_certificates_policy_digest ON certificates (policy_digest);
CREATE TABLE runs (
    id VARCHAR(64) NOT NULL, contract VARCHAR(128) NOT NULL, contract_digest VARCHAR(128) NOT NULL, seed BIGINT NOT NULL,
    status VARCHAR(16) NOT NULL, config JSON NOT NULL, started_at VARCHAR(32) NOT NULL, spent_seconds FLOAT NOT NULL,
    result JSON, PRIMARY KEY (id));
CREATE TABLE proposals (
    run VARCHAR(64) NOT NULL, id INTEGER NOT NULL, generation INTEGER NOT NULL, source TEXT NOT NULL,
    move VARCHAR(64) NOT NULL, island INTEGER NOT NULL, rationale TEXT NOT NULL, details JSON NOT NULL,
    PRIMARY KEY (run, id), FOREIGN KEY(run) REFERENCES runs (id));
CREATE TABLE lineage (
    run VARCHAR(64) NOT NULL, child INTEGER NOT NULL, position INTEGER NOT NULL, parent INTEGER NOT NULL,
    PRIMARY KEY (run, child, position), FOREIGN KEY(run, child) REFERENCES proposals (run, id));
CREATE TABLE candidates (
    run VARCHAR(64) NOT NULL, id INTEGER NOT NULL, verdict VARCHAR(16) NOT NULL, gate VARCHAR(32), detail TEXT NOT NULL,
    digest VARCHAR(128), fingerprint VARCHAR(128), descriptor VARCHAR(256), counterexample JSON, scores JSON,
    fitness FLOAT, seconds JSON NOT NULL, PRIMARY KEY (run, id), FOREIGN KEY(run, id) REFERENCES proposals (run, id));
CREATE INDEX ix_candidates_digest ON candidates (digest);
CREATE TABLE counterexamples (
    contract_digest VARCHAR(128) NOT NULL, key VARCHAR(64) NOT NULL, position INTEGER NOT NULL, content TEXT NOT NULL,
    at VARCHAR(32) NOT NULL, PRIMARY KEY (contract_digest, key));
CREATE TABLE deployments (
    id {serial} NOT NULL, at VARCHAR(32) NOT NULL, channel VARCHAR(512) NOT NULL, action VARCHAR(64) NOT NULL,
    policy_digest VARCHAR(128), certificate_digest VARCHAR(128), actor VARCHAR(256) NOT NULL, detail JSON NOT NULL,
    PRIMARY KEY (id));
CREATE INDEX ix_deployments_channel ON deployments (channel);
{triggers}
INSERT INTO meta VALUES ('schema_version', '1');
INSERT INTO runs VALUES (
    '20260101-aa', 'request-ordering', '{digest}', 1, 'running', '{{"budget": {{"candidates": 3}}}}',
    '2026-01-01T00:00:00', 0.0, NULL);
INSERT INTO proposals VALUES ('20260101-aa', 0, 1, 'text', 'tune', 0, '', '{{}}');
INSERT INTO candidates VALUES ('20260101-aa', 0, 'PROVED', NULL, '', 'p1', NULL, NULL, NULL, '{{"a": 1.5}}', 0.5, '{{}}');
INSERT INTO policies VALUES ('p1', 'request-ordering', 'c1', 'source one', '2026-01-01');
INSERT INTO certificates VALUES ('k1', 'p1', 'c1', '{{}}', '2026-01-01');
INSERT INTO deployments (at, channel, action, policy_digest, certificate_digest, actor, detail) VALUES
    ('2026-01-01', '/channel', 'promote', 'p1', 'k1', 'me', '{{"b": 1, "a": [1.50, null]}}'),
    ('2026-01-02', '/other', 'freeze', NULL, NULL, 'me', '{{}}'),
    ('2026-01-03', '/channel', 'rollback', NULL, NULL, 'you', '{{"note": "é"}}');
"""
"""The DDL of schema version 1, and a store of it with two entries in the log of `/channel`."""
FROZEN_1 = ("lineage", "deployments", "policies", "certificates")


def build_version_1(url: str) -> int:
    """Make a store of schema version 1. Returns the number of entries of `CHANNEL`."""
    engine = sa.create_engine(url)
    if engine.dialect.name == "sqlite":
        triggers = [
            f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END;"
            for table in FROZEN_1
            for verb in ("UPDATE", "DELETE")
        ]
        script = VERSION_1.format(serial="INTEGER", triggers="\n".join(triggers), digest="c" * 64)
        connection = sqlite3.connect(str(engine.url.database))
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(script)
        connection.close()
    else:
        triggers = [
            "CREATE FUNCTION autopoiesis_append_only() RETURNS trigger AS $$ BEGIN RAISE EXCEPTION USING MESSAGE = "
            "TG_TABLE_NAME || ' is append-only'; END $$ LANGUAGE plpgsql;",
            *(
                f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table} "
                "FOR EACH ROW EXECUTE FUNCTION autopoiesis_append_only();"
                for table in FROZEN_1
            ),
        ]
        script = VERSION_1.format(serial="SERIAL", triggers="\n".join(triggers), digest="c" * 64)
        with engine.begin() as connection:
            connection.exec_driver_sql(script)
    engine.dispose()
    return 2


class TestVersion1:
    def test_is_migrated_at_open(self, url: str) -> None:
        build_version_1(url)
        store = Store.open(url)
        rows = store.deployments()
        assert [(row.id, row.channel, row.entry, row.action) for row in rows] == [
            (1, "/channel", 1, "promote"), (2, "/other", 1, "freeze"), (3, "/channel", 2, "rollback"),
        ]  # fmt: skip
        assert rows[0].detail == {"b": 1, "a": [1.5, None]} and rows[2].detail == {"note": "é"}
        assert store.run("2026") == RUN
        assert store.candidates(RUN.id)[0].scores == {"a": 1.5}
        assert (store.policy_source("p1"), store.certificate("k1")) == ("source one", "{}")
        store.log_deployment(CHANNEL, "note", actor="me")
        signed = store.log_head(CHANNEL)
        assert signed.entries == 3 and consistent(store, rows_of(store), signed)
        for statement in (
            *REWRITES[:3],
            "DELETE FROM policies",
            f"DELETE FROM deployments WHERE channel = '{CHANNEL}'",
        ):
            if "lineage" not in statement:
                with pytest.raises(sa.exc.DatabaseError, match="append-only"):
                    execute(store, statement)
        store.close()
        again = Store.open(url)
        assert again.check_log(CHANNEL, signed).whole
        again.close()

    def test_is_as_protected_as_a_new_store(self, url: str, tmp_path: Path) -> None:
        build_version_1(url)
        migrated, new = Store.open(url), Store.open(tmp_path / "new.db")
        if migrated._engine.dialect.name == "sqlite":
            assert schema_of(migrated) == schema_of(new)
        else:
            for table in ("lineage", "deployments", "policies", "certificates"):
                with pytest.raises(sa.exc.DatabaseError, match="append-only"):
                    execute(migrated, f"TRUNCATE {table}")
        migrated.close()
        new.close()

    def test_can_be_read_where_it_cannot_be_written(self, tmp_path: Path) -> None:
        build_version_1(f"sqlite:///{tmp_path}/store.db")
        before = (tmp_path / "store.db").read_bytes()
        store = Store.open(f"sqlite:///file:{tmp_path}/store.db?mode=ro&uri=true")
        assert store.run("2026") == RUN
        assert (store.policy_source("p1"), store.certificate("k1")) == ("source one", "{}")
        for refused in (
            store.deployments,
            lambda: store.log_head(CHANNEL),
            lambda: store.check_log(CHANNEL),
            lambda: store.log_deployment(CHANNEL, "note", actor="me"),
            lambda: store.start_run(RUN),
            lambda: store.identity,
        ):
            with pytest.raises(StoreError, match="version 1 and cannot be migrated to version 3") as caught:
                refused()
            assert "\n" not in str(caught.value)
        store.close()
        assert (tmp_path / "store.db").read_bytes() == before

    def test_is_left_as_it_was_when_its_log_is_damaged(self, tmp_path: Path) -> None:
        build_version_1(f"sqlite:///{tmp_path}/store.db")
        with sqlite3.connect(tmp_path / "store.db") as connection:
            connection.execute("DROP TRIGGER deployments_no_update")
            connection.execute("UPDATE deployments SET actor = x'ff' WHERE id = 3")
        store = Store.open(tmp_path / "store.db")
        with pytest.raises(StoreError, match="cannot be migrated"):
            store.deployments()
        assert store.run("2026") == RUN
        store.close()
        with sqlite3.connect(tmp_path / "store.db") as connection:
            assert connection.execute("SELECT value FROM meta").fetchall() == [("1",)]
            assert connection.execute("SELECT count(*) FROM deployments").fetchone() == (3,)


def build_version_2(path: Path) -> None:
    """Make a store of schema version 2 with one candidate: the present one without the columns that came since."""
    store = Store.open(path)
    store.start_run(RUN)
    store.propose(RUN.id, [ProposalRow(id=0, generation=1, source="text", move="tune")])
    store.commit(RUN.id, CandidateRow(id=0, verdict="REFUTED", gate="proof", detail="starves"))
    store.log_deployment(CHANNEL, "note", actor="me")
    store.close()
    with sqlite3.connect(path) as connection:
        for column in ("reason", "obligation"):
            connection.execute(f"ALTER TABLE candidates DROP COLUMN {column}")
        connection.execute("UPDATE meta SET value = '2' WHERE key = 'schema_version'")


class TestVersion2:
    def test_is_migrated_at_open_with_reasons_unknown(self, tmp_path: Path) -> None:
        build_version_2(tmp_path / "store.db")
        store, new = Store.open(tmp_path / "store.db"), Store.open(tmp_path / "new.db")
        [row] = store.candidates(RUN.id)
        assert (row.gate, row.reason, row.obligation, row.detail) == ("proof", None, None, "starves")
        assert schema_of(store) == schema_of(new)
        store.propose(RUN.id, [ProposalRow(id=1, generation=1, source="text", move="tune")])
        store.commit(RUN.id, CandidateRow(id=1, verdict="REFUTED", gate="proof", reason="invariant", obligation="ages"))
        assert store.candidates(RUN.id)[1].reason == "invariant"
        assert store.check_log(CHANNEL).whole
        store.close()
        new.close()

    def test_can_be_read_where_it_cannot_be_written(self, tmp_path: Path) -> None:
        build_version_2(tmp_path / "store.db")
        store = Store.open(f"sqlite:///file:{tmp_path}/store.db?mode=ro&uri=true")
        assert store.candidates(RUN.id)[0].detail == "starves"
        assert store.check_log(CHANNEL).whole
        with pytest.raises(StoreError, match="cannot be written"):
            store.log_deployment(CHANNEL, "note", actor="me")
        store.close()


def schema_of(store: Store) -> set[tuple[str, str, str]]:
    with store._engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        return {(kind, name, "".join(text.replace('"', "").split())) for kind, name, text in found}


class TestOpening:
    def test_puts_a_new_sqlite_store_in_wal_mode(self, tmp_path: Path) -> None:
        Store.open(tmp_path / "s.db").close()
        assert sqlite3.connect(tmp_path / "s.db").execute("PRAGMA journal_mode").fetchone() == ("wal",)

    def test_refuses_a_later_schema_with_both_versions(self, tmp_path: Path) -> None:
        Store.open(tmp_path / "s.db").close()
        with sqlite3.connect(tmp_path / "s.db") as connection:
            connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
        with pytest.raises(StoreError, match="schema version 99, and this library reads version 3"):
            Store.open(tmp_path / "s.db")

    def test_refuses_what_is_no_store_in_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "text.db").write_text("this is no database at all, however long it may be" * 40)
        with sqlite3.connect(tmp_path / "other.db") as connection:
            connection.execute("CREATE TABLE albums (id INTEGER)")
        for name in ("fifo", "beside.db-journal", "beside.db-wal"):
            os.mkfifo(tmp_path / name)
        for where in (
            tmp_path / "text.db",
            tmp_path / "other.db",
            tmp_path,
            tmp_path / "fifo",
            tmp_path / "beside.db",
            tmp_path / "text.db" / "below.db",
            f"sqlite:///{tmp_path}/fifo",
            f"sqlite:///{tmp_path}/x.db?timeout=soon",
            f"sqlite:///file:{tmp_path}/none.db?mode=ro&uri=true",
            "/dev/zero",
            "a\0b",
            "~nobody-of-this-name/store.db",
            "nonsense://x",
            "mysql://host/x",
            "postgresql://host:port/x",
            "postgresql://nobody@127.0.0.1:1/x",
        ):
            with pytest.raises(StoreError) as caught:
                Store.open(where)
            assert "\n" not in str(caught.value)

    def test_never_shows_a_password_of_a_url(self) -> None:
        with pytest.raises(StoreError) as caught:
            Store.open("postgresql://user:hunter2@127.0.0.1:1/x")
        assert "hunter2" not in str(caught.value)


READS: dict[str, Callable[[Store], object]] = {
    "runs": Store.runs,
    "run": lambda store: store.run(RUN.id),
    "proposals": lambda store: store.proposals(RUN.id),
    "candidates": lambda store: store.candidates(RUN.id),
    "policy": lambda store: store.policy_source("p1"),
    "certificate": lambda store: store.certificate("k1"),
    "certificates": lambda store: store.certificates_of("p1"),
    "certified": lambda store: store.certified("c1"),
    "counterexamples": lambda store: store.counterexamples("c1"),
    "log": Store.deployments,
    "log of a channel": lambda store: store.deployments(CHANNEL),
    "head": lambda store: store.log_head(CHANNEL),
    "check": lambda store: store.check_log(CHANNEL),
}


def full(path: Path) -> Store:
    """A store with something in every table."""
    store = Store.open(path)
    fill(store)
    store.commit(RUN.id, CandidateRow(id=0, verdict="PROVED", scores={"a": 1.5}, seconds={"proof": 1.0}))
    store.put_counterexamples("c1", [{"number": 1}])
    return store


class TestDamagedStore:
    def test_is_a_typed_error_wherever_the_file_is_damaged(self, tmp_path: Path) -> None:
        """A page at a time is overwritten. A log that is whole is still the one that was written."""
        intact = full(tmp_path / "intact.db")
        written, signed = intact.deployments(CHANNEL), intact.log_head(CHANNEL)
        intact.close()
        content = (tmp_path / "intact.db").read_bytes()
        refused, whole = 0, 0
        for start in range(0, len(content), 4_096):
            for damage in (bytes(4_096), b"\xff" * 4_096):
                path = tmp_path / f"{start}-{damage[0]}.db"
                path.write_bytes(content[:start] + damage + content[start + 4_096 :])
                try:
                    store = Store.open(path)
                except StoreError as error:
                    assert "\n" not in str(error)
                    refused += 1
                    continue
                for read in READS.values():
                    try:
                        read(store)
                    except StoreError as error:
                        assert "\n" not in str(error)
                        refused += 1
                with suppress(StoreError):
                    if store.check_log(CHANNEL, signed).whole:
                        assert store.deployments(CHANNEL) == written
                        whole += 1
                store.close()
        assert refused > 20 and whole > 5

    @pytest.mark.parametrize(
        ("statement", "broken"),
        [
            ("UPDATE runs SET config = '{not json'", {"runs", "run"}),
            ("UPDATE runs SET config = x'ff'", {"runs", "run"}),
            ("UPDATE runs SET config = '[1]'", {"runs", "run"}),
            (f"UPDATE runs SET config = '{'[' * 100_000}'", {"runs", "run"}),
            ("UPDATE runs SET result = '7'", {"runs", "run"}),
            ("UPDATE runs SET seed = 'seven'", {"runs", "run"}),
            ("UPDATE runs SET status = 'lost'", {"runs", "run"}),
            ("UPDATE runs SET spent_seconds = 'long'", {"runs", "run"}),
            ("UPDATE runs SET started_at = x'00'", {"runs", "run"}),
            ("UPDATE proposals SET details = ''", {"proposals"}),
            ("UPDATE proposals SET source = x'00ff'", {"proposals"}),
            ("UPDATE proposals SET source = CAST(x'ff' AS TEXT)", {"proposals"}),
            ("UPDATE proposals SET generation = 1.5", {"proposals"}),
            ("UPDATE lineage SET parent = 'mother'", {"proposals"}),
            ('UPDATE candidates SET scores = \'{"a": "high"}\'', {"candidates"}),
            ("UPDATE candidates SET scores = '{'", {"candidates"}),
            ("UPDATE candidates SET fitness = 'good'", {"candidates"}),
            ("UPDATE candidates SET seconds = 'null'", {"candidates"}),
            ("UPDATE policies SET source = x'00'", {"policy", "certified"}),
            ("UPDATE certificates SET content = x'00'", {"certificate", "certificates"}),
            ("UPDATE counterexamples SET content = '['", {"counterexamples"}),
            ("UPDATE counterexamples SET content = '[]'", {"counterexamples"}),
            ("UPDATE deployments SET detail = '{' WHERE id = 1", {"log", "log of a channel"}),
            ("UPDATE deployments SET detail = '[]' WHERE id = 1", {"log", "log of a channel"}),
            ("UPDATE deployments SET action = x'00' WHERE id = 1", {"log", "log of a channel"}),
            ("UPDATE deployments SET entry = 'last' WHERE id = 2", {"log", "log of a channel", "head"}),
            ("UPDATE deployments SET chain = x'00' WHERE id = 2", {"log", "log of a channel", "head"}),
            ("ALTER TABLE deployments RENAME TO elsewhere", {"log", "log of a channel", "head", "check"}),
        ],
    )
    def test_is_a_typed_error_for_a_bad_value(self, tmp_path: Path, statement: str, broken: set[str]) -> None:
        store = full(tmp_path / "store.db")
        with store._engine.begin() as connection:
            for (name,) in connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").all():
                connection.exec_driver_sql(f"DROP TRIGGER {name}")
            connection.exec_driver_sql(statement)
        for name, read in READS.items():
            if name in broken:
                with pytest.raises(StoreError, match="cannot be read") as caught:
                    read(store)
                assert "\n" not in str(caught.value) and len(str(caught.value)) < 1_000
            else:
                read(store)
        store.close()

    @pytest.mark.parametrize("table", ["deployments", "runs"])
    def test_is_refused_when_a_table_is_gone_or_a_view(self, tmp_path: Path, table: str) -> None:
        """A view of a hostile file could be a query without an end."""
        full(tmp_path / "store.db").close()
        with sqlite3.connect(tmp_path / "store.db") as connection:
            connection.execute(f"ALTER TABLE {table} RENAME TO elsewhere")
            connection.execute(f"CREATE VIEW {table} AS SELECT * FROM elsewhere")
        with pytest.raises(StoreError, match=f"lacks the table {table}"):
            Store.open(tmp_path / "store.db")

    @pytest.mark.parametrize(
        "result", ["{", "7", '{"report": 5}', '{"report": {}}', '{"report": {"strongest": "fcfs"}, "best": []}']
    )
    def test_makes_report_exit_2_with_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], result: str
    ) -> None:
        full(tmp_path / "store.db").close()
        with sqlite3.connect(tmp_path / "store.db") as connection:
            connection.execute("UPDATE runs SET result = ?", (result,))
        code = main(["report", RUN.id, "--store", str(tmp_path / "store.db"), "--out", str(tmp_path / "page.html")])
        assert code == 2
        assert capsys.readouterr().err.count("\n") == 1


class TestLockedStore:
    def test_is_a_typed_error_and_can_be_written_later(self, tmp_path: Path) -> None:
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


class TestSecretsOfAUrl:
    @pytest.mark.parametrize(
        "url",
        [
            "postgresql://wanda:hunter2@127.0.0.1:1/x?application_name=sesame99",
            "postgresql://wanda:hunter2@127.0.0.1:99999/x?application_name=sesame99",
            "nodriver://wanda:hunter2@host/x?y=sesame99",
            "sqlite://wanda:hunter2@host/x?y=sesame99",
            "postgresql://wanda:hunter2@127.0.0.1:1/x?nonsense=sesame99",
        ],
    )
    def test_are_not_shown_by_an_error(self, url: str) -> None:
        with pytest.raises(StoreError) as caught:
            Store.open(url)
        assert not [secret for secret in ("wanda", "hunter2", "sesame99") if secret in str(caught.value)]

    def test_are_not_shown_by_an_open_store(self, tmp_path: Path) -> None:
        opened = Store.open(f"sqlite:///{tmp_path}/s.db?timeout=12345")
        assert "12345" not in opened.url and str(tmp_path) in opened.url
        opened.close()


class TestStoreFile:
    @pytest.mark.parametrize("how", ["{}/s.db", "sqlite:///{}/s.db", "sqlite:///file:{}/s.db?uri=true"])
    def test_is_private_whatever_the_umask(self, tmp_path: Path, how: str) -> None:
        before = os.umask(0)
        try:
            opened = Store.open(how.format(tmp_path))
            opened.put_policy("d", "c", "e", "text")
        finally:
            os.umask(before)
        found = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
        opened.close()
        assert found == {"s.db": 0o600, "s.db-wal": 0o600, "s.db-shm": 0o600}

    def test_that_was_there_keeps_its_mode(self, tmp_path: Path) -> None:
        Store.open(tmp_path / "s.db").close()
        (tmp_path / "s.db").chmod(0o660)
        Store.open(tmp_path / "s.db").close()
        assert (tmp_path / "s.db").stat().st_mode & 0o777 == 0o660
