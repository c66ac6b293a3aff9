"""`autopoiesis certificate`: what a certificate is worth without trusting our encoder."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autopoiesis_cli.answer import DONE, MISTAKE, REFUSED, Answer, Json, answering

if TYPE_CHECKING:
    from autopoiesis_lib.certificate import Certificate

__all__ = ["app"]

app = typer.Typer(help="Check certificates.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command("check")
@answering
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A certificate.")],
    policy: Annotated[
        Path | None, typer.Option(metavar="POLICY.py", help="Also check that the certificate is about this file.")
    ] = None,
    json: Json = False,
) -> Answer:
    """Prove every obligation again from the SMT-LIB text in the certificate, with Z3 and cvc5, without our encoder."""
    from autopoiesis_cli.rendering.gates import render_certificate
    from autopoiesis_lib.certificate import Certificate
    from autopoiesis_lib.gates.verdict import Verdict, worst

    started = time.perf_counter()
    found = Certificate.read(file)
    binding = _binding(found, policy)
    results = found.recheck()
    verdict = worst(*(item.verdict for item in results)) if results else Verdict.UNKNOWN
    good = verdict is Verdict.PROVED and not binding
    seconds = time.perf_counter() - started
    return Answer(
        document={
            "certificate": {"path": str(file), "digest": found.digest, "signed": found.signature is not None},
            "policy": {"digest": found.policy_digest},
            "contract": {"name": found.contract, "digest": found.contract_digest},
            "verdict": verdict,
            "bound": not binding,
            "binding": binding,
            "seconds": seconds,
            "obligations": [
                {"name": item.name, "verdict": item.verdict, "detail": item.detail, "solvers": item.solvers}
                for item in results
            ],
            "claims": found.claims,
            "not_covered": found.not_covered,
        },
        shown=render_certificate(found, results, seconds),
        code=DONE if good else MISTAKE if binding else REFUSED,
        error=f"{file}: {binding}" if binding else "" if good else f"{file}: {verdict}",
    )


def _binding(certificate: "Certificate", policy: Path | None) -> str:
    """Why the certificate is not about this policy and contract as installed here; empty when it is."""
    from autopoiesis_lib.errors import AutopoiesisError
    from autopoiesis_lib.policy import read_policy_text
    from autopoiesis_lib.registry import contract_named

    try:
        contract = contract_named(certificate.contract, **certificate.contract_parameters)
        certificate.check_binding(contract, None if policy is None else read_policy_text(policy))
    except AutopoiesisError as error:
        return str(error)
    return ""
