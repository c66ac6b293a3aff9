"""The types gate: mypy is an opinion of its own, and nothing in a text can silence it."""

from collections.abc import Callable

import pytest
from autopoiesis_contracts.admission import Admission
from autopoiesis_contracts.request_ordering import RequestOrdering

from autopoiesis_lib.gates import types

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
