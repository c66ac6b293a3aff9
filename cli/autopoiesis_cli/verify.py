"""`autopoiesis verify`: run a policy through all the gates."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autopoiesis_cli.answer import DONE, MISTAKE, REFUSED, Answer, Json, answering
from autopoiesis_cli.deadline import OutOfTime, check_within
from autopoiesis_cli.options import ContractOption, PolicyPath, SettingsOption, contract_from

if TYPE_CHECKING:
    from autopoiesis_lib import Contract
    from autopoiesis_lib.certificate import Certificate
    from autopoiesis_lib.gates import GateReport, GateResult

__all__ = ["check_file", "document", "verify"]


@answering
def verify(
    policy: PolicyPath,
    contract: ContractOption,
    certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the certificate here when PROVED.")
    ] = None,
    settings: SettingsOption = None,
    time_limit: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0.001, help="Give up (UNKNOWN) after this long.")
    ] = None,
    proofs: Annotated[
        bool, typer.Option("--proofs", help="Keep a proof of each obligation by cvc5 in the certificate.")
    ] = False,
    json: Json = False,
) -> Answer:
    """Run a policy through all the gates: exit 0 when PROVED, 1 when refused, 2 when the file is not a policy."""
    from autopoiesis_cli.rendering.gates import render_proofs, render_report

    if proofs and certificate is None:
        raise typer.BadParameter(
            "proofs are kept in a certificate; also give --certificate FILE", param_hint="--proofs"
        )
    chosen = contract_from(contract, settings)
    report = check_file(policy, chosen, certify=certificate is not None, time_limit=time_limit)
    kept = None
    if certificate is not None and report.verdict == "PROVED":
        made = _write_certificate(policy, chosen, report, certificate, proofs)
        kept = {item.name: item.proof_gap for item in made.items} if proofs else None
    code = DONE if report.verdict == "PROVED" else MISTAKE if report.verdict == "INVALID" else REFUSED
    failed = report.gates[-1] if not report.gates[-1].verdict.green else report.failed
    return Answer(
        document={
            **document(report, policy),
            "certificate": _written(certificate, report),
            "proofs": None
            if kept is None
            else [
                {"name": name, "proof": "refused" if gap else "checked", "detail": gap} for name, gap in kept.items()
            ],
        },
        shown=[
            *render_report(report, policy, _written(certificate, report)),
            *([] if kept is None else render_proofs(kept)),
        ],
        code=code,
        error="" if failed is None else _reason(policy, report.verdict, failed.detail),
    )


def check_file(
    path: Path, contract: "Contract", *, certify: bool = False, time_limit: float | None = None
) -> "GateReport":
    """Return the gates' report on a file; an unreadable file is INVALID, one that takes too long is UNKNOWN."""
    from autopoiesis_lib.gates import GateResult, Verdict, check
    from autopoiesis_lib.gates.verdict import Reason
    from autopoiesis_lib.language import LanguageError
    from autopoiesis_lib.policy import read_policy_text

    started = time.perf_counter()
    done: list[GateResult] = []
    try:
        text = read_policy_text(path)
        if time_limit is not None:
            return check_within(time_limit, text, contract, certify, done.append)
        return check(text, contract, explain=True, certify=certify)
    except LanguageError as error:
        verdict, reason = Verdict(error.verdict), Reason.LANGUAGE
        done.append(GateResult(name="grammar", verdict=verdict, seconds=0.0, reason=reason, detail=error.message))
    except OutOfTime:
        spent = time_limit or 0.0
        detail = f"stopped by --time-limit {spent:g}; give it longer or simplify the policy"
        unknown, reason = Verdict.UNKNOWN, Reason.TIME
        done.append(GateResult(name="time-limit", verdict=unknown, seconds=spent, reason=reason, detail=detail))
    return _report(contract, done, time.perf_counter() - started)


def _reason(path: Path, verdict: str, detail: str) -> str:
    return f"{verdict}: {detail}" if detail.startswith(str(path)) else f"{path}: {verdict}: {detail}"


def _report(contract: "Contract", gates: "list[GateResult]", seconds: float) -> "GateReport":
    from autopoiesis_lib.gates import GateReport
    from autopoiesis_lib.gates.verdict import worst

    return GateReport(
        contract=contract.contract_name,
        contract_digest=contract.digest,
        policy_digest=None,
        verdict=worst(*(gate.verdict for gate in gates)),
        seconds=seconds,
        gates=tuple(gates),
    )


def document(report: "GateReport", path: Path) -> Mapping[str, Any]:
    """Return the report as `verify --json` prints it. A counterexample maps argument names to field values."""
    return {
        "policy": {"path": str(path), "digest": report.policy_digest},
        "contract": {"name": report.contract, "digest": report.contract_digest},
        "verdict": report.verdict,
        "seconds": report.seconds,
        "gates": [
            {
                "name": gate.name,
                "verdict": gate.verdict,
                "seconds": gate.seconds,
                "reason": gate.reason,
                "obligation": gate.obligation,
                "detail": gate.detail,
            }
            for gate in report.gates
        ],
        "obligations": [
            {
                "name": item.name,
                "verdict": item.verdict,
                "seconds": item.seconds,
                "reason": item.reason,
                "detail": item.detail,
                "counterexample": None if item.counterexample is None else item.counterexample.arguments,
                "least": None if item.least is None else item.least.model_dump(mode="json", exclude={"refuted_below"}),
                "solvers": item.solvers,
            }
            for item in report.obligations
        ],
        "counterexample": None if report.counterexample is None else report.counterexample.model_dump(mode="json"),
        "least": report.least(),
        "claims": report.claims,
    }


def _written(certificate: Path | None, report: "GateReport") -> str | None:
    return str(certificate) if certificate is not None and report.verdict == "PROVED" else None


def _write_certificate(
    path: Path, contract: "Contract", report: "GateReport", target: Path, proofs: bool
) -> "Certificate":
    from autopoiesis_lib.certificate import certify
    from autopoiesis_lib.policy import Policy

    made = certify(Policy.from_file(path, contract), report, proofs=proofs)
    made.write(target)
    return made
