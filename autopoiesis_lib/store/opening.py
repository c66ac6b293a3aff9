"""Opening a store: where it is, and whether it is one this library can read."""

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from . import schema as tables
from .rows import StoreError

__all__ = ["DEFAULT_STORE", "first_line", "locate", "prepare", "sqlite_pragmas"]

DEFAULT_STORE = ".autopoiesis/store.db"
"""Where the store is when nobody says otherwise, below the working directory."""


def locate(url: str | Path | None) -> tuple[str, sa.URL]:
    text = DEFAULT_STORE if url is None else str(url)
    if "://" not in text:
        path = Path(text).expanduser()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"store {path}: {error.strerror or error}; give another --store") from None
        return str(path), sa.URL.create("sqlite", database=str(path))
    try:
        parsed = sa.make_url(text)
    except SQLAlchemyError:
        raise StoreError(
            "the store is neither a file path nor a SQLAlchemy URL such as postgresql+psycopg://host/name"
        ) from None
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername.startswith("sqlite") and parsed.database not in (None, "", ":memory:"):
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    return parsed.render_as_string(hide_password=True), parsed


def sqlite_pragmas(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def prepare(engine: sa.Engine, where: str) -> None:
    """Create the tables of a new store; check the version of an old one."""
    present = set(sa.inspect(engine).get_table_names())
    if present and "meta" not in present:
        raise StoreError(
            f"store {where} is the database of something else ({', '.join(sorted(present)[:4])}); give another --store"
        )
    if not present:
        with engine.begin() as connection:
            tables.metadata.create_all(connection)
            for statement in tables.freeze_statements(engine.dialect.name):
                connection.exec_driver_sql(statement)
            connection.execute(tables.meta.insert().values(key="schema_version", value=str(tables.SCHEMA_VERSION)))
    with engine.connect() as connection:
        found = connection.execute(
            sa.select(tables.meta.c.value).where(tables.meta.c.key == "schema_version")
        ).scalar_one_or_none()
    if found != str(tables.SCHEMA_VERSION):
        raise StoreError(
            f"store {where} has schema version {found}, and this library reads version {tables.SCHEMA_VERSION}; "
            "open it with the library that wrote it, or give another --store"
        )


def first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
