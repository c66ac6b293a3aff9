"""The store: where policies, certificates, runs, candidates and deployments live, on any SQLAlchemy URL.

Policies and certificates are content-addressed, lineage and deployments are append-only (the database itself refuses to
change them), and every candidate is its own transaction, so that a killed process loses only what was in flight. SQLite
files are opened in WAL mode; a PostgreSQL URL gives the same store to several hosts.
"""

from .database import Store
from .opening import DEFAULT_STORE
from .rows import CandidateRow, DeploymentRow, ProposalRow, RunRow, RunStatus, StoreError
from .schema import SCHEMA_VERSION

__all__ = [
    "DEFAULT_STORE",
    "SCHEMA_VERSION",
    "CandidateRow",
    "DeploymentRow",
    "ProposalRow",
    "RunRow",
    "RunStatus",
    "Store",
    "StoreError",
]
