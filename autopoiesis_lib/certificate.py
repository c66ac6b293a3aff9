"""Certificates: what was proved of a policy, how, by which versions, and what is not covered.

A certificate is an in-toto statement about the policy's text. It holds the SMT-LIB text of every obligation, and it is bound to
the digests of the policy and the contract. Deployment signs it in a DSSE envelope (`sign`). What a file says is a claim: only
gates that ran here (`verify`, `sandbox.verify_isolated`), or the signature of a trusted key, make it more; `differences` says
where a claim departs from what was found here.
"""

import hashlib
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from .binding import CertificateError, bound_policy
from .contract import Contract
from .errors import AutopoiesisError
from .gates import GateReport, GateResult, ObligationResult, Verdict, check
from .gates.alethe import with_proof, without_proofs_that_do_not_fit
from .gates.claims import NOT_COVERED
from .gates.fuzz import DEFAULT_EXAMPLES
from .gates.samples import SEED
from .gates.second_solver import DEFAULT_RESOURCES
from .gates.solving import DEFAULT_RLIMIT
from .gates.texts import TextAnswer, solve_isolated
from .gates.verdict import TheoremResult, rests_on
from .language.products import PRODUCT
from .policy import Policy
from .proofs.smtlib import SmtLibError, read
from .protocol.envelope import CERTIFICATE, Envelope, first_problem, seal
from .protocol.files import MAX_CERTIFICATE_BYTES, FileRefusedError, read_bounded, write_atomically
from .protocol.keys import SigningKey
from .protocol.statement import StatementError, envelope_of, predicate_of, statement
from .protocol.text import hidden_character
from .registry import contract_named
from .sandbox import SOLVING

__all__ = ["Certificate", "CertificateError", "Rejected", "certify", "read_envelope", "sign", "verify"]


class Rejected(AutopoiesisError):
    """A policy did not pass the gates; `report` says why."""

    def __init__(self, report: GateReport) -> None:
        failed = report.failed
        super().__init__(
            f"{report.verdict}: {failed.name}: {failed.detail}" if failed is not None else str(report.verdict)
        )
        self.report = report


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _visible(text: str) -> str:
    if hidden_character(text) is not None:
        raise ValueError("a character that cannot be seen")
    return text


Digest = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]


class Certificate(_Value):
    """Claims about one policy under one contract, with what they rest on."""

    format: Literal[2] = 2
    contract: Annotated[str, Field(max_length=256), AfterValidator(_visible)]
    contract_digest: Digest
    contract_parameters: Mapping[str, int | bool]
    policy_digest: Digest
    policy_source: str
    verdict: Literal[Verdict.PROVED] = Verdict.PROVED
    claims: tuple[str, ...]
    bounds: Mapping[str, int]
    """The proved bound of each invariant that has one."""
    obligations: tuple[ObligationResult, ...]
    theorems: tuple[TheoremResult, ...]
    gates: tuple[GateResult, ...]
    """The other gates' answers (obligations are above)."""
    single_solver: tuple[str, ...] = ()
    """Obligations on which the second solver gave up."""
    not_covered: tuple[str, ...] = NOT_COVERED
    versions: Mapping[str, str]
    budgets: Mapping[str, int]
    """Resource limits and seeds: with them the verdict repeats."""
    created: str
    """UTC, ISO 8601."""

    def payload(self) -> bytes:
        """Return the in-toto statement as canonical JSON: the bytes that a signature covers."""
        return statement(self.policy_source, f"{self.contract}/{self.policy_digest}.py", self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """SHA-256 of `payload`."""
        return hashlib.sha256(self.payload()).hexdigest()

    def write(self, path: str | Path, key: SigningKey | None = None) -> None:
        """Write the certificate, in a signed envelope when a key is given, otherwise as readable JSON.

        Raises:
            AutopoiesisError: the file cannot be written.
        """
        plain = json.dumps(json.loads(self.payload()), indent=2) + "\n"
        write_atomically(path, plain if key is None else sign(self, key).to_bytes())

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a certificate, signed or not. No signature is checked here: `read_envelope` has them.

        Raises:
            CertificateError: the file cannot be read, or is not a certificate of this format.
        """
        return cls.of(read_envelope(path), path)

    @classmethod
    def of(cls, envelope: Envelope, where: object = "the text") -> Self:
        """Return the certificate in an envelope, whose signature the caller has checked or does not rely on.

        Args:
            envelope: the envelope; `where` names it in an error.

        Raises:
            CertificateError: the payload is not a certificate of this format.
        """
        try:
            return cls.model_validate(predicate_of(envelope.payload))
        except StatementError as error:
            raise CertificateError(f"{where} is not a certificate: {error}") from None
        except ValidationError as error:
            raise CertificateError(
                f"{where} is not a certificate: {first_problem(error)}; make a new one with `autopoiesis verify`"
            ) from None

    def check_binding(self, contract: Contract, source: str | None = None) -> Policy:
        """Return the certified policy, parsed again, once it is sure that the certificate is about it and this contract.

        `source` is a policy text found beside the certificate; it must be the certified one.

        Raises:
            CertificateError: a digest differs, an obligation or gate is not green, or the policy does not parse.
        """
        return bound_policy(self, contract, self.policy_source if source is None else source)

    @property
    def items(self) -> tuple[ObligationResult, ...]:
        """Every obligation, and every lemma of every theorem."""
        return (*self.obligations, *(lemma for theorem in self.theorems for lemma in theorem.lemmas))

    def recheck(self, *, seconds: float = SOLVING.seconds) -> tuple[ObligationResult, ...]:
        """Prove the SMT-LIB text of every obligation and lemma again, with Z3 and cvc5; our encoder takes no part.

        A text is PROVED when at least one solver refutes it and none finds a model. That says nothing about the policy: a text
        may state anything, and only the encoder knows what it should state. Texts outside the grammar that our encoder writes
        (`proofs.smtlib`) are UNKNOWN; the others are solved in a child process within `seconds`.
        """
        names = {item.name for item in self.obligations}
        items = self.items
        queries: dict[int, str] = {}
        details: dict[int, str] = {}
        for index, item in enumerate(items):
            if item.smtlib is None:
                details[index] = "the certificate has no text of it"
            elif PRODUCT in item.smtlib and rests_on(item.name) not in names:
                details[index] = f"the certificate has no `{rests_on(item.name)}`, on which it rests"
            else:
                try:
                    queries[index] = read(item.smtlib).solver_text()
                except SmtLibError as error:
                    details[index] = f"refused: {error}"
        answers = dict(zip(queries, solve_isolated(tuple(queries.values()), seconds), strict=True))
        results: list[ObligationResult] = []
        for index, item in enumerate(items):
            answer = answers.get(index) or TextAnswer(problem=details[index])
            results.append(
                ObligationResult(
                    name=item.name, verdict=answer.verdict, seconds=0.0, detail=answer.detail, solvers=answer.agreed
                )
            )
        return tuple(results)


def read_envelope(path: str | Path) -> Envelope:
    """Return the envelope in a certificate file; a certificate without a signature is in an envelope without one.

    Raises:
        CertificateError: the file cannot be read.
    """
    try:
        return envelope_of(read_bounded(path, MAX_CERTIFICATE_BYTES, follow_links=True))
    except FileRefusedError as error:
        raise CertificateError(f"the certificate {error}") from None


def sign(certificate: Certificate, key: SigningKey) -> Envelope:
    """Return a certificate in an envelope that a key signs."""
    return seal(certificate.payload(), CERTIFICATE, key)


def verify(policy: Policy, *, rlimit: int = DEFAULT_RLIMIT, proofs: bool = False) -> Certificate:
    """Run every gate on a policy and certify it; with `proofs`, each obligation and lemma keeps a proof of its text by cvc5.

    Raises:
        Rejected: a gate was not green; its report holds verdicts and counterexamples.
    """
    report = check(policy.source, policy.contract, rlimit=rlimit, explain=True, certify=True)
    if report.verdict is not Verdict.PROVED:
        raise Rejected(report)
    return certify(policy, report, rlimit=rlimit, proofs=proofs)


def verify_here(asked: bytes) -> bytes:
    """Run every gate as a child process of `sandbox.verify_isolated`, which knows what the bytes mean."""
    wanted = json.loads(asked)
    contract = contract_named(wanted["contract"], **wanted["parameters"])
    report = check(wanted["source"], contract, explain=True, certify=True)
    if report.verdict is Verdict.PROVED:
        return b"C" + certify(Policy.from_source(wanted["source"], contract), report).payload()
    failed = report.failed
    said = {
        "verdict": report.verdict,
        "gate": "" if failed is None else failed.name,
        "detail": "" if failed is None else failed.detail,
        "report": report.model_dump_json(),
    }
    return b"R" + json.dumps(said).encode()


def certify(policy: Policy, report: GateReport, *, rlimit: int = DEFAULT_RLIMIT, proofs: bool = False) -> Certificate:
    """Return a certificate from a report of `gates.check(..., certify=True)` whose verdict is PROVED; as `verify`, with `proofs`.

    Raises:
        Rejected: the report is not green.
        CertificateError: the report is of another policy, or a theorem of the contract does not hold.
    """
    if report.verdict is not Verdict.PROVED:
        raise Rejected(report)
    if any(item.smtlib is None for item in report.obligations):
        raise CertificateError("the report keeps no SMT-LIB texts; make it with `gates.check(..., certify=True)`")
    if report.policy_digest != policy.digest or report.contract_digest != policy.contract.digest:
        raise CertificateError("the report is about another policy or contract")
    for theorem in report.theorems:
        broken = next((item for item in theorem.lemmas if item.verdict is not Verdict.PROVED), None)
        if broken is not None or not theorem.proved:
            said = "it has no lemma" if broken is None else f"{broken.name}: {broken.verdict}: {broken.detail}"
            raise CertificateError(
                f"the theorem {theorem.name} of {policy.contract.contract_name} is not discharged: {said}"
            )
    if {theorem.name for theorem in report.theorems} != {item.__name__ for item in policy.contract.stated}:
        raise CertificateError("the report does not have every theorem of the contract; make it with `gates.check`")
    contract = policy.contract
    certificate = Certificate(
        contract=contract.contract_name,
        contract_digest=contract.digest,
        contract_parameters=contract.model_dump(),
        policy_digest=policy.digest,
        policy_source=policy.source,
        claims=report.claims,
        bounds=report.least(),
        obligations=report.obligations,
        theorems=report.theorems,
        gates=tuple(gate.model_copy(update={"obligations": ()}) for gate in report.gates),
        single_solver=tuple(item.name for item in report.obligations if len(item.solvers) < 2),
        versions=_versions(),
        budgets={
            "z3_rlimit": rlimit,
            "cvc5_rlimit": DEFAULT_RESOURCES,
            "fuzz_examples": DEFAULT_EXAMPLES,
            "sample_seed": SEED,
        },
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return _with_proofs(certificate) if proofs else certificate


ENVELOPE_BYTES: Final = 65_536
"""Bytes that signatures and the words around a payload may take in a certificate file."""


def _with_proofs(certificate: Certificate) -> Certificate:
    """Return a certificate whose obligations and lemmas keep proofs of their texts, as far as its file has room for them."""
    bare = [with_proof(item) for item in certificate.items]
    # A signed file holds the payload in base64, a readable one is indented; proofs are one line each in both.
    readable = len(json.dumps(json.loads(certificate.payload()), indent=2)) + sum(len(item.proof_gap) for item in bare)
    room = (MAX_CERTIFICATE_BYTES - ENVELOPE_BYTES) * 3 // 4 - readable - 200 * len(bare)
    kept = iter(without_proofs_that_do_not_fit(bare, room))
    return certificate.model_copy(
        update={
            "obligations": tuple(next(kept) for _ in certificate.obligations),
            "theorems": tuple(
                theorem.model_copy(update={"lemmas": tuple(next(kept) for _ in theorem.lemmas)})
                for theorem in certificate.theorems
            ),
        }
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("autopoiesis-lib", "z3-solver", "cvc5", "mypy", "hypothesis", "llvmlite"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
