"""A policy: a text that conforms to a contract, parsed once, addressed by its content, runnable as Python or machine code."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from .contract import Contract
from .errors import PolicyError
from .language import Module, Signature, parse
from .language.errors import invalid
from .language.interpreter import Fault, Rows, evaluate
from .language.python import compile_python, to_source
from .language.ranges import Ranges, analyse
from .protocol.files import MAX_POLICY_BYTES, FileProblem, FileRefusedError, read_bounded
from .view import View

if TYPE_CHECKING:
    from .language.native import NativeFunction
    from .language.scorer import Scorer

__all__ = ["DecisionFault", "Policy", "fault_on", "read_policy_text"]


def read_policy_text(path: str | Path) -> str:
    """Return the text of a policy file, whose lines may end as on any system.

    Raises:
        LanguageError: INVALID: the file is missing, unreadable, not regular or larger than a policy may be, or its content
            is not UTF-8 text.
    """
    try:
        data = read_bounded(path, MAX_POLICY_BYTES, follow_links=True)
    except FileRefusedError as refused:
        if refused.problem is FileProblem.TOO_LARGE:
            raise invalid(0, f"{path} is larger than the {MAX_POLICY_BYTES:,} bytes a policy may have") from None
        raise invalid(0, f"the policy cannot be read: {refused}") from None
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise invalid(0, f"{path} is not UTF-8 text") from None


@dataclass(frozen=True)
class DecisionFault:
    """Fault of a decision on certain values."""

    kind: Literal["division by zero", "int64 overflow", "out of range"]
    text: str


def fault_on(policy: "Policy", signature: Signature, rows: Sequence[Rows]) -> DecisionFault | None:
    """Return what goes wrong when a decision runs on rows in the order of the signature's parameters; None when nothing does."""
    try:
        result = evaluate(policy.module, signature.name, rows)
    except Fault as fault:
        return DecisionFault(fault.kind, str(fault))
    if result not in signature.result:
        text = f"`{signature.name}` returns {result:,}, outside {signature.result.describe()}"
        return DecisionFault("out of range", text)
    return None


def _checked(module: Module, signature: Signature, function: Callable[..., int]) -> Callable[..., int]:
    fields = [[spec.name for spec in module.views[param.type].fields()] for param in signature.params]

    def decide(*views: object) -> int:
        evaluate(
            module,
            signature.name,
            [{name: int(getattr(view, name)) for name in names} for view, names in zip(views, fields, strict=True)],
        )
        return function(*views)

    return decide


@dataclass(frozen=True, eq=False)
class Policy:
    """A parsed policy. Build it with `from_source` or `from_file`; equal digests mean equal behaviour under one contract."""

    source: str
    """The text as it was given."""
    contract: Contract
    module: Module

    @classmethod
    def from_source(cls, source: str, contract: Contract) -> Self:
        """Parse a text.

        Raises:
            LanguageError: it is not a policy of this contract; `verdict` tells INVALID from UNSUPPORTED.
        """
        return cls(source, contract, parse(source, contract.interface))

    @classmethod
    def from_file(cls, path: str | Path, contract: Contract) -> Self:
        """Read and parse a file; raises as `read_policy_text` and `from_source`."""
        return cls.from_source(read_policy_text(path), contract)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the normalised text (no comments, docstrings or layout) and of the contract."""
        text = to_source(self.module)
        return hashlib.sha256(f"{text}\x1f{self.contract.digest}".encode()).hexdigest()

    @cached_property
    def ranges(self) -> dict[str, Ranges]:
        """Results of interval analysis by decision, over the full domains of its views."""
        return {name: analyse(self.module, signature) for name, signature in self.contract.decisions.items()}

    @cached_property
    def settled(self) -> bool:
        """True if intervals alone show that no decision faults or leaves its range. Otherwise the proof decides."""
        return all(
            not found.open and domain.lo <= found.result.lo and found.result.hi <= domain.hi
            for name, found in self.ranges.items()
            for domain in (self.contract.decisions[name].result,)
        )

    @cached_property
    def functions(self) -> dict[str, Callable[..., int]]:
        """Functions as CPython runs them, by name; arguments are views (or objects with the same fields)."""
        return compile_python(self.module)

    def decision(self, name: str | None = None) -> Callable[..., int]:
        """Return a decision as a Python callable over views; the name may be left out when there is only one."""
        return self.functions[self._decision_name(name)]

    def __call__(self, *views: object) -> int:
        """Apply the only decision to views."""
        return self.decision()(*views)

    @cached_property
    def stand_in(self) -> Any:
        """Object to pass as `self` to the contract's own formulas: its parameters, and this policy's decisions.

        Unless intervals show that none faults or leaves its range, one that faults raises `Fault` before CPython reckons with
        numbers of any size.
        """
        return self.contract.stand_in(
            {
                name: self.functions[name] if self.settled else _checked(self.module, signature, self.functions[name])
                for name, signature in self.contract.decisions.items()
            }
        )

    def holds(self, invariant: str, **arguments: View | int) -> bool:
        """Return whether an invariant of the contract holds for this policy on given values, evaluated by CPython.

        Raises:
            KeyError: the contract has no such invariant.
            ArithmeticError: a decision raises on these values.
        """
        formula = {formula.name: formula for formula in self.contract.invariants}[invariant]
        return bool(formula.method(self.stand_in, **arguments))

    def fault(self, decision: str, **views: View) -> str | None:
        """Return the fault of a decision on given views: a zero divisor, an int64 overflow, a result out of its range.

        None when nothing does.
        """
        signature = self.contract.decisions[decision]
        rows = [
            dict(zip((spec.name for spec in type(view).fields()), view.row(), strict=True)) for view in views.values()
        ]
        found = fault_on(self, signature, rows)
        return None if found is None else found.text

    def native(self, decision: str | None = None, layout: Sequence[str] | None = None) -> "NativeFunction":
        """Return a decision as machine code over int64 scalars; see `language.native.compile_function` for `layout`.

        Run it only once the policy is certified, and only on values inside the view domains. It is compiled once.
        """
        from .language.native import compile_function

        key = (self._decision_name(decision), None if layout is None else tuple(layout))
        if key not in self._natives:
            self._natives[key] = compile_function(self.module, self.contract.decisions[key[0]], layout)
        return self._natives[key]

    @cached_property
    def _natives(self) -> "dict[tuple[str, tuple[str, ...] | None], NativeFunction]":
        """Machine code by decision and layout."""
        return {}

    def __getstate__(self) -> dict[str, Any]:
        """Return all but the machine code, which belongs to this process."""
        return {name: value for name, value in self.__dict__.items() if name != "_natives"}

    def scorer(self, decision: str | None = None) -> "Scorer":
        """Return a decision as a machine-code loop over int64 columns; see `language.scorer.Scorer`."""
        from .language.scorer import compile_scorer

        return compile_scorer(self.module, self.contract.decisions[self._decision_name(decision)])

    def _decision_name(self, name: str | None) -> str:
        names = list(self.contract.decisions)
        if name is None and len(names) == 1:
            return names[0]
        if name is None or name not in names:
            raise PolicyError(f"name a decision of {self.contract.contract_name}: {', '.join(names)}")
        return name
