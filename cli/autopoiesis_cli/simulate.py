"""`autopoiesis simulate`: replay a trace with policies, and compare them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from autopoiesis_cli.answer import Answer, Json, answering
from autopoiesis_cli.options import ContractArgument, SettingsOption, contract_from
from autopoiesis_cli.workloads import CalibrationOption, RateOption, TraceOption, read_engine, read_trace, scaling

if TYPE_CHECKING:
    from autopoiesis_lib import Contract, Policy
    from autopoiesis_lib.simulation import SimulationResult

__all__ = ["simulate"]

_MEASURES: tuple[Literal["ttft", "e2e"], ...] = ("ttft", "e2e")
_STATISTICS: tuple[Literal["mean", "p99"], ...] = ("mean", "p99")


@answering
def simulate(
    contract: ContractArgument,
    trace: TraceOption,
    policy: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="A policy file. May be repeated.")] = None,
    baselines: Annotated[bool, typer.Option("--baselines", help="Also every baseline of the contract.")] = False,
    replicas: Annotated[int, typer.Option(min=1, max=1_024, help="Engines behind a least-loaded router.")] = 1,
    calibration: CalibrationOption = None,
    rate: RateOption = "1",
    plots: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write plots of latency and queue there (needs the extra `plots`)."),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write every request's times there, a CSV file a policy.")
    ] = None,
    settings: SettingsOption = None,
    json: Json = False,
) -> Answer:
    """Replay a trace through a model of the engine and compare policies with the contract's default."""
    from autopoiesis_cli.rendering.simulation import render_runs
    from autopoiesis_lib.simulation import Fleet, Slo, comparison_rows
    from autopoiesis_lib.simulation import simulate as replay

    chosen = contract_from(contract, settings)
    policies = _policies(chosen, policy or [], baselines)
    model, engine = read_engine(calibration)
    parts = [read_trace(text) for text in trace]
    joined = parts[0].spliced(*parts[1:]) if len(parts) > 1 else parts[0]
    factor = scaling(rate, joined, model, engine)
    requests = joined.scaled(factor)
    slo = Slo(ttft_s=2.0, tpot_s=0.1)
    runs: dict[str, SimulationResult] = {
        name: replay(
            requests,
            engine,
            model.step_time,
            _slots(chosen, item),
            fleet=Fleet(replicas=replicas, min_replicas=1),
            step_log=plots is not None,
        )
        for name, item in policies.items()
    }
    _write(runs, plots, csv)
    default = next(iter(runs))
    comparisons = {name: _compare(runs[default], run) for name, run in runs.items() if name != default}
    workload: dict[str, Any] = {
        "trace": joined.name,
        "requests": len(joined),
        "rate_factor": factor,
        "rate_rps": requests.rate,
        "calibration": model.name,
        "engine": engine.model_dump(mode="json"),
        "replicas": replicas,
        "slo": {"ttft_s": slo.ttft_s, "tpot_s": slo.tpot_s},
    }
    return Answer(
        document={
            "contract": {"name": chosen.contract_name, "digest": chosen.digest},
            "workload": workload,
            "baseline": default,
            "results": {
                name: {"digest": policies[name].digest, **run.summary(slo), "comparison": comparisons.get(name)}
                for name, run in runs.items()
            },
        },
        shown=render_runs(workload, comparison_rows(runs, default, slo), comparisons, default),
    )


def _write(runs: "dict[str, SimulationResult]", plots: Path | None, csv: Path | None) -> None:
    """Write plots and per-request times, if they were requested."""
    if csv is not None:
        csv.mkdir(parents=True, exist_ok=True)
        for name, run in runs.items():
            run.to_csv(csv / f"{name}.csv")
    if plots is not None:
        from autopoiesis_lib.simulation.plots import latency_cdf, queue_over_time

        plots.mkdir(parents=True, exist_ok=True)
        latency_cdf(runs, plots / "latency.png")
        queue_over_time(runs, plots / "queue.png")


def _policies(contract: "Contract", files: list[Path], baselines: bool) -> "dict[str, Policy]":
    """Return a map from a name to its policy, the contract's default first."""
    from autopoiesis_lib import Policy
    from autopoiesis_lib.errors import PolicyError

    texts = list(contract.baselines().items())
    found = {name: Policy.from_source(text, contract) for name, text in (texts if baselines else texts[:1])}
    for file in files:
        name = file.stem if file.stem not in found else str(file)
        try:
            found[name] = Policy.from_file(file, contract)
        except PolicyError as error:
            raise PolicyError(str(error) if str(file) in str(error) else f"{file}: {error}") from None
    if not found:
        raise PolicyError(f"{contract.contract_name} has no baselines: give a policy with --policy FILE")
    return found


def _slots(contract: "Contract", policy: "Policy") -> dict[str, Any]:
    from autopoiesis_lib.errors import PolicyError
    from autopoiesis_lib.simulation import LAYOUTS

    if not contract.slots:
        raise PolicyError(f"no simulator slot runs {contract.contract_name}; it cannot be simulated")
    return {slot: policy.native(decision, LAYOUTS[slot]) for decision, slot in contract.slots.items()}


def _compare(default: "SimulationResult", run: "SimulationResult") -> dict[str, dict[str, Any]]:
    from autopoiesis_lib.simulation import compare

    return {
        f"{measure}_{statistic}": compare(default, run, measure, statistic).to_dict()
        for measure in _MEASURES
        for statistic in _STATISTICS
    }
