"""The types gate: mypy is an opinion of its own, and nothing in a text can silence it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from autopoiesis_contracts.admission import Admission
from autopoiesis_contracts.request_ordering import RequestOrdering

from autopoiesis_lib import Policy
from autopoiesis_lib.gates import types
from autopoiesis_lib.language.python import to_source
from autopoiesis_lib.synthesis.search import fresh_module

Text = Callable[[str], str]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("    x: int = 'a'\n    return x\n", "line 5: Incompatible types in assignment"),
        ("    return request.foo\n", 'line 5: "Waiting" has no attribute "foo"'),
        ("    request.waited_us = 3\n    return 1\n", 'line 5: Property "waited_us"'),
        ("    return engine\n", "line 5: Incompatible return value type"),
    ],
)
@pytest.mark.parametrize("comment", ["", "# type: ignore\n", "# mypy: ignore-errors\n"])
def test_mypy_sees_type_errors_whatever_the_comments_say(
    contract: RequestOrdering, ordering: Text, body: str, said: str, comment: str
) -> None:
    text = ordering(body) if not comment else ordering(body).replace("\n", f"  {comment}", 1)
    errors = types.type_errors(text, contract)
    assert errors and errors[0].startswith(said)


@pytest.mark.parametrize("docstring", ["a\x0cb", "a\u2028b", "a\x85b", "a\rb"])
def test_comments_are_found_after_characters_that_only_look_like_the_end_of_a_line(
    contract: RequestOrdering, ordering: Text, docstring: str
) -> None:
    innocent = ordering(f'    """{docstring}"""\n    x = 1 + 1 + 1\n    y = 2  # ok\n    return x + y\n')
    assert types.type_errors(innocent, contract) == []
    wrong = ordering(f'    """{docstring}"""\n    return request.foo  # type: ignore\n# mypy: ignore-errors\n')
    assert "has no attribute" in types.type_errors(wrong, contract)[0]


def test_mypy_checks_that_decisions_conform_to_the_contract(contract: RequestOrdering) -> None:
    text = contract.baselines()["fcfs"].replace("engine: Engine", "engine: Waiting")
    assert "Incompatible types in assignment" in types.type_errors(text, contract)[0]


def test_a_good_policy_after_a_bad_one_is_clean(contract: RequestOrdering, ordering: Text) -> None:
    assert types.type_errors(ordering("request.foo"), contract)
    assert types.type_errors(contract.baselines()["fcfs"], contract) == []


def test_policies_of_several_contracts_are_checked_by_turns(contract: RequestOrdering) -> None:
    """Two mypy servers in one process once broke each other: an AssertionError deep inside mypy."""
    admission = Admission()
    for _ in range(3):
        for each in (contract, admission):
            for text in each.baselines().values():
                assert types.type_errors(text, each) == []
        assert types.type_errors(contract.baselines()["fcfs"].replace("waited_us", "foo"), contract)


def test_texts_that_differ_in_large_constants_alone_share_a_verdict_and_no_others_do(
    contract: RequestOrdering, ordering: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = types.type_errors
    monkeypatch.setattr(types, "type_errors", lambda text, of: [asked.append(text), real(text, of)][1])
    monkeypatch.setattr(types, "_passed", {})

    def went_to_mypy(expression: str) -> bool:
        before = len(asked)
        assert types.check_alike(Policy.from_source(ordering(expression), contract)).verdict.green
        return len(asked) > before

    assert went_to_mypy("request.waited_us - request.priority * 1_000")
    assert not went_to_mypy("request.waited_us - request.priority * 77")
    assert went_to_mypy("request.waited_us - request.priority * 1")
    assert went_to_mypy("request.waited_us - request.priority * 0_0")
    assert went_to_mypy("request.waited_us - request.num_output_tokens * 77")
    assert went_to_mypy("request.priority  # " + "9" * 5_000)  # more digits than `int` takes
    assert went_to_mypy("request.priority ** 2")
    assert went_to_mypy("request.priority ** 3")


def test_a_shape_that_mypy_refused_is_asked_again(
    contract: RequestOrdering, ordering: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(types, "_passed", {})
    good = Policy.from_source(ordering("request.waited_us * 7"), contract)
    with monkeypatch.context() as broken:
        broken.setattr(types, "type_errors", lambda text, of: ["line 1: no"])
        assert not types.check_alike(good).verdict.green
    assert types.check_alike(good).verdict.green


def test_sharing_never_answers_otherwise_than_mypy(contract: RequestOrdering) -> None:
    draw = Random(7)
    for _ in range(60):
        text = to_source(fresh_module(contract, draw), contract.interface)
        policy = Policy.from_source(text, contract)
        assert types.check_alike(policy).verdict is types.check(policy).verdict


@pytest.mark.slow
def test_what_mypy_wrote_goes_with_the_process_that_was_killed_and_not_with_one_that_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers are killed when their run is over: every run left two folders in /tmp."""
    check = (
        "import sys, time\n"
        "from autopoiesis_contracts.request_ordering import RequestOrdering\n"
        "from autopoiesis_lib.gates import types\n"
        "contract = RequestOrdering()\n"
        "assert types.type_errors(contract.baselines()['fcfs'], contract) == []\n"
        "print(types._server()._folder.path, flush=True)\n"
        "if sys.argv[1:]: time.sleep(600)\n"
    )
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    foreign = tmp_path / f"{types._Folder.PREFIX}without-a-lock"
    foreign.mkdir()

    def living() -> tuple["subprocess.Popen[str]", Path]:
        process = subprocess.Popen([sys.executable, "-c", check, "stay"], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    killed, left = living()
    alive, kept = living()
    try:
        killed.kill()
        killed.communicate()
        assert left.is_dir()
        done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
        assert not left.exists() and not Path(done.stdout.strip()).exists()
        assert sorted(tmp_path.iterdir()) == sorted((foreign, kept))
    finally:
        alive.kill()
        alive.communicate()
