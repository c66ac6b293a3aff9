"""A certificate as an in-toto statement: the policy's text is the subject, its proved properties are the predicate.

Both sides read it here: the control plane, which knows every field, and an engine, which uses a few of them and has no
solver.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import AutopoiesisError
from .envelope import CERTIFICATE, Envelope, EnvelopeError, Short, first_problem

__all__ = ["PREDICATE", "StatementError", "envelope_of", "predicate_of", "statement"]

PREDICATE: Final = "urn:autopoiesis:policy-certificate:2"
"""Type and version of the predicate; a reader refuses others."""

REPUBLISH: Final = "make a new one with `autopoiesis verify` and publish it with `autopoiesis deploy`"


class StatementError(AutopoiesisError):
    """A text that is no statement about a policy, or whose subject is another text than it holds."""


class _Digest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    sha256: Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]


class _Subject(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Short
    digest: _Digest


class _Statement(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    type_: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: Annotated[tuple[_Subject, ...], Field(min_length=1, max_length=1)]
    predicateType: Literal["urn:autopoiesis:policy-certificate:2"]  # noqa: N815 (the name is in-toto's)
    predicate: dict[str, Any]


def statement(source: str, name: str, predicate: Mapping[str, Any]) -> bytes:
    """Return a statement about a policy text as canonical JSON.

    Args:
        source: the policy's text, comments included.
        name: the subject's name, for people.
        predicate: the certificate's fields, as JSON values.
    """
    body = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": hashlib.sha256(source.encode()).hexdigest()}}],
        "predicateType": PREDICATE,
        "predicate": dict(predicate),
    }
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def predicate_of(payload: bytes) -> dict[str, Any]:
    """Return the predicate of a statement, after a check that it is about the policy text that it holds.

    Raises:
        StatementError: it is no such statement, or its subject is another text.
    """
    try:
        found = _Statement.model_validate_json(payload)
    except ValidationError as error:
        if b'"contract_digest"' in payload and b'"predicateType"' not in payload:
            raise StatementError(f"it is of format 1, which proves nothing here; {REPUBLISH}") from None
        raise StatementError(f"{first_problem(error)}; {REPUBLISH}") from None
    source = found.predicate.get("policy_source")
    if not isinstance(source, str):
        raise StatementError(f"it holds no policy text; {REPUBLISH}")
    try:
        digest = hashlib.sha256(source.encode()).hexdigest()
    except UnicodeEncodeError:
        raise StatementError(f"its policy text is no Unicode text; {REPUBLISH}") from None
    if digest != found.subject[0].digest.sha256:
        raise StatementError(f"it is about another text than it holds; {REPUBLISH}")
    return found.predicate


def envelope_of(data: bytes) -> Envelope:
    """Return the envelope in a certificate file; the file of an unsigned one has no envelope."""
    try:
        return Envelope.parse(data, CERTIFICATE)
    except EnvelopeError:
        return Envelope(data, CERTIFICATE, {})
