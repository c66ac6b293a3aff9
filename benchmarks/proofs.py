"""Cost of proofs of obligations: their number, their size, the time to make and to check them, and their rules.

The texts are those of the baselines of the built-in contracts and of a sample of the corpus: each obligation and lemma
once.

    python benchmarks/proofs.py [--policies N] [--json FILE]
"""

import argparse
import json
import time
from collections import Counter
from pathlib import Path

from autopoiesis_contracts.request_ordering import RequestOrdering
from rich.console import Console
from rich.table import Table

from autopoiesis_lib import Policy, contract_named, contract_names
from autopoiesis_lib.certificate import Rejected, verify
from autopoiesis_lib.gates.alethe import NoProof, proof_of
from autopoiesis_lib.proofs import ProofError, check
from autopoiesis_lib.proofs.stored import packed

CORPUS = Path(__file__).parents[1] / "tests" / "corpus" / "request_ordering.jsonl"


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", type=int, default=40, help="policies of the corpus (in its order)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    figures = measured(texts(options.policies))
    table = Table(title="Proofs of obligations")
    table.add_column("what")
    table.add_column("figure", justify="right")
    for name, value in figures.items():
        if not isinstance(value, dict):
            table.add_row(name, f"{value:,}")
    console = Console()
    console.print(table)
    console.print("rules:", figures["rules"], "gaps:", figures["gaps"])
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def texts(policies: int) -> dict[str, str]:
    """Return names by text; policies that are not proved have none."""
    entries = list(map(json.loads, CORPUS.read_text(encoding="utf-8").splitlines()))[:policies]
    todo = [
        (contract, text)
        for name in contract_names()
        for contract in (contract_named(name),)
        for text in contract.baselines().values()
    ]
    todo += [(RequestOrdering(), entry["source"]) for entry in entries]
    found: dict[str, str] = {}
    for contract, source in todo:
        try:
            made = verify(Policy.from_source(source, contract))
        except Rejected:
            continue
        found |= {item.smtlib: item.name for item in made.items if item.smtlib is not None}
    return found


def measured(named: dict[str, str]) -> dict[str, object]:
    """Return the figures; times are CPU seconds of this process."""
    rules: Counter[str] = Counter()
    gaps: Counter[str] = Counter()
    making, checking, plain, stored, non_linear = [0.0], [0.0], [], [], Counter[str]()
    for text in named:
        products = is_non_linear(text)
        started = time.process_time()
        try:
            proof = proof_of(text)
        except NoProof as error:
            gaps[str(error)[:90]] += 1
            non_linear["without a proof"] += products
            continue
        finally:
            making.append(time.process_time() - started)
        started = time.process_time()
        try:
            rules.update(check(text, proof).rules)
        except ProofError as error:
            gaps[str(error)[:90]] += 1
            non_linear["without a proof"] += products
            continue
        finally:
            checking.append(time.process_time() - started)
        non_linear["checked"] += products
        plain.append(len(proof))
        stored.append(len(packed(proof)))
    return {
        "texts": len(named),
        "proofs checked": len(plain),
        "non-linear, checked": non_linear["checked"],
        "non-linear, not": non_linear["without a proof"],
        "steps": rules.total(),
        "KiB of text": sum(plain) // 1024,
        "KiB of the largest": max(plain) // 1024,
        "KiB stored": sum(stored) // 1024,
        "seconds to make": round(sum(making), 2),
        "seconds for the slowest": round(max(making), 2),
        "seconds to check": round(sum(checking), 2),
        "seconds to check the slowest": round(max(checking), 2),
        "rules": dict(rules.most_common()),
        "gaps": dict(gaps.most_common()),
    }


def is_non_linear(text: str) -> bool:
    """Return true for a text that multiplies two terms that are not numbers, or divides by one."""
    from autopoiesis_lib.proofs.smtlib import read
    from autopoiesis_lib.proofs.terms import Terms

    terms = Terms()
    terms.assertions(read(text))
    return any(
        sum(terms.values[item] is None for item in arguments[1 if head in ("div", "mod") else 0 :]) > (head == "*")
        for head, arguments in zip(terms.heads, terms.arguments, strict=True)
        if head in ("*", "div", "mod")
    )


if __name__ == "__main__":
    main()
