"""The tables, and the DDL that makes the append-only tables refuse changes."""

from collections.abc import Iterator

import sqlalchemy as sa

SCHEMA_VERSION = 3
"""The schema version, which increases with every change of a table.

A store of an earlier version is migrated when it is opened. A store of a later version is refused.
"""

metadata = sa.MetaData()
meta = sa.Table(
    "meta", metadata, sa.Column("key", sa.String(64), primary_key=True), sa.Column("value", sa.Text, nullable=False)
)
policies = sa.Table(
    "policies",
    metadata,
    sa.Column("digest", sa.String(128), primary_key=True),
    sa.Column("contract", sa.String(128), nullable=False),
    sa.Column("contract_digest", sa.String(128), nullable=False, index=True),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("at", sa.String(32), nullable=False),
)
certificates = sa.Table(
    "certificates",
    metadata,
    sa.Column("digest", sa.String(128), primary_key=True),
    sa.Column("policy_digest", sa.String(128), nullable=False, index=True),
    sa.Column("contract_digest", sa.String(128), nullable=False),
    sa.Column("content", sa.Text, nullable=False),
    sa.Column("at", sa.String(32), nullable=False),
)
runs = sa.Table(
    "runs",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("contract", sa.String(128), nullable=False),
    sa.Column("contract_digest", sa.String(128), nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("config", sa.JSON, nullable=False),
    sa.Column("started_at", sa.String(32), nullable=False),
    sa.Column("spent_seconds", sa.Float, nullable=False, default=0.0),
    sa.Column("result", sa.JSON, nullable=True),
)
proposals = sa.Table(
    "proposals",
    metadata,
    sa.Column("run", sa.String(64), sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("move", sa.String(64), nullable=False),
    sa.Column("island", sa.Integer, nullable=False),
    sa.Column("rationale", sa.Text, nullable=False),
    sa.Column("details", sa.JSON, nullable=False),
)
lineage = sa.Table(
    "lineage",
    metadata,
    sa.Column("run", sa.String(64), primary_key=True),
    sa.Column("child", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("parent", sa.Integer, nullable=False),
    sa.ForeignKeyConstraint(["run", "child"], ["proposals.run", "proposals.id"]),
)
candidates = sa.Table(
    "candidates",
    metadata,
    sa.Column("run", sa.String(64), primary_key=True),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("verdict", sa.String(16), nullable=False),
    sa.Column("gate", sa.String(32), nullable=True),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("digest", sa.String(128), nullable=True, index=True),
    sa.Column("fingerprint", sa.String(128), nullable=True),
    sa.Column("descriptor", sa.String(256), nullable=True),
    sa.Column("counterexample", sa.JSON, nullable=True),
    sa.Column("scores", sa.JSON, nullable=True),
    sa.Column("fitness", sa.Float, nullable=True),
    sa.Column("seconds", sa.JSON, nullable=False),
    sa.Column("reason", sa.String(32), nullable=True),
    sa.Column("obligation", sa.Text, nullable=True),
    sa.ForeignKeyConstraint(["run", "id"], ["proposals.run", "proposals.id"]),
)
counterexamples = sa.Table(
    "counterexamples",
    metadata,
    sa.Column("contract_digest", sa.String(128), primary_key=True),
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("content", sa.Text, nullable=False),
    sa.Column("at", sa.String(32), nullable=False),
)
deployments = sa.Table(
    "deployments",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.String(32), nullable=False),
    sa.Column("channel", sa.String(512), nullable=False),
    sa.Column("entry", sa.Integer, nullable=False),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("policy_digest", sa.String(128), nullable=True),
    sa.Column("certificate_digest", sa.String(128), nullable=True),
    sa.Column("actor", sa.String(256), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("chain", sa.String(64), nullable=False),
    sa.UniqueConstraint("channel", "entry"),
)
"""The audit log. `detail` is JSON in a text column, because the chain covers the stored bytes."""

APPEND_ONLY = (lineage, deployments, policies, certificates)


def freeze_statements(dialect: str) -> Iterator[str]:
    """Yield the DDL that makes the append-only tables refuse every change of a row."""
    if dialect == "postgresql":
        yield (
            "CREATE OR REPLACE FUNCTION autopoiesis_append_only() RETURNS trigger AS "
            "$$ BEGIN RAISE EXCEPTION USING MESSAGE = TG_TABLE_NAME || ' is append-only'; END $$ LANGUAGE plpgsql"
        )
        for table in APPEND_ONLY:
            for name, event, each in (
                ("append_only", "UPDATE OR DELETE", "ROW"),
                ("no_truncate", "TRUNCATE", "STATEMENT"),
            ):
                yield (
                    f"CREATE OR REPLACE TRIGGER {table.name}_{name} BEFORE {event} ON {table.name} "
                    f"FOR EACH {each} EXECUTE FUNCTION autopoiesis_append_only()"
                )
                yield f"ALTER TABLE {table.name} ENABLE ALWAYS TRIGGER {table.name}_{name}"
    else:
        for table in APPEND_ONLY:
            for name, event in (
                ("no_update", "BEFORE UPDATE"),
                ("no_delete", "BEFORE DELETE"),
                ("no_replace", f"BEFORE INSERT ON {table.name} WHEN EXISTS ({_conflicting(table)})"),
                ("no_sentinel", f"AFTER INSERT ON {table.name} WHEN NEW.rowid < 1"),
            ):
                where = "" if " ON " in event else f" ON {table.name}"
                yield f"DROP TRIGGER IF EXISTS {table.name}_{name}"
                yield (
                    f"CREATE TRIGGER {table.name}_{name} {event}{where} "
                    f"BEGIN SELECT RAISE(ABORT, '{table.name} is append-only'); END"
                )


def _conflicting(table: sa.Table) -> str:
    """Return the SQLite query for the rows that `INSERT OR REPLACE` would remove without running a DELETE trigger.

    `NEW.rowid` is -1 if the statement gives none; the trigger `no_sentinel` keeps that value out of the table.
    """
    keys = [
        constraint.columns
        for constraint in table.constraints
        if isinstance(constraint, (sa.PrimaryKeyConstraint, sa.UniqueConstraint))
    ]
    same = [" AND ".join(f"{column.name} = NEW.{column.name}" for column in columns) for columns in keys]
    return f"SELECT 1 FROM {table.name} WHERE rowid = NEW.rowid" + "".join(f" OR ({one})" for one in sorted(same))
