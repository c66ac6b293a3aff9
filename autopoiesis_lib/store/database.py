"""The store itself: an open database and the few things that are asked of it."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError, OperationalError, SQLAlchemyError

from . import schema as tables
from .opening import first_line, locate, prepare, sqlite_pragmas
from .rows import CandidateRow, DeploymentRow, ProposalRow, RunRow, RunStatus, StoreError

__all__ = ["Store"]


class Store:
    """An open store. One process at a time per run; several processes may each hold a run of one store."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    @classmethod
    def open(cls, url: str | Path | None = None) -> "Store":
        """Open (and create when new) the store at a SQLAlchemy URL or a file path; None is `DEFAULT_STORE`.

        Raises:
            StoreError: it cannot be opened, is not a store, or was written by a library of another schema version.
        """
        where, parsed = locate(url)
        try:
            engine = sa.create_engine(
                parsed, **({"connect_args": {"timeout": 60}} if parsed.drivername.startswith("sqlite") else {})
            )
        except (SQLAlchemyError, ImportError) as error:
            raise StoreError(f"store {where}: {first_line(error)}; give a file path or a SQLAlchemy URL") from None
        if engine.dialect.name == "sqlite":
            sa.event.listen(engine, "connect", sqlite_pragmas)
        try:
            prepare(engine, where)
        except DatabaseError as error:
            engine.dispose()
            raise StoreError(
                f"store {where} cannot be used: {first_line(error.orig or error)}; give another --store"
            ) from None
        except StoreError:
            engine.dispose()
            raise
        return cls(engine)

    @property
    def url(self) -> str:
        """The URL with any password hidden."""
        return self._engine.url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Release the connections."""
        self._engine.dispose()

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        """One transaction; `StoreError` when the database is locked for longer than the timeout, full or out of reach."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except OperationalError as error:
            raise StoreError(
                f"store {self.url} cannot be written: {first_line(error.orig or error)}; nothing was written, try again"
            ) from None

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
        """Record where a run stands."""
        with self._write() as connection:
            connection.execute(
                tables.runs.update()
                .where(tables.runs.c.id == run)
                .values(status=status, spent_seconds=spent_seconds, result=None if result is None else dict(result))
            )

    def run(self, run: str) -> RunRow:
        """One run by its id, or by a prefix that only it has.

        Raises:
            StoreError: no run, or several, have that id.
        """
        with self._engine.connect() as connection:
            rows = (
                connection.execute(
                    sa.select(tables.runs).where(tables.runs.c.id.startswith(run, autoescape=True)).limit(2)
                )
                .mappings()
                .all()
            )
        exact = [row for row in rows if row["id"] == run]
        if len(exact or rows) != 1:
            found = "several runs" if rows else "no run"
            raise StoreError(f"store {self.url} has {found} called {run!r}; list them with `autopoiesis report`")
        return RunRow(**(exact or rows)[0])

    def runs(self) -> list[RunRow]:
        """All runs, oldest first."""
        with self._engine.connect() as connection:
            return [
                RunRow(**row)
                for row in connection.execute(
                    sa.select(tables.runs).order_by(tables.runs.c.started_at, tables.runs.c.id)
                ).mappings()
            ]

    def propose(self, run: str, proposals: Sequence[ProposalRow]) -> None:
        """Record a generation's proposals and their lineage, all or nothing."""
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
        """Record what became of one candidate: the checkpoint."""
        values = {
            "run": run,
            "id": row.id,
            "verdict": row.verdict,
            "gate": row.gate,
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
        """All proposals of a run by id."""
        with self._engine.connect() as connection:
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
                for row in rows
            ]

    def candidates(self, run: str) -> list[CandidateRow]:
        """All committed candidates of a run by id."""
        with self._engine.connect() as connection:
            rows = connection.execute(
                sa.select(tables.candidates).where(tables.candidates.c.run == run).order_by(tables.candidates.c.id)
            ).mappings()
            return [CandidateRow(**{key: value for key, value in row.items() if key != "run"}) for row in rows]

    # content-addressed things

    def put_policy(self, digest: str, contract: str, contract_digest: str, source: str) -> None:
        """Keep a policy; one that is there already is left alone."""
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
        """The source text of a policy by digest.

        Raises:
            StoreError: it is not in the store.
        """
        return str(self._one(tables.policies, digest, "policy")["source"])

    def put_certificate(self, digest: str, policy_digest: str, contract_digest: str, content: str) -> None:
        """Keep a certificate's JSON text under its own digest; one that is there already is left alone."""
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
        """A certificate's JSON text by digest.

        Raises:
            StoreError: it is not in the store.
        """
        return str(self._one(tables.certificates, digest, "certificate")["content"])

    def certificates_of(self, policy_digest: str) -> list[str]:
        """The JSON texts of every certificate of a policy, oldest first."""
        query = (
            sa.select(tables.certificates.c.content)
            .where(tables.certificates.c.policy_digest == policy_digest)
            .order_by(tables.certificates.c.at, tables.certificates.c.digest)
        )
        with self._engine.connect() as connection:
            return [str(row[0]) for row in connection.execute(query)]

    def certified(self, contract_digest: str) -> list[tuple[str, str]]:
        """(policy digest, source) of every certified policy of a contract, oldest first: what a warm start draws on."""
        query = (
            sa.select(
                tables.policies.c.digest, tables.policies.c.source, sa.func.min(tables.certificates.c.at).label("first")
            )
            .join(tables.certificates, tables.certificates.c.policy_digest == tables.policies.c.digest)
            .where(tables.policies.c.contract_digest == contract_digest)
            .group_by(tables.policies.c.digest, tables.policies.c.source)
            .order_by("first", tables.policies.c.digest)
        )
        with self._engine.connect() as connection:
            return [(row[0], row[1]) for row in connection.execute(query)]

    # regression counterexamples

    def put_counterexamples(self, contract_digest: str, contents: Sequence[Mapping[str, Any]], limit: int = 512) -> int:
        """Keep counterexamples as regression inputs of their contract, those already known aside, until `limit` are kept.

        Returns how many are new.
        """
        texts = {_key(text): text for text in (json.dumps(content, sort_keys=True) for content in contents)}
        table = tables.counterexamples
        mine = table.c.contract_digest == contract_digest
        with self._write() as connection:
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
        """The regression counterexamples of a contract, or only the newest ones, in the order they were found."""
        table = tables.counterexamples
        query = (
            sa.select(table.c.content)
            .where(table.c.contract_digest == contract_digest)
            .order_by(table.c.position.desc(), table.c.key.desc())
            .limit(newest)
        )
        with self._engine.connect() as connection:
            return [json.loads(row[0]) for row in reversed(connection.execute(query).all())]

    # deployments

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
        """Append a state change of a channel to the audit log; returns its id."""
        with self._write() as connection:
            inserted = connection.execute(
                tables.deployments.insert().values(
                    at=_now(),
                    channel=channel,
                    action=action,
                    policy_digest=policy_digest,
                    certificate_digest=certificate_digest,
                    actor=actor,
                    detail=dict(detail or {}),
                )
            )
            key = inserted.inserted_primary_key
            assert key is not None
            return int(key[0])

    def deployments(self, channel: str | None = None) -> list[DeploymentRow]:
        """The audit log, oldest first, of one channel or of all."""
        query = sa.select(tables.deployments).order_by(tables.deployments.c.id)
        if channel is not None:
            query = query.where(tables.deployments.c.channel == channel)
        with self._engine.connect() as connection:
            return [DeploymentRow(**row) for row in connection.execute(query).mappings()]

    # helpers

    def _insert_new(self, table: sa.Table, values: Mapping[str, Any]) -> None:
        try:
            with self._write() as connection:
                if (
                    connection.execute(sa.select(table.c.digest).where(table.c.digest == values["digest"])).first()
                    is None
                ):
                    connection.execute(table.insert().values(**values))
        except sa.exc.IntegrityError:
            return  # another process kept the same content first

    def _one(self, table: sa.Table, digest: str, what: str) -> Mapping[str, Any]:
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(table).where(table.c.digest == digest)).mappings().first()
        if row is None:
            raise StoreError(f"store {self.url} has no {what} {digest[:16]}; check --store")
        return dict(row)


_INSERT_CANDIDATE = tables.candidates.insert()
"""One statement for every checkpoint, so that SQLAlchemy compiles it once."""


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _plain(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if value is None else dict(value)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
