"""The kinds of policies that compete with each other, on the probes of a real trace."""

import pytest
from autopoiesis_contracts.request_ordering import RequestOrdering

from autopoiesis_lib import Policy
from autopoiesis_lib.evolution import SimulationEvaluator
from autopoiesis_lib.evolution.fingerprint import Probes, behaviour
from autopoiesis_lib.simulation.trace import Trace
from autopoiesis_lib.simulation.workload import Workload, default_workload

CONTRACT = RequestOrdering()
HEADER = "from autopoiesis_contracts.request_ordering import Engine, Waiting\n\n\n"


@pytest.fixture(scope="module")
def probes() -> Probes:
    """Mooncake's requests share prefixes, and the longer a prompt, the more of it is cached."""
    default = default_workload()
    workload = Workload.of(Trace.shipped("mooncake"), default.calibration, engine=default.engine)
    return Probes.of(CONTRACT, "score", SimulationEvaluator.of(CONTRACT, workload).probes(CONTRACT, "score"))


def kind(probes: Probes, score: str) -> set[str]:
    text = f"{HEADER}def score(request: Waiting, engine: Engine) -> int:\n    return {score}\n"
    return set(behaviour(Policy.from_source(text, CONTRACT), [probes]).descriptor.split())


def test_who_reads_the_prompt_alone_is_of_another_kind_than_who_reads_its_uncached_part(probes: Probes) -> None:
    prompt = kind(probes, "request.waited_us - request.num_prompt_tokens * 2_000")
    uncached = kind(probes, "request.waited_us - (request.num_prompt_tokens - request.num_cached_tokens) * 2_000")
    assert prompt == {"+waited_us", "-num_prompt_tokens"}
    assert uncached == {"+waited_us", "-num_prompt_tokens", "+num_cached_tokens"}


def test_a_field_that_hardly_counts_does_not_make_a_kind(probes: Probes) -> None:
    plain = "request.waited_us - request.num_prompt_tokens * 2_000"
    assert kind(probes, f"{plain} + min(request.num_cached_tokens, 71) * 100") == kind(probes, plain)


def test_a_constant_is_a_kind_of_its_own(probes: Probes) -> None:
    assert kind(probes, "7") == {"constant"}
