"""Opening a store: locate it, create or migrate it, and refuse a file or database that is not a store."""

import os
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from ..protocol.text import printable
from ..redaction import redacted_text, redacted_url, secrets_in_url
from . import schema as tables
from .log import chain_after, genesis
from .rows import StoreError

__all__ = [
    "DEFAULT_STORE",
    "FAULTS",
    "any_text",
    "connect",
    "first_line",
    "hide_secrets",
    "locate",
    "make_private",
    "prepare",
    "shown",
    "writing",
]

DEFAULT_STORE = ".autopoiesis/store.db"
"""Default path of the store, relative to the working directory."""

FAULTS = (SQLAlchemyError, ValueError, TypeError, ArithmeticError, RecursionError)
"""Errors that an unreachable or damaged database raises, or a value that does not fit its column."""

LOCK = 0x6175746F706F69
"""Number of the PostgreSQL advisory lock that writers of the log and of the schema take."""
LOCK_TIMEOUT_S = 60

MAX_REASON = 300
"""Maximum number of characters shown of a database's own message, which may quote a whole column."""

V1_COLUMNS = ("id", "at", "channel", "action", "policy_digest", "certificate_digest", "actor", "detail")


def locate(url: str | Path | None) -> tuple[str, sa.URL]:
    """Return the printable name of a store and its URL, and create the folder of a file.

    Raises:
        StoreError: the argument is neither a path nor a URL of a database that this library can use.
    """
    text = DEFAULT_STORE if url is None else str(url)
    if "://" not in text:
        try:
            path = Path(text).expanduser()
        except RuntimeError as error:
            raise StoreError(f"store {printable(text)}: {error}; give another --store") from None
        _prepare_file(path)
        return printable(path), sa.URL.create("sqlite", database=str(path))
    try:
        parsed = sa.make_url(text)
        backend = parsed.get_backend_name()
    except (SQLAlchemyError, ValueError):
        raise StoreError(
            "the store is neither a file path nor a SQLAlchemy URL such as postgresql+psycopg://host/name"
        ) from None
    if backend == "postgres" or parsed.drivername == "postgresql":
        parsed, backend = parsed.set(drivername="postgresql+psycopg"), "postgresql"
    where = printable(shown(parsed))
    if backend not in ("sqlite", "postgresql"):
        raise StoreError(
            f"store {where}: an append-only log is kept in SQLite and PostgreSQL only; "
            "give a file path or a postgresql:// URL"
        )
    if backend == "sqlite" and parsed.database not in (None, "", ":memory:") and "uri" not in parsed.query:
        _prepare_file(Path(str(parsed.database)))
    return where, parsed


def shown(url: sa.URL) -> str:
    """Return a URL without user name, password and query values, for use in messages."""
    return redacted_url(url.render_as_string(hide_password=False))


def make_private(url: sa.URL, where: str) -> None:
    """Create a new SQLite file with mode 0600 before SQLite does, so that its WAL and shared memory get the same mode.

    Raises:
        StoreError: the file cannot be created.
    """
    name = url.database or ""
    if name.startswith("file:"):
        name = "" if "memory" in str(url.query.get("mode", "")) else unquote(name[5:].partition("?")[0])
    if not url.drivername.startswith("sqlite") or name in ("", ":memory:"):
        return
    try:
        os.close(os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return
    except (OSError, ValueError) as error:
        raise StoreError(f"store {where}: {getattr(error, 'strerror', None) or error}; give another --store") from None


def hide_secrets(engine: sa.Engine) -> None:
    """Remove the user name, the password and the query values of an engine's URL from every error of its driver."""
    secrets = secrets_in_url(engine.url.render_as_string(hide_password=False))

    def redact(context: Any) -> None:
        for error in (context.original_exception, context.sqlalchemy_exception):
            if error is not None:
                error.args = tuple(
                    redacted_text(part, secrets) if isinstance(part, str) else part for part in error.args
                )

    if secrets:
        sa.event.listen(engine, "handle_error", redact)


def _prepare_file(path: Path) -> None:
    """Create the folder of a database file, and refuse a path that is not a regular file.

    The check includes the files that SQLite keeps beside the database. Opening a pipe there, for example, would block.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for file in (path, *(Path(f"{path}{ending}") for ending in ("-journal", "-wal", "-shm"))):
            if file.exists() and not file.is_file():
                raise StoreError(
                    f"store {printable(path)}: {printable(file)} is not a regular file; give another --store"
                )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StoreError(f"store {printable(path)}: {reason}; give another --store") from None


def connect(url: sa.URL) -> sa.Engine:
    """Return an engine whose transactions have the properties that `writing` documents.

    Raises:
        SQLAlchemyError, ImportError, ValueError, TypeError: the URL is wrong, or its driver is not installed.
    """
    if url.get_backend_name() != "sqlite":
        # A waiting writer must see what the previous writer wrote, whatever the server's default isolation level is.
        return sa.create_engine(url, isolation_level="READ COMMITTED")
    engine = sa.create_engine(url, connect_args={"timeout": LOCK_TIMEOUT_S})
    sa.event.listen(engine, "connect", _prepare_connection)
    sa.event.listen(engine, "begin", _begin)
    return engine


def _prepare_connection(connection: sqlite3.Connection, _: Any) -> None:
    connection.isolation_level = None  # `_begin` starts transactions, not the driver
    cursor = connection.cursor()
    with suppress(sqlite3.OperationalError):  # a file that cannot be written keeps its mode
        cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA trusted_schema=OFF")
    cursor.close()


def _begin(connection: sa.Connection) -> None:
    kind = connection.get_execution_options().get("store_transaction", "read")
    if kind == "read":
        connection.exec_driver_sql("BEGIN")
        return
    connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if kind == 'exclusive' else 'NORMAL'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def writing(engine: sa.Engine, *, exclusive: bool = False) -> Iterator[sa.Connection]:
    """Run one transaction that writes.

    With `exclusive`, no other process runs such a transaction at the same time, and its changes are on the disk when it
    ends. Otherwise a signed head could be ahead of the log after a power failure.
    """
    with engine.connect() as connection:
        connection = connection.execution_options(store_transaction="exclusive" if exclusive else "write")
        with connection.begin():
            if exclusive and engine.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.set_config("lock_timeout", f"{LOCK_TIMEOUT_S}s", True)))
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
            yield connection


@contextmanager
def any_text(connection: sa.Connection) -> Iterator[None]:
    """Read text that is not UTF-8 as well, which SQLite stores and its driver refuses.

    Without this, one bad entry would hide the others.
    """
    if connection.dialect.name != "sqlite":
        yield
        return
    driver: Any = connection.connection.dbapi_connection
    driver.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    try:
        yield
    finally:
        driver.text_factory = str


def prepare(engine: sa.Engine, where: str) -> tuple[str, str]:
    """Create the tables of a new store, or migrate those of an old store.

    Returns the store's identity and "". For a store of schema version 1 that cannot be written, it returns "" and the
    reason; only the runs, policies and certificates of such a store can be read.

    Raises:
        StoreError: the database belongs to another program, has a later version, or is damaged.
    """
    with engine.connect() as connection:
        found = _version(connection, where)
    if found is None:
        with writing(engine, exclusive=True) as connection:
            if _version(connection, where) is None:
                _create(connection)
    elif found in ("1", "2"):
        try:
            with writing(engine, exclusive=True) as connection:
                _migrate(connection, _version(connection, where))
        except FAULTS as error:
            if found == "2":  # a store of version 2 can be read in full
                return _identity(engine, where), ""
            return "", (
                f"store {where} has schema version 1 and cannot be migrated to version {tables.SCHEMA_VERSION}: "
                f"{first_line(error)}; it can only be read, and its log not at all: migrate a copy that can be written"
            )
    elif found != str(tables.SCHEMA_VERSION):
        raise StoreError(
            f"store {where} has schema version {printable(found)}, and this library reads version "
            f"{tables.SCHEMA_VERSION}; open it with the library that wrote it, or give another --store"
        )
    return _identity(engine, where), ""


def _identity(engine: sa.Engine, where: str) -> str:
    with engine.connect() as connection:
        identity = connection.execute(
            sa.select(tables.meta.c.value).where(tables.meta.c.key == "identity")
        ).scalar_one_or_none()
    if not isinstance(identity, str):
        raise StoreError(f"store {where} is damaged: it has no identity; restore it from a backup")
    return identity


def _version(connection: sa.Connection, where: str) -> str | None:
    """Return the schema version of a store, or None for an empty database."""
    present = set(sa.inspect(connection).get_table_names())
    if not present:
        return None
    if "meta" not in present:
        names = printable(", ".join(sorted(present)[:4]))
        raise StoreError(f"store {where} is the database of something else ({names}); give another --store")
    missing = set(tables.metadata.tables) - present
    if missing:
        raise StoreError(
            f"store {where} is damaged: it lacks the table {min(missing)}; restore it from a backup, or give another --store"
        )
    return str(
        connection.execute(
            sa.select(tables.meta.c.value).where(tables.meta.c.key == "schema_version")
        ).scalar_one_or_none()
    )


def _create(connection: sa.Connection) -> None:
    tables.metadata.create_all(connection)
    connection.execute(
        tables.meta.insert(),
        [
            {"key": "schema_version", "value": str(tables.SCHEMA_VERSION)},
            {"key": "identity", "value": str(uuid.uuid4())},
        ],
    )
    _freeze(connection)


def _migrate(connection: sa.Connection, version: str | None) -> None:
    """Migrate a store of version 1 or 2 to the present version, unless another process has already done so."""
    if version == "1":
        _chain_log(connection)
    if version in ("1", "2"):
        for column in (tables.candidates.c.reason, tables.candidates.c.obligation):
            kind = column.type.compile(connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE candidates ADD COLUMN {column.name} {kind}")
        connection.execute(
            tables.meta.update().where(tables.meta.c.key == "schema_version").values(value=str(tables.SCHEMA_VERSION))
        )


def _chain_log(connection: sa.Connection) -> None:
    """Migrate the log of version 1 to version 2: add entry numbers and chain values in the order of the ids."""
    old = sa.table("deployments", *(sa.column(name) for name in V1_COLUMNS))
    text = sa.cast(old.c.detail, sa.Text).label("detail")
    query = sa.select(*(old.c[name] for name in V1_COLUMNS if name != "detail"), text).order_by(old.c.id)
    identity = str(uuid.uuid4())
    entries: dict[str, int] = {}
    chains: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    for found in connection.execute(query).mappings():
        channel = found["channel"]
        entries[channel] = entries.get(channel, 0) + 1
        row = {**found, "entry": entries[channel]}
        chains[channel] = chain_after(chains.get(channel) or genesis(identity, channel), row)
        rows.append({**row, "chain": chains[channel]})
    connection.exec_driver_sql("DROP TABLE deployments")
    tables.deployments.create(connection)
    if rows:
        connection.execute(tables.deployments.insert(), rows)
    connection.execute(tables.meta.insert().values(key="identity", value=identity))
    _freeze(connection)


def _freeze(connection: sa.Connection) -> None:
    for statement in tables.freeze_statements(connection.dialect.name):
        connection.exec_driver_sql(statement)


def first_line(error: BaseException) -> str:
    """Return the message of a database error, or of an invalid stored value, as one line that is safe to show."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return printable(f"{error.title}.{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")
    text = str(getattr(error, "orig", None) or error)
    line = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return printable(line if len(line) <= MAX_REASON else f"{line[:MAX_REASON]} ...")
