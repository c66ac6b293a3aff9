"""Random and mutated bytes against everything that reads a certificate: a typed error, or a value that survives a round trip."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from autopoiesis_contracts.request_ordering import RequestOrdering
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autopoiesis_lib import Certificate, Policy, verify
from autopoiesis_lib.certificate import sign
from autopoiesis_lib.differences import differences
from autopoiesis_lib.errors import AutopoiesisError
from autopoiesis_lib.proofs.smtlib import SmtLibError, read
from autopoiesis_lib.protocol.envelope import CERTIFICATE, Envelope
from autopoiesis_lib.protocol.keys import load_key, new_key, trusted_keys
from autopoiesis_lib.protocol.statement import envelope_of, predicate_of, statement
from autopoiesis_lib.protocol.text import hidden_character

pytestmark = pytest.mark.slow


def many(examples: int) -> settings:
    return settings(
        max_examples=examples, deadline=None, database=None, derandomize=False, suppress_health_check=list(HealthCheck)
    )


SPACED = r"( ) ( ) ( ) |x| |and| | ; : ! _ 0 1 007 -1 1.5 #x1 x b y $let1 \ ٣ é :status unknown () (check-sat) (assert Int Real"
WORDS = """and or not => xor ite = distinct < <= > >= + - * div mod let true false forall exists as par abs assert declare-fun
declare-const Bool define-fun check-sat set-info set-option echo push exit"""
TOKENS = (*SPACED.split(), *WORDS.split(), "\n", "\r", "\t", "\x00", "\u202e", '"', '"x"', "(let ((", "9" * 5_000)

QUERY = """(declare-fun x () Int)
(declare-fun |a b| () Bool)
(assert (let ((?x1 (+ x (- 5)))(?x2 (* x x))) (let (($x3 (and |a b| (> ?x1 0)))) (or $x3 (ite $x3 (= ?x1 ?x2) (< x 1))))))
(assert (not (distinct (div x 3) (mod x 7) 2)))
(check-sat)
"""

slices = st.tuples(st.integers(0, 1 << 20), st.integers(0, 40))


def mutated(text: str, changes: list[tuple[tuple[int, int], str]]) -> str:
    """The text with pieces replaced."""
    for (at, length), new in changes:
        at %= len(text) + 1
        text = text[:at] + new + text[at + length :]
    return text


@st.composite
def terms(draw: st.DrawFn, sort: str, depth: int, bound: tuple[tuple[str, str], ...] = ()) -> str:
    """Well-sorted terms with lets."""
    if depth == 0 or draw(st.booleans()):
        known = [name for name, of in (("x", "Int"), ("|y z|", "Int"), ("b", "Bool"), *bound) if of == sort]
        return draw(st.sampled_from([*known, *(["true", "false"] if sort == "Bool" else ["0", "12", "9" * 30])]))
    if draw(st.integers(0, 3)) == 0:
        of = draw(st.sampled_from(["Int", "Bool"]))
        name = f"v{len(bound)}_{depth}"
        value = draw(terms(of, depth - 1, bound))
        return f"(let (({name} {value})) {draw(terms(sort, depth - 1, (*bound, (name, of))))})"
    if draw(st.integers(0, 4)) == 0:
        parts = [draw(terms(of, depth - 1, bound)) for of in ("Bool", sort, sort)]
        return f"(ite {' '.join(parts)})"
    operators = {"Int": "+ - * div mod", "Bool": "and or => xor < <= > >= = distinct"}[sort].split()
    operator = draw(st.sampled_from(operators))
    of = "Bool" if operator in ("and", "or", "=>", "xor") else "Int"
    return f"({operator} {draw(terms(of, depth - 1, bound))} {draw(terms(of, depth - 1, bound))})"


class TestTheReaderOfSmtLib:
    @many(30_000)
    @given(st.lists(st.tuples(slices, st.sampled_from(TOKENS) | st.text(max_size=3)), min_size=1, max_size=4))
    def test_changed_texts(self, changes: list[tuple[tuple[int, int], str]]) -> None:
        self.check(mutated(QUERY, changes))

    @many(25_000)
    @given(st.lists(st.sampled_from(TOKENS), max_size=40), st.sampled_from(["", " ", "\n"]))
    def test_any_tokens(self, tokens: list[str], between: str) -> None:
        self.check(between.join(tokens))

    @many(20_000)
    @given(st.text(max_size=200) | st.text(alphabet="()|; \nxabdeltnosr-01:", max_size=200))
    def test_any_text(self, text: str) -> None:
        self.check(text)

    @many(5_000)
    @given(st.lists(terms("Bool", 5), max_size=3))
    def test_every_query_of_the_grammar(self, assertions: list[str]) -> None:
        declared = "(declare-fun x () Int)(declare-const |y z| Int)(declare-fun b () Bool)"
        text = read(declared + "".join(f"(assert {term})" for term in assertions) + "(check-sat)").text
        assert read(text).text == text

    def check(self, text: str) -> None:
        try:
            query = read(text)
        except SmtLibError as error:
            assert hidden_character(str(error), allowed="") is None and len(str(error)) < 300
            return
        assert read(query.text).text == query.text
        assert set(query.solver_text()) <= set(map(chr, range(32, 127))) | {"\n"}
        assert '"' not in query.solver_text()


VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**63,
        10**400,
        1.5,
        float("inf"),
        float("nan"),
        "",
        "x",
        "\x1b[2J",
        "\u202e",
        "\x00",
    ),
    *("\ud800", "PROVED", "REFUTED", "request-ordering", "x" * 10_000, "(assert false)(check-sat)", [], {}, [[]]),
    *({"": {}}, ["x"] * 1_000, {"name": "x"}, [{"name": None}], {"\x1b": 1}),
)


def changed(value: Any, path: list[int], new: Any) -> Any:
    """A JSON value with the part at a path replaced, or removed when the new one is `...`."""
    parts = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not path or not parts:
        return new
    key = parts[path[0] % len(parts)]
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(path) == 1 and new is ...:
        del copy[key]
    else:
        copy[key] = changed(value[key], path[1:], None if new is ... else new)
    return copy


@pytest.fixture(scope="module")
def certificate(contract: RequestOrdering) -> Certificate:
    """A real certificate with all its parts and few of each."""
    made = verify(Policy.from_source(contract.baselines()["fcfs"], contract))
    short = tuple(item.model_copy(update={"smtlib": QUERY}) for item in made.obligations)
    theorem = made.theorems[0].model_copy(update={"lemmas": made.theorems[0].lemmas[:1]})
    return made.model_copy(update={"obligations": short, "theorems": (theorem,)})


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one key."""
    folder = tmp_path_factory.mktemp("keys")
    new_key(folder, "fleet")
    return folder


class TestTheReaderOfCertificates:
    @many(30_000)
    @given(
        st.lists(
            st.tuples(
                st.lists(st.integers(0, 40), min_size=1, max_size=6),
                st.sampled_from(VALUES) | st.just(...) | st.text(max_size=5) | st.integers(),
            ),
            min_size=1,
            max_size=3,
        ),
        st.booleans(),
    )
    def test_changed_statements(
        self, certificate: Certificate, changes: list[tuple[list[int], Any]], inner: bool
    ) -> None:
        whole = json.loads(certificate.payload())
        said = whole["predicate"] if inner else whole
        for path, new in changes:
            said = changed(said, path, new)
        if inner and isinstance(said, dict) and isinstance(source := said.get("policy_source"), str):
            with suppress(UnicodeEncodeError):
                self.check(certificate, statement(source, "policy.py", said))
        self.check(certificate, json.dumps(said).encode())

    @many(15_000)
    @given(changes=st.lists(st.tuples(slices, st.binary(max_size=4)), min_size=1, max_size=3), sealed=st.booleans())
    def test_changed_bytes(
        self,
        certificate: Certificate,
        keys: Path,
        changes: list[tuple[tuple[int, int], bytes]],
        sealed: bool,
    ) -> None:
        data = sign(certificate, load_key(keys, "fleet")).to_bytes() if sealed else certificate.payload()
        text = mutated(data.decode("latin-1"), [(at, new.decode("latin-1")) for at, new in changes])
        envelope = self.check(certificate, text.encode("latin-1"))
        if envelope.signed:
            with suppress(AutopoiesisError):
                assert envelope.signed_by(trusted_keys(keys))
                assert envelope.payload == certificate.payload()

    @many(10_000)
    @given(st.binary(max_size=300))
    def test_any_bytes(self, certificate: Certificate, data: bytes) -> None:
        self.check(certificate, data)

    def check(self, certificate: Certificate, data: bytes) -> Envelope:
        envelope = envelope_of(data)
        try:
            predicate_of(envelope.payload)
            found = Certificate.of(envelope)
        except AutopoiesisError as error:
            assert hidden_character(str(error), allowed="") is None and len(str(error)) < 1_000
            return envelope
        payload = found.payload()
        again = Certificate.of(Envelope(payload, CERTIFICATE, {}))
        assert again.payload() == payload
        assert differences(again, found) == ()
        for line in differences(found, certificate):
            assert hidden_character(line, allowed="") is None and len(line) < 1_500
        return envelope
