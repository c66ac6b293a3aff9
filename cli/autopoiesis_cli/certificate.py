"""`autopoiesis certificate`: check a certificate here, whoever made it."""

import json as decoding
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autopoiesis_cli.answer import DONE, MISTAKE, REFUSED, Answer, Json, answering

if TYPE_CHECKING:
    from autopoiesis_lib import Contract
    from autopoiesis_lib.certificate import Certificate
    from autopoiesis_lib.gates import GateReport
    from autopoiesis_lib.protocol.envelope import Envelope

__all__ = ["app"]

PATIENCE = 300.0
"""Greatest time of all gates, in seconds."""

app = typer.Typer(help="Check certificates.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@dataclass(frozen=True)
class _Found:
    """The result of the gates here for the certified policy, and the differences of the file from it."""

    differences: tuple[str, ...] = ()
    contract: "Contract | None" = None
    certificate: "Certificate | None" = None
    report: "GateReport | None" = None
    """The report, when a gate was not green."""

    @property
    def verdict(self) -> str:
        """The policy's verdict here."""
        if self.certificate is not None:
            return str(self.certificate.verdict)
        return "UNKNOWN" if self.report is None else str(self.report.verdict)

    @property
    def open(self) -> bool:
        """True when nothing here refutes the policy: a trusted key's signature may then count."""
        return self.verdict in ("PROVED", "UNKNOWN")


@app.command("check")
@answering
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A certificate.")],
    policy: Annotated[
        Path | None, typer.Option(metavar="POLICY.py", help="Also check that the certificate is about this file.")
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of trusted keys (*.pub) for the certificate's signature.")
    ] = None,
    proofs: Annotated[
        bool, typer.Option("--proofs", help="Also check the proof of every obligation, without trusting a solver.")
    ] = False,
    json: Json = False,
) -> Answer:
    """Run all gates on the certified policy here and compare what they find with what the file says.

    Exit 0 when it is proved here and the file agrees, or when a trusted key vouches for what cannot be proved here; 1
    when not, or when --proofs finds one that is missing or wrong; 2 when FILE is no certificate, or not about
    POLICY.py.
    """
    from autopoiesis_cli.rendering.gates import render_certificate, render_proofs, render_report
    from autopoiesis_lib.certificate import Certificate, read_envelope
    from autopoiesis_lib.protocol.text import printable

    started = time.perf_counter()
    envelope = read_envelope(file)
    claimed = Certificate.of(envelope, file)
    key, signature = _signature(envelope, keys)
    binding = "" if policy is None else _other_text(claimed, policy)
    found = _found(claimed)
    proved = found.certificate is not None and not found.differences
    checked = _check_proofs(claimed, found) if proofs else None
    unproved = () if checked is None else tuple(item for item in checked.items if item.state != "checked")
    rests_on = "proof" if proved else "signature" if key is not None and found.open else "nothing"
    seconds = time.perf_counter() - started
    if found.report is not None and not found.open:
        shown = render_report(found.report, file, None)
        error = f"{file}: {found.verdict}: {printable(found.report.failed.detail if found.report.failed else '')}"
    else:
        shown = render_certificate(found.certificate, found.differences, rests_on, signature, seconds)
        error = "" if rests_on != "nothing" else f"{file}: not what is proved here: {_first(found.differences)}"
    if checked is not None:
        gaps = {item.name: f"{item.state}: {item.detail}" if item in unproved else "" for item in checked.items}
        shown = [*shown, *render_proofs(gaps, checked.seconds)]
    without = _without_proof(checked, unproved)
    if without and not error:
        error = f"{file}: {without}"
    return Answer(
        document={
            "certificate": {
                "path": str(file),
                "digest": claimed.digest,
                "signed": key is not None,
                "key": key,
                "signature": signature,
            },
            "policy": {"digest": None if found.certificate is None else found.certificate.policy_digest},
            "contract": None
            if found.contract is None
            else {"name": found.contract.contract_name, "digest": found.contract.digest},
            "verdict": found.verdict,
            "rests_on": rests_on,
            "bound": not binding,
            "binding": binding,
            "differences": found.differences,
            "seconds": seconds,
            **_recomputed(found, checked),
        },
        shown=shown,
        code=MISTAKE if binding else REFUSED if rests_on == "nothing" or without else DONE,
        error=f"{file}: {binding}" if binding else error,
    )


@app.command("export")
@answering
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A certificate.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder for the files; it is made if need be.")],
    json: Json = False,
) -> Answer:
    """Write each obligation as SMT-LIB and its proof as Alethe, for checkers of others. Nothing in them is checked
    here.

    Exit 0 when every obligation has a proof, 1 when one has none or is refused, 2 when FILE is no certificate.
    """
    from rich.text import Text

    from autopoiesis_lib.certificate import Certificate
    from autopoiesis_lib.proofs.stored import exported
    from autopoiesis_lib.protocol.files import write_atomically
    from autopoiesis_lib.protocol.text import printable

    written: list[dict[str, Any]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"{folder}: {error.strerror}", param_hint="DIR") from None
    for number, item in enumerate(Certificate.read(file).items, 1):
        slug = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in item.name)[:60]
        contents, problem = exported(item.smtlib, item.proof)
        paths = [str(folder / f"{number:03}-{slug}{suffix}") for suffix in contents]
        for path, content in zip(paths, contents.values(), strict=True):
            write_atomically(path, content)
        written.append({"name": printable(item.name), "files": paths, "problem": printable(problem)})
    gaps = [f"{item['name']}: {item['problem']}" for item in written if item["problem"]]
    count = sum(len(item["files"]) for item in written)
    return Answer(
        document={"certificate": {"path": str(file)}, "obligations": written},
        shown=[Text(f"{count} files written to {folder}"), *(Text(f"- {gap}") for gap in gaps)],
        code=REFUSED if gaps else DONE,
        error=f"{file}: without a proof: {_first(tuple(gaps))}" if gaps else "",
    )


@dataclass(frozen=True)
class _Proved:
    """One obligation or lemma that was encoded here, and the state of the file's proof of it."""

    name: str
    state: str
    """`checked`, `missing` or `refused`."""
    detail: str = ""


@dataclass(frozen=True)
class _Proofs:
    items: tuple[_Proved, ...] = ()
    seconds: float = 0.0


def _check_proofs(claimed: "Certificate", found: _Found) -> _Proofs:
    """Check the file's proofs against the texts that were encoded here; a proof of another text does not count."""
    from autopoiesis_lib.proofs.stored import check_isolated
    from autopoiesis_lib.protocol.text import printable

    if found.certificate is None:
        return _Proofs()
    started = time.perf_counter()
    stored = {item.name: item for item in claimed.items}
    given = [(item, stored.get(item.name)) for item in found.certificate.items]
    outcomes = iter(
        check_isolated([(item.smtlib or "", other.proof) for item, other in given if other is not None and other.proof])
    )
    items: list[_Proved] = []
    for item, other in given:
        if other is None or not other.proof:
            items.append(_Proved(item.name, "missing", printable(other.proof_gap)[:300] if other is not None else ""))
        else:
            said = next(outcomes)
            state, detail = ("refused", printable(said.detail)[:300]) if said.problem else ("checked", "")
            items.append(_Proved(item.name, state, detail))
    return _Proofs(tuple(items), time.perf_counter() - started)


def _without_proof(checked: _Proofs | None, unproved: tuple[_Proved, ...]) -> str:
    """Return in one line why an obligation lacks a checked proof.

    The result is empty when none does, or when the check was not requested.
    """
    if checked is None:
        return ""
    if not checked.items:
        return "no proof was checked, for no obligation was encoded here"
    lines = tuple(
        f"the proof of `{item.name}` is {item.state}: {item.detail or 'the file has none'}" for item in unproved
    )
    return _first(lines) if lines else ""


def _signature(envelope: "Envelope", keys: Path | None) -> tuple[str | None, str]:
    """Return the id of the trusted key that signed, if one did, and the state of the signature in words.

    Raises:
        SigningError: a trusted key's signature is wrong, or the folder of keys cannot be read.
    """
    from autopoiesis_lib.protocol.keys import UnknownKey, Unsigned, trusted_keys

    if not envelope.signed:
        return None, "unsigned"
    if keys is None:
        return None, "unsigned as far as is known here: its signature was not checked; give --keys DIR"
    try:
        key = envelope.signed_by(trusted_keys(keys), "the certificate")
    except (Unsigned, UnknownKey):
        return None, f"signed by the unknown key {min(envelope.signatures)[:12]}, which counts as unsigned"
    return key, f"signed by {key[:12]}"


def _found(claimed: "Certificate") -> _Found:
    """Return the result of all gates here for a certified text, and the certificate's differences from it."""
    from autopoiesis_lib.certificate import Certificate
    from autopoiesis_lib.differences import differences, shown
    from autopoiesis_lib.errors import ContractError
    from autopoiesis_lib.gates import GateReport
    from autopoiesis_lib.protocol.envelope import CERTIFICATE, Envelope
    from autopoiesis_lib.protocol.text import printable
    from autopoiesis_lib.sandbox import NotProved, SandboxError, verify_isolated

    try:
        contract = _contract_of(claimed)
    except ContractError as error:
        return _Found((f"contract: {printable(error)[:300]}",))
    if contract.digest != claimed.contract_digest:
        return _Found(
            (
                f"contract: the certificate is for another version of {contract.contract_name} (digest "
                f"{claimed.contract_digest[:12]}, here {contract.digest[:12]}), so nothing was proved",
            )
        )
    parameters = contract.model_dump()
    try:
        payload = verify_isolated(claimed.policy_source, contract.contract_name, parameters, seconds=PATIENCE)
    except NotProved as error:
        report = GateReport.model_validate(_visible(decoding.loads(error.report)))
        line = f"verdict: {shown(error.verdict)} here, `PROVED` in the file: {printable(error.detail)[:300]}"
        return _Found((line,), contract, report=report)
    except SandboxError as error:
        return _Found((f"verdict: nothing was proved here: {printable(error)[:300]}",), contract)
    made = Certificate.of(Envelope(payload, CERTIFICATE, {}))
    return _Found(differences(claimed, made), contract, made)


def _visible(value: Any) -> Any:
    """Return a JSON value with hidden characters escaped: a report quotes the policy, which is foreign text."""
    from autopoiesis_lib.protocol.text import printable

    if isinstance(value, str):
        return printable(value, allowed="\n")
    if isinstance(value, dict):
        return {printable(key): _visible(item) for key, item in value.items()}
    return [_visible(item) for item in value] if isinstance(value, list) else value


def _contract_of(claimed: "Certificate") -> "Contract":
    """Return the installed contract that a certificate names, with the parameters that it states.

    Raises:
        ContractError: there is none, or it has no such parameters.
    """
    from autopoiesis_lib.registry import contract_named

    return contract_named(claimed.contract, **claimed.contract_parameters)


def _other_text(claimed: "Certificate", policy: Path) -> str:
    """Return the difference of a policy file from the certified text, comments included; empty when there is none."""
    from autopoiesis_lib.language.grammar import universal_newlines
    from autopoiesis_lib.policy import read_policy_text

    ours, theirs = read_policy_text(policy).split("\n"), universal_newlines(claimed.policy_source).split("\n")
    if ours == theirs:
        return ""
    same = next((index for index, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    line = 1 + (min(len(ours), len(theirs)) if same is None else same)
    return f"{policy} is not the certified one: it differs from line {line} on (comments count: they are what a reader trusts)"


def _recomputed(found: _Found, checked: _Proofs | None) -> Mapping[str, Any]:
    """Return the parts of the document that the gates and the proof checker found here."""
    made, report = found.certificate, found.report
    obligations = made.items if made is not None else () if report is None else report.obligations
    proofs = {item.name: {"proof": item.state, "proof_detail": item.detail} for item in (checked or _Proofs()).items}
    example = None if report is None else report.counterexample
    return {
        "obligations": [
            {
                "name": item.name,
                "verdict": item.verdict,
                "detail": item.detail,
                "solvers": item.solvers,
                **proofs.get(item.name, {}),
            }
            for item in obligations
        ],
        "claims": () if made is None else made.claims,
        "bounds": {} if made is None else made.bounds,
        "not_covered": () if made is None else made.not_covered,
        "counterexample": None if example is None else example.model_dump(mode="json"),
    }


def _first(differences: tuple[str, ...]) -> str:
    more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
    return f"{differences[0]}{more}"
