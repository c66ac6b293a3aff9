"""The open store and its operations."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from ..redaction import redacted_text, secrets_in_url
from . import schema as tables
from .log import LogCheck, LogHead, chain_after, genesis, walk
from .opening import FAULTS, any_text, connect, first_line, hide_secrets, locate, make_private, prepare, shown, writing
from .rows import CandidateRow, DeploymentRow, ProposalRow, RunRow, RunStatus, StoreError, checked

__all__ = ["Store"]


class Store:
    """An open store.

    One process at a time may work on a run. Several processes may each work on a run of the same store.

    Every method raises `StoreError` if the database cannot be reached, read or written, or holds a value that its
    column may not have.
    """

    def __init__(self, engine: sa.Engine, where: str, identity: str, not_migrated: str = "") -> None:
        self._engine = engine
        self._where = where
        self._identity = identity
        self._not_migrated = not_migrated

    @classmethod
    def open(cls, url: str | Path | None = None) -> "Store":
        """Open the store at a SQLAlchemy URL or a file path, and create it if it is new. None means `DEFAULT_STORE`.

        A store of schema version 1 or 2 is migrated. A store of version 1 that cannot be written offers only its runs,
        policies and certificates to readers; every other operation raises `StoreError`. A store of version 2 that
        cannot be written can be read in full.

        Raises:
            StoreError: the store cannot be opened, is not a store, or has a later schema version.
        """
        where, parsed = locate(url)
        try:
            engine = connect(parsed)
        except (*FAULTS, ImportError) as error:
            said = redacted_text(first_line(error), secrets_in_url(parsed.render_as_string(hide_password=False)))
            raise StoreError(f"store {where}: {said}; give a file path or a SQLAlchemy URL") from None
        hide_secrets(engine)
        make_private(parsed, where)
        try:
            identity, not_migrated = prepare(engine, where)
        except FAULTS as error:
            engine.dispose()
            raise StoreError(f"store {where} cannot be used: {first_line(error)}; give another --store") from None
        except StoreError:
            engine.dispose()
            raise
        return cls(engine, where, identity, not_migrated)

    @property
    def url(self) -> str:
        """The URL without user name, password and query values."""
        return shown(self._engine.url)

    @property
    def identity(self) -> str:
        """The UUID that the store was given when it was created. Every chain of the log begins with it.

        Raises:
            StoreError: the store has schema version 1 and cannot be migrated.
        """
        self._require_log()
        return self._identity

    def close(self) -> None:
        """Release the connections."""
        self._engine.dispose()

    @contextmanager
    def _read(self, what: str) -> Iterator[sa.Connection]:
        """Run one transaction that reads. All of its queries see the same state."""
        try:
            with self._engine.connect() as connection:
                yield connection
        except FAULTS as error:
            raise StoreError(
                f"store {self._where}: the {what} cannot be read: {first_line(error)}; restore the store from a backup, or "
                "give another --store"
            ) from None

    @contextmanager
    def _write(self, *, exclusive: bool = False) -> Iterator[sa.Connection]:
        """Run one transaction that writes everything or nothing."""
        if self._not_migrated:
            raise StoreError(self._not_migrated)
        try:
            with writing(self._engine, exclusive=exclusive) as connection:
                yield connection
        except FAULTS as error:
            advice = "try again" if isinstance(error, OperationalError) else "see whether the store is damaged"
            raise StoreError(
                f"store {self._where} cannot be written: {first_line(error)}; nothing was written, {advice}"
            ) from None

    def _require_log(self) -> None:
        if self._not_migrated:
            raise StoreError(self._not_migrated)

    # runs and candidates

    def start_run(self, run: RunRow) -> None:
        """Record a new run."""
        with self._write() as connection:
            connection.execute(
                tables.runs.insert().values(
                    id=run.id,
                    contract=run.contract,
                    contract_digest=run.contract_digest,
                    seed=run.seed,
                    status=run.status,
                    config=dict(run.config),
                    started_at=run.started_at,
                    spent_seconds=run.spent_seconds,
                    result=run.result,
                )
            )

    def update_run(
        self, run: str, *, status: RunStatus, spent_seconds: float, result: Mapping[str, Any] | None = None
    ) -> None:
        """Record the state of a run."""
        with self._write() as connection:
            connection.execute(
                tables.runs.update()
                .where(tables.runs.c.id == run)
                .values(status=status, spent_seconds=spent_seconds, result=None if result is None else dict(result))
            )

    def run(self, run: str) -> RunRow:
        """Return the run with the given id, or the only run whose id starts with it.

        Raises:
            StoreError: no run, or more than one run, matches the id.
        """
        with self._read("run") as connection:
            rows = (
                connection.execute(
                    sa.select(tables.runs).where(tables.runs.c.id.startswith(run, autoescape=True)).limit(2)
                )
                .mappings()
                .all()
            )
            exact = [row for row in rows if row["id"] == run]
            if len(exact or rows) == 1:
                return checked(RunRow(**(exact or rows)[0]))
        found = "several runs" if rows else "no run"
        raise StoreError(f"store {self._where} has {found} called {run!r}; list them with `autopoiesis report`")

    def runs(self) -> list[RunRow]:
        """Return all runs, oldest first."""
        with self._read("runs") as connection:
            return [
                checked(RunRow(**row))
                for row in connection.execute(
                    sa.select(tables.runs).order_by(tables.runs.c.started_at, tables.runs.c.id)
                ).mappings()
            ]

    def propose(self, run: str, proposals: Sequence[ProposalRow]) -> None:
        """Record a generation's proposals and their lineage in one transaction."""
        lineage = [
            {"run": run, "child": row.id, "position": position, "parent": parent}
            for row in proposals
            for position, parent in enumerate(row.parents)
        ]
        with self._write() as connection:
            connection.execute(
                tables.proposals.insert(),
                [
                    {
                        "run": run,
                        "id": row.id,
                        "generation": row.generation,
                        "source": row.source,
                        "move": row.move,
                        "island": row.island,
                        "rationale": row.rationale,
                        "details": dict(row.details),
                    }
                    for row in proposals
                ],
            )
            if lineage:
                connection.execute(tables.lineage.insert(), lineage)

    def commit(self, run: str, row: CandidateRow) -> None:
        """Record the outcome of one candidate. This is the checkpoint of a run."""
        values = {
            "run": run,
            "id": row.id,
            "verdict": row.verdict,
            "gate": row.gate,
            "reason": None if row.reason is None else str(row.reason),
            "obligation": row.obligation,
            "detail": row.detail,
            "digest": row.digest,
            "fingerprint": row.fingerprint,
            "descriptor": row.descriptor,
            "counterexample": _plain(row.counterexample),
            "scores": _plain(row.scores),
            "fitness": row.fitness,
            "seconds": dict(row.seconds),
        }
        with self._write() as connection:
            connection.execute(_INSERT_CANDIDATE, values)

    def proposals(self, run: str) -> list[ProposalRow]:
        """Return all proposals of a run, sorted by id."""
        with self._read("proposals") as connection:
            parents: dict[int, list[int]] = {}
            for child, parent in connection.execute(
                sa.select(tables.lineage.c.child, tables.lineage.c.parent)
                .where(tables.lineage.c.run == run)
                .order_by(tables.lineage.c.child, tables.lineage.c.position)
            ):
                parents.setdefault(child, []).append(parent)
            rows = connection.execute(
                sa.select(tables.proposals).where(tables.proposals.c.run == run).order_by(tables.proposals.c.id)
            ).mappings()
            return [
                checked(
                    ProposalRow(
                        id=row["id"],
                        generation=row["generation"],
                        source=row["source"],
                        move=row["move"],
                        island=row["island"],
                        parents=tuple(parents.get(row["id"], ())),
                        rationale=row["rationale"],
                        details=row["details"],
                    )
                )
                for row in rows
            ]

    def candidates(self, run: str) -> list[CandidateRow]:
        """Return all committed candidates of a run, sorted by id."""
        with self._read("candidates") as connection:
            # A store of schema version 2 that cannot be written lacks the newest columns.
            present = {column["name"] for column in sa.inspect(connection).get_columns("candidates")}
            columns = [column for column in tables.candidates.c if column.name in present]
            rows = connection.execute(
                sa.select(*columns).where(tables.candidates.c.run == run).order_by(tables.candidates.c.id)
            ).mappings()
            return [checked(CandidateRow(**{key: row[key] for key in row if key != "run"})) for row in rows]

    # policies and certificates, addressed by content

    def put_policy(self, digest: str, contract: str, contract_digest: str, source: str) -> None:
        """Add a policy, unless a policy with the same digest is in the store."""
        self._insert_new(
            tables.policies,
            {
                "digest": digest,
                "contract": contract,
                "contract_digest": contract_digest,
                "source": source,
                "at": _now(),
            },
        )

    def policy_source(self, digest: str) -> str:
        """Return the source text of the policy with a digest.

        Raises:
            StoreError: the policy is not in the store.
        """
        return self._one(tables.policies.c.source, digest, "policy")

    def put_certificate(self, digest: str, policy_digest: str, contract_digest: str, content: str) -> None:
        """Add a certificate's JSON text under its own digest, unless the digest is in the store."""
        self._insert_new(
            tables.certificates,
            {
                "digest": digest,
                "policy_digest": policy_digest,
                "contract_digest": contract_digest,
                "content": content,
                "at": _now(),
            },
        )

    def certificate(self, digest: str) -> str:
        """Return the JSON text of the certificate with a digest.

        Raises:
            StoreError: the certificate is not in the store.
        """
        return self._one(tables.certificates.c.content, digest, "certificate")

    def certificates_of(self, policy_digest: str) -> list[str]:
        """Return the JSON texts of all certificates of a policy, oldest first."""
        query = (
            sa.select(tables.certificates.c.content)
            .where(tables.certificates.c.policy_digest == policy_digest)
            .order_by(tables.certificates.c.at, tables.certificates.c.digest)
        )
        with self._read("certificates") as connection:
            return [_text(row[0]) for row in connection.execute(query)]

    def certified(self, contract_digest: str) -> list[tuple[str, str]]:
        """Return (policy digest, source) of every certified policy of a contract, oldest first, for a warm start."""
        query = (
            sa.select(
                tables.policies.c.digest, tables.policies.c.source, sa.func.min(tables.certificates.c.at).label("first")
            )
            .join(tables.certificates, tables.certificates.c.policy_digest == tables.policies.c.digest)
            .where(tables.policies.c.contract_digest == contract_digest)
            .group_by(tables.policies.c.digest, tables.policies.c.source)
            .order_by("first", tables.policies.c.digest)
        )
        with self._read("certified policies") as connection:
            return [(_text(row[0]), _text(row[1])) for row in connection.execute(query)]

    # regression counterexamples

    def put_counterexamples(self, contract_digest: str, contents: Sequence[Mapping[str, Any]], limit: int = 512) -> int:
        """Add counterexamples to the regression inputs of a contract, and return the number added.

        Counterexamples that the store already has are skipped. The store holds at most `limit` counterexamples of a
        contract.
        """
        texts = {_key(text): text for text in (json.dumps(content, sort_keys=True) for content in contents)}
        table = tables.counterexamples
        mine = table.c.contract_digest == contract_digest
        with self._write(exclusive=True) as connection:
            count = connection.execute(sa.select(sa.func.count()).select_from(table).where(mine)).scalar_one()
            if count >= limit:
                return 0
            known = set(connection.execute(sa.select(table.c.key).where(mine, table.c.key.in_(texts))).scalars())
            new = [(key, text) for key, text in texts.items() if key not in known][: limit - count]
            rows = [
                {"contract_digest": contract_digest, "key": key, "position": count + i, "content": text, "at": _now()}
                for i, (key, text) in enumerate(new)
            ]
            if rows:
                connection.execute(table.insert(), rows)
            return len(rows)

    def counterexamples(self, contract_digest: str, newest: int | None = None) -> list[dict[str, Any]]:
        """Return the regression counterexamples of a contract in the order in which they were found.

        `newest` limits the result to that many of the newest counterexamples.
        """
        table = tables.counterexamples
        query = (
            sa.select(table.c.content)
            .where(table.c.contract_digest == contract_digest)
            .order_by(table.c.position.desc(), table.c.key.desc())
            .limit(newest)
        )
        with self._read("counterexamples") as connection:
            return [_object(row[0]) for row in reversed(connection.execute(query).all())]

    # the log

    def log_deployment(
        self,
        channel: str,
        action: str,
        *,
        actor: str,
        policy_digest: str | None = None,
        certificate_digest: str | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> int:
        """Append a state change of a channel to the audit log, and return its id."""
        log = tables.deployments
        with self._write(exclusive=True) as connection:
            head = self._head(connection, channel)
            row = {
                "id": connection.execute(sa.select(sa.func.coalesce(sa.func.max(log.c.id), 0))).scalar_one() + 1,
                "at": _now(),
                "channel": channel,
                "entry": head.entries + 1,
                "action": action,
                "policy_digest": policy_digest,
                "certificate_digest": certificate_digest,
                "actor": actor,
                "detail": json.dumps(dict(detail or {})),
            }
            connection.execute(log.insert().values(**row, chain=chain_after(head.chain, row)))
            return int(row["id"])

    def deployments(self, channel: str | None = None) -> list[DeploymentRow]:
        """Return the audit log of one channel or of all channels, oldest first."""
        self._require_log()
        log = tables.deployments
        query = sa.select(log).order_by(log.c.id)
        if channel is not None:
            query = sa.select(log).where(log.c.channel == channel).order_by(log.c.entry)
        with self._read("log") as connection:
            return [
                checked(DeploymentRow(**{**row, "detail": _object(row["detail"])}))
                for row in connection.execute(query).mappings()
            ]

    def log_head(self, channel: str) -> LogHead:
        """Return the end of a channel's log as the log records it.

        Sign it only if the log agrees with the head that was signed before (see `check_log`). A signature on the head
        of a damaged log makes the damage look intended.
        """
        self._require_log()
        with self._read("log") as connection:
            return self._head(connection, channel)

    def check_log(self, channel: str, signed: LogHead | None = None) -> LogCheck:
        """Walk a channel's log from its first entry and compare it with a signed head."""
        self._require_log()
        log = tables.deployments
        query = sa.select(log).where(log.c.channel == channel).order_by(log.c.entry, log.c.id)
        with self._read("log") as connection, any_text(connection):
            rows = connection.execution_options(yield_per=1_000).execute(query).mappings()
            return walk(self._identity, channel, (dict(row) for row in rows), signed)

    def _head(self, connection: sa.Connection, channel: str) -> LogHead:
        log = tables.deployments
        query = (
            sa.select(log.c.entry, log.c.chain).where(log.c.channel == channel).order_by(log.c.entry.desc()).limit(1)
        )
        last = connection.execute(query).mappings().first()
        return checked(LogHead(entries=last["entry"], chain=last["chain"])) if last else self._empty(channel)

    def _empty(self, channel: str) -> LogHead:
        return LogHead(entries=0, chain=genesis(self._identity, channel))

    # helpers

    def _insert_new(self, table: sa.Table, values: Mapping[str, Any]) -> None:
        with self._write(exclusive=True) as connection:
            known = connection.execute(sa.select(table.c.digest).where(table.c.digest == values["digest"])).first()
            if known is None:
                connection.execute(table.insert().values(**values))

    def _one(self, column: sa.Column[str], digest: str, what: str) -> str:
        with self._read(what) as connection:
            row = connection.execute(sa.select(column).where(column.table.c.digest == digest)).first()
            if row is not None:
                return _text(row[0])
        raise StoreError(f"store {self._where} has no {what} {digest[:16]}; check --store")


_INSERT_CANDIDATE = tables.candidates.insert()
"""The insert statement of every checkpoint, shared so that SQLAlchemy compiles it once."""


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a {type(value).__name__} in a column of texts")
    return value


def _object(value: object) -> dict[str, Any]:
    found = json.loads(_text(value))
    if not isinstance(found, dict):
        raise ValueError(f"a JSON {type(found).__name__} where an object belongs")
    return found


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _plain(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if value is None else dict(value)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
