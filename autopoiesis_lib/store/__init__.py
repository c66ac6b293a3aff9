"""The store: policies, certificates, runs, candidates and deployments, in a SQLite file or a PostgreSQL database.

Policies and certificates are addressed by content. They, the lineage and the log of deployments are append-only: the
database itself refuses to change a row. The log is also hash-chained, so a head that was signed elsewhere reveals a
change that bypassed the database. Every candidate is its own transaction, so a killed process loses only the work in
flight. SQLite files are opened in WAL mode. A PostgreSQL URL gives several hosts the same store.
"""

from .database import Store
from .log import LogBreak, LogCheck, LogHead, LogProblem, log_text
from .opening import DEFAULT_STORE
from .rows import CandidateRow, DeploymentRow, ProposalRow, RunRow, RunStatus, StoreError
from .schema import SCHEMA_VERSION

__all__ = [
    "DEFAULT_STORE",
    "SCHEMA_VERSION",
    "CandidateRow",
    "DeploymentRow",
    "LogBreak",
    "LogCheck",
    "LogHead",
    "LogProblem",
    "ProposalRow",
    "RunRow",
    "RunStatus",
    "Store",
    "StoreError",
    "log_text",
]
