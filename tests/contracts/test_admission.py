"""Admission: baselines are proved, near misses are refuted with replaying counterexamples, theorems need their premises."""

from pathlib import Path

import pytest
from autopoiesis_contracts.admission import Admission, AnyBlocks, BlocksConserved, Memory, NoAdmissionDeadlock, Waiting

from autopoiesis_lib import Theorem, Verdict, contract_named, invariant, lemma
from autopoiesis_lib.gates import check
from autopoiesis_lib.gates.theorems import prove_theorem
from tests.contracts.cases import assert_refuted_and_replays, policy_text

BLOCKS = "def blocks(tokens: int) -> int:\n    return (tokens + 15) // 16\n\n\n"
NO_RESERVE = "\n\n\ndef reserve_blocks(request: Waiting) -> int:\n    return 0\n"
RESERVE_LONGEST = (
    "\n\n\ndef reserve_blocks(request: Waiting) -> int:\n"
    "    used = request.num_prompt_tokens + request.num_output_tokens\n"
    "    return blocks(request.num_prompt_tokens + request.max_tokens) - blocks(used)\n"
)
NEEDED = "    needed = blocks(request.num_prompt_tokens + request.num_output_tokens)\n"
ADMIT = "def admit(request: Waiting, memory: Memory) -> bool:\n"
IDLE = "    if memory.num_running == 0:\n        return needed <= memory.total_blocks\n"

VIOLATORS = {
    "floor instead of ceiling": (
        "def blocks(tokens: int) -> int:\n    return tokens // 16\n\n\n"
        + ADMIT + NEEDED + IDLE + "    return needed + memory.watermark_blocks <= memory.free_blocks" + NO_RESERVE,
        "never_overcommits",
    ),
    "output of a preempted request forgotten": (
        BLOCKS + ADMIT + "    needed = blocks(request.num_prompt_tokens)\n" + IDLE
        + "    return needed + memory.watermark_blocks <= memory.free_blocks" + NO_RESERVE,
        "never_overcommits",
    ),
    "cached tokens taken for free blocks": (
        BLOCKS + ADMIT
        + "    tokens = request.num_prompt_tokens + request.num_output_tokens - request.num_cached_tokens\n"
        + "    needed = blocks(tokens)\n" + IDLE
        + "    return needed + memory.watermark_blocks <= memory.free_blocks" + NO_RESERVE,
        "never_overcommits",
    ),
    "own reservation not counted": (
        BLOCKS + ADMIT + NEEDED + IDLE + "    return needed + memory.watermark_blocks <= memory.free_blocks" + RESERVE_LONGEST,
        "never_overcommits",
    ),
    "everything admitted": (ADMIT + "    return True" + NO_RESERVE, "never_overcommits"),
    "total mistaken for free": (
        BLOCKS + ADMIT + NEEDED + "    return needed + memory.watermark_blocks <= memory.total_blocks" + NO_RESERVE,
        "never_overcommits",
    ),
    "watermark ignored": (
        BLOCKS + ADMIT + NEEDED + IDLE + "    return needed <= memory.free_blocks" + NO_RESERVE,
        "keeps_watermark",
    ),
    "watermark one block short": (
        BLOCKS + ADMIT + NEEDED + IDLE
        + "    return needed + memory.watermark_blocks <= memory.free_blocks + min(1, memory.watermark_blocks)" + NO_RESERVE,
        "keeps_watermark",
    ),
    "watermark kept by an idle engine": (
        BLOCKS + ADMIT + NEEDED + "    return needed + memory.watermark_blocks <= memory.free_blocks" + NO_RESERVE,
        "fits_when_idle",
    ),
    "idle and one block short of all": (
        BLOCKS + ADMIT + NEEDED
        + "    if memory.num_running == 0:\n        return needed < memory.total_blocks\n"
        + "    return needed + memory.watermark_blocks <= memory.free_blocks" + NO_RESERVE,
        "fits_when_idle",
    ),
    "low priority never admitted": (
        BLOCKS + ADMIT + NEEDED + "    if request.priority == 0:\n        return False\n" + IDLE
        + "    return needed + memory.watermark_blocks <= memory.free_blocks" + NO_RESERVE,
        "fits_when_idle",
    ),
    "one block more reserved than can be used": (
        BLOCKS + ADMIT + NEEDED + IDLE
        + "    return needed + reserve_blocks(request) + memory.watermark_blocks <= memory.free_blocks"
        + "\n\n\ndef reserve_blocks(request: Waiting) -> int:\n"
        + "    return (request.max_tokens - request.num_output_tokens) // 16 + 1\n",
        "reserves_what_it_may_use",
    ),
    "a million blocks reserved": (
        BLOCKS + ADMIT + NEEDED + IDLE
        + "    return needed + 1_000_000 + memory.watermark_blocks <= memory.free_blocks"
        + "\n\n\ndef reserve_blocks(request: Waiting) -> int:\n    return 1_000_000\n",
        "reserves_what_it_may_use",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(Admission.baselines()))
def test_every_baseline_is_proved_by_the_whole_chain(name: str) -> None:
    report = check(Admission.baselines()[name], Admission())
    assert report.verdict is Verdict.PROVED, report.failed
    assert "watermark" in " ".join(report.claims)


@pytest.mark.parametrize("why", VIOLATORS)
def test_near_misses_are_refuted_with_replaying_counterexamples(why: str, tmp_path: Path) -> None:
    body, obligation = VIOLATORS[why]
    text = policy_text("autopoiesis_contracts.admission", "Memory, Waiting", body)
    assert_refuted_and_replays(text, Admission(), obligation, tmp_path)


def test_a_negative_reservation_leaves_its_range(tmp_path: Path) -> None:
    body = BLOCKS + ADMIT + NEEDED + IDLE + "    return needed + memory.watermark_blocks <= memory.free_blocks"
    body += "\n\n\ndef reserve_blocks(request: Waiting) -> int:\n    return -request.num_preemptions\n"
    text = policy_text("autopoiesis_contracts.admission", "Memory, Waiting", body)
    report = check(text, Admission())
    assert report.verdict is Verdict.REFUTED
    assert report.counterexample is not None
    assert "outside 0 to 16,777,216 blocks" in report.counterexample.explanation


@pytest.mark.parametrize(("block_size", "obligation"), [(8, "never_overcommits"), (128, "fits_when_idle")])
def test_a_policy_for_blocks_of_16_is_refuted_for_other_block_sizes(
    block_size: int, obligation: str, tmp_path: Path
) -> None:
    contract = Admission(block_size=block_size)
    assert_refuted_and_replays(Admission.baselines()["watermark"], contract, obligation, tmp_path)


def test_the_registered_contract_takes_the_block_size_as_a_parameter() -> None:
    contract = contract_named("admission", block_size=32)
    assert isinstance(contract, Admission) and contract.block_size == 32
    assert contract.digest != Admission().digest


@pytest.mark.parametrize("block_size", [1, 16, 4_096])
@pytest.mark.parametrize("theorem", Admission.theorems())
def test_every_lemma_is_discharged(theorem: type[Theorem], block_size: int) -> None:
    results = prove_theorem(Admission(block_size=block_size), theorem)
    assert {item.name: item.verdict for item in results} == {item.name: Verdict.PROVED for item in results}
    assert len(results) == 3


class FloorAdmission(Admission, name="floor-admission"):
    """Counts blocks by the floor."""

    @invariant
    def never_overcommits(self, request: Waiting, memory: Memory) -> bool:
        """Too weak: the last, partly filled block is not counted."""
        tokens = request.num_prompt_tokens + request.num_output_tokens
        return not self.admit(request, memory) or tokens // self.block_size <= memory.free_blocks

    @invariant
    def keeps_watermark(self, request: Waiting, memory: Memory) -> bool:
        """Too weak in the same way."""
        left = memory.free_blocks - self.reserve_blocks(request) - memory.watermark_blocks
        tokens = request.num_prompt_tokens + request.num_output_tokens
        return memory.num_running == 0 or not self.admit(request, memory) or tokens // self.block_size <= left


class UnreservedAdmission(Admission, name="unreserved-admission"):
    """Forgets the reservation, beside running requests too."""

    @invariant
    def never_overcommits(self, request: Waiting, memory: Memory) -> bool:
        """Too weak: the reservation is not counted."""
        tokens = request.num_prompt_tokens + request.num_output_tokens
        return not self.admit(request, memory) or tokens <= memory.free_blocks * self.block_size

    @invariant
    def keeps_watermark(self, request: Waiting, memory: Memory) -> bool:
        """Too weak in the same way."""
        left = memory.free_blocks - memory.watermark_blocks
        tokens = request.num_prompt_tokens + request.num_output_tokens
        return memory.num_running == 0 or not self.admit(request, memory) or tokens <= left * self.block_size


@pytest.mark.parametrize("contract", [FloorAdmission(), UnreservedAdmission()])
def test_conservation_does_not_follow_from_weaker_invariants(contract: Admission) -> None:
    verdicts = {item.name: item.verdict for item in prove_theorem(contract, BlocksConserved)}
    assert verdicts["BlocksConserved: consecution"] is Verdict.REFUTED
    watermark = {item.name: item.verdict for item in prove_theorem(contract, NoAdmissionDeadlock)}
    assert watermark["NoAdmissionDeadlock.watermark_survives"] is Verdict.REFUTED


class WatermarkedFit(Admission, name="watermarked-fit"):
    """FIT only beside the watermark."""

    @invariant
    def fits_when_idle(self, request: Waiting, memory: Memory) -> bool:
        """Too weak: what fits only without the watermark may be refused for ever."""
        left = memory.total_blocks - memory.watermark_blocks
        tokens = request.num_prompt_tokens + request.num_output_tokens
        return memory.num_running > 0 or tokens > left * self.block_size or self.admit(request, memory)


def test_an_idle_engine_that_keeps_the_watermark_can_deadlock() -> None:
    verdicts = {item.name: item.verdict for item in prove_theorem(WatermarkedFit(), NoAdmissionDeadlock)}
    assert verdicts["NoAdmissionDeadlock.idle_engine_admits"] is Verdict.REFUTED


class FreesTwice(BlocksConserved):
    """A kernel that gives shared blocks back once for each holder."""

    def step(
        self,
        s: BlocksConserved.State,
        t: BlocksConserved.State,
        request: Waiting,
        memory: Memory,
        blocks: AnyBlocks,
        spare: AnyBlocks,
    ) -> bool:
        """Ends one request and frees its shared blocks, which others still hold."""
        return (
            s.num_running > 1
            and 0 < blocks <= s.held
            and t.free == s.free + blocks
            and t.held == s.held
            and t.reserved == s.reserved
            and t.total == s.total
            and t.num_running == s.num_running - 1
        )


class LeaksAtTheEnd(BlocksConserved):
    """A kernel whose last running request keeps a block."""

    def step(
        self,
        s: BlocksConserved.State,
        t: BlocksConserved.State,
        request: Waiting,
        memory: Memory,
        blocks: AnyBlocks,
        spare: AnyBlocks,
    ) -> bool:
        """Ends the last request and gives back all but one block."""
        return (
            s.num_running == 1
            and s.held > 0
            and t.free == s.free + s.held - 1
            and t.held == 1
            and t.reserved == 0
            and t.total == s.total
            and t.num_running == 0
        )


@pytest.mark.parametrize("theorem", [FreesTwice, LeaksAtTheEnd])
def test_conservation_fails_for_a_kernel_that_miscounts(theorem: type[Theorem]) -> None:
    verdicts = {item.name.partition(": ")[2]: item.verdict for item in prove_theorem(Admission(), theorem)}
    assert verdicts["consecution"] is Verdict.REFUTED


class OneBlockMore(NoAdmissionDeadlock):
    """The kernel takes a block more when the tokens fill the last one exactly."""

    @lemma
    def watermark_survives(self, request: Waiting, memory: Memory, blocks: AnyBlocks) -> bool:
        """False with one block more than the ceiling."""
        tokens = request.num_prompt_tokens + request.num_output_tokens
        taken = (blocks - 1) * self.contract.block_size <= tokens
        admitted = taken and memory.num_running > 0 and self.policy.admit(request, memory)
        left = memory.free_blocks - blocks - self.policy.reserve_blocks(request)
        return not admitted or left >= memory.watermark_blocks


def test_a_kernel_that_takes_one_block_more_than_the_ceiling_breaks_the_watermark() -> None:
    verdicts = {item.name: item.verdict for item in prove_theorem(Admission(), OneBlockMore)}
    assert verdicts["OneBlockMore.watermark_survives"] is Verdict.REFUTED
