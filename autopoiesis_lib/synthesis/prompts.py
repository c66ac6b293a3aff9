"""Prompts, rendered from the contract alone: a model receives exactly what the contract declares.

A model also receives aggregate statistics and policy text, but never the contents of requests.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..contract import Contract
from .proposer import Context, Parent, Slot

__all__ = ["messages", "versions"]

RULES = """\
- integers and booleans only: int literals, the view fields, local variables
- + - * // % and ** with a constant exponent; comparisons (chains too); and, or, not; min, max, abs
- if / elif / else, conditional expressions, assignments, early return, `for i in range(CONSTANT)`
- helper functions without recursion; enum members of the views
- every path returns; every local is assigned before it is read
- no imports but the views, no float, no `/`, no strings, lists, while, try, lambda, attribute writes, calls of anything else
- every intermediate must fit a signed 64-bit integer and no divisor may be 0, for EVERY value in the bounds below\
"""

_environment = Environment(
    loader=PackageLoader("autopoiesis_lib.synthesis"),
    undefined=StrictUndefined,
    keep_trailing_newline=True,
    autoescape=False,  # plain text
)


def messages(context: Context, slot: Slot) -> list[dict[str, str]]:
    """Return the chat messages for one slot: the contract as the system message, the task as the user message."""
    return _messages(context, slot)


def versions(context: Context, slot: Slot) -> list[list[dict[str, str]]]:
    """Return the prompt and shorter versions of it for models with a short context.

    The least useful parts are left out first. The shorter versions omit other candidates (explored, counterexamples,
    second parents), then the workload and the meaning of the fields. The last one omits the example policy if the
    parent can replace it. The verifier's requirements are never left out.
    """
    alone = replace(context, explored=(), counterexamples=())
    one = replace(slot, parents=slot.parents[:1])
    bare = replace(alone, workload={}, reference={})
    found = [_messages(context, slot), _messages(alone, one), _messages(bare, one, brief=True)]
    if one.parents and one.parents[0].gate is None:
        found.append(_messages(bare, one, brief=True, example=False))
    return found


def _messages(context: Context, slot: Slot, brief: bool = False, example: bool = True) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": _system(context.contract, brief, example)},
        {"role": "user", "content": _user(context, slot)},
    ]


def _system(contract: Contract, brief: bool, example: bool) -> str:
    decisions = [
        {
            "name": item.name,
            "params": ", ".join(f"{param.name}: {param.type}" for param in item.params),
            "result": "bool" if item.result.kind == "bool" else "int",
            "doc": item.doc,
            "range": item.result.describe(),
        }
        for item in contract.decisions.values()
    ]
    views = [
        {
            "name": name,
            "doc": " ".join((view.__doc__ or "").split()),
            "fields": [
                {"name": spec.name, "domain": spec.domain.describe(), "doc": "" if brief else spec.doc}
                for spec in view.fields()
            ],
        }
        for name, view in contract.views.items()
    ]
    doc = " ".join((type(contract).__doc__ or "").split())
    return _environment.get_template("system.j2").render(
        contract=contract,
        doc="" if brief else doc,
        decisions=decisions,
        views=views,
        rules=RULES,
        example=_example(contract) if example else "",
    )


def _user(context: Context, slot: Slot) -> str:
    return _environment.get_template("user.j2").render(
        workload=_flat(context.workload),
        objectives=context.objectives,
        reference=context.reference,
        best=context.best if context.best is not None and context.best.fitness is not None else None,
        explored=list(context.explored),
        parents=slot.parents,
        counterexamples=[example for example in context.counterexamples if not _of_parent(example, slot.parents)][-3:],
        values=_values,
        task=_task(slot.parents),
    )


def _task(parents: Sequence[Parent]) -> str:
    if not parents:
        return (
            "Write a policy that is likely to do better than the baseline, by an idea that is not among those explored."
        )
    if parents[0].gate is not None:
        return "Mend the rejected policy: keep its idea, and make what was refused hold for every input."
    if len(parents) > 1:
        return (
            "Write a policy that does better than all of these: combine what works, or change one thing for a reason."
        )
    return "Write a policy that does better than this one: change one thing for a reason."


def _example(contract: Contract) -> str:
    """Return a baseline that is not the default, if there is one, because it shows more of the language."""
    texts = list(contract.baselines().values())
    if not texts:
        return "(none yet)\n"
    return texts[2] if len(texts) > 2 else texts[-1]


def _values(example: Mapping[str, Any]) -> str:
    parts: list[str] = []
    for name, value in example["arguments"].items():
        shown = (
            ", ".join(f"{field}={number}" for field, number in value.items()) if isinstance(value, Mapping) else value
        )
        parts.append(f"{name}({shown})" if isinstance(value, Mapping) else f"{name}={shown}")
    return f"{'; '.join(parts)}: {example['explanation']}"


def _of_parent(example: Mapping[str, Any], parents: Sequence[Parent]) -> bool:
    return any(parent.counterexample == example for parent in parents)


def _flat(workload: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in workload.items() if name != "step_time"}
