"""The native semantics as text: one IR function to one LLVM function over `i64`, booleans as 0 and 1.

Every emitted operation is total. Arithmetic wraps (no `nsw`), and a divisor is replaced by 1 before a division that
would trap. So no input can stop the process. Wherever the reference interpreter raises no `Fault`, both give the same
integer. A value that wraps, or a zero divisor (whose quotient and remainder are 0 here), is a `Fault` there.
"""

from collections.abc import Iterator, Sequence

from .ir import (
    Abs,
    Assign,
    Binary,
    Call,
    Compare,
    CompareOp,
    Cond,
    Const,
    Expr,
    Field,
    For,
    Function,
    If,
    Local,
    Logic,
    MinMax,
    Module,
    Negate,
    Not,
    Param,
    Return,
    Stmt,
    ToBool,
    ToInt,
    ViewRef,
    walk,
)

__all__ = ["DECLARATIONS", "arguments_of", "emit_functions", "fields_read", "reachable"]

DECLARATIONS = """\
declare i64 @llvm.smin.i64(i64, i64)
declare i64 @llvm.smax.i64(i64, i64)
declare i64 @llvm.abs.i64(i64, i1)
"""

INT64_MIN = -(2**63)

_PREDICATES: dict[CompareOp, str] = {"==": "eq", "!=": "ne", "<": "slt", "<=": "sle", ">": "sgt", ">=": "sge"}
_OPCODES = {"+": "add", "-": "sub", "*": "mul"}


def reachable(module: Module, function: str) -> tuple[str, ...]:
    """Return the functions that a decision may call, itself first."""
    found = [function]
    for name in found:
        calls = (node.function for node in walk(module.functions[name]) if isinstance(node, Call))
        found.extend(sorted({callee for callee in calls if callee in module.functions} - set(found)))
    return tuple(found)


def fields_read(module: Module, function: str) -> frozenset[tuple[int, str]]:
    """Return the view fields that a function and its helpers may read, as (position of the parameter, field)."""
    known: dict[str, frozenset[tuple[int, str]]] = {}

    def read(name: str) -> frozenset[tuple[int, str]]:
        if name in known:
            return known[name]
        body = module.functions[name]
        position = {param.name: index for index, param in enumerate(body.params)}
        found: set[tuple[int, str]] = set()
        for node in walk(body):
            if isinstance(node, Field):
                found.add((position[node.view], node.name))
            elif isinstance(node, Call):
                for index, field in read(node.function):
                    argument = node.arguments[index]
                    assert isinstance(argument, ViewRef)
                    found.add((position[argument.name], field))
        known[name] = frozenset(found)
        return known[name]

    return read(function)


def arguments_of(module: Module, params: Sequence[Param]) -> Iterator[tuple[Param, str | None]]:
    """Yield the `i64` arguments of a lowered function in order: each view's fields, each scalar (field None)."""
    for param in params:
        if param.is_view:
            for spec in module.views[param.type].fields():
                yield param, spec.name
        else:
            yield param, None


def emit_functions(module: Module, function: str) -> str:
    """Return the LLVM assembly of a decision and its helpers, each as `internal i64 @f.<name>(i64, ...)`."""
    return "\n".join(_Emitter(module, module.functions[name]).define() for name in reachable(module, function))


class _Emitter:
    """An emitter of one function. `lines` grows in program order; `block` is the current label, None after a return."""

    def __init__(self, module: Module, function: Function) -> None:
        self.module = module
        self.function = function
        self.lines: list[str] = []
        self.count = 0
        self.block: str | None = "entry"

    def define(self) -> str:
        params = [_argument(param.name, field) for param, field in arguments_of(self.module, self.function.params)]
        # Stack slots start at 0: an unassigned local, which the grammar refuses, must not be undefined behaviour here.
        slots = {node.name: "0" for node in walk(self.function) if isinstance(node, (Assign, For))}
        slots |= {param.name: _argument(param.name, None) for param in self.function.params if not param.is_view}
        for name, initial in slots.items():
            self.lines += [f"%v.{name} = alloca i64", f"store i64 {initial}, ptr %v.{name}"]
        self.statements(self.function.body)
        if self.block is not None:  # only unreachable code ends here: the grammar makes every path return
            self.lines.append("ret i64 0")
        header = ", ".join(f"i64 {param}" for param in params)
        body = "\n".join(self.lines)
        return f"define internal i64 @f.{self.function.name}({header}) nounwind {{\nentry:\n{body}\n}}\n"

    def statements(self, body: tuple[Stmt, ...]) -> None:
        for statement in body:
            if self.block is None:
                return
            match statement:
                case Assign(name, value):
                    self.lines.append(f"store i64 {self.value(value)}, ptr %v.{name}")
                case Return(value):
                    self.lines.append(f"ret i64 {self.value(value)}")
                    self.block = None
                case If():
                    self._if(statement)
                case For():
                    self._for(statement)

    def _if(self, statement: If) -> None:
        then, orelse, end = self._labels(3)
        self.lines.append(f"br i1 {self.truth(statement.test)}, label %{then}, label %{orelse}")
        falls_through = False
        for label, body in ((then, statement.then), (orelse, statement.orelse)):
            self._start(label)
            self.statements(body)
            if self.block is not None:
                self._jump(end)
                falls_through = True
        if falls_through:
            self._start(end)
        else:
            self.block = None

    def _for(self, statement: For) -> None:
        turns = len(statement.iterations)
        if turns == 0:
            return
        head, end = self._labels(2)
        counter = self._fresh()
        following = self._fresh()
        before = self.block
        self._jump(head)
        self._start(head)
        # A separate counter: the body may assign to the loop variable without changing the number of iterations.
        phi = len(self.lines)
        self.lines.append("")
        offset = self._emit(f"mul i64 {counter}, {statement.step}")
        self.lines.append(f"store i64 {self._emit(f'add i64 {statement.start}, {offset}')}, ptr %v.{statement.name}")
        self.statements(statement.body)
        incoming = f"[0, %{before}]"
        if self.block is None:
            self.lines[phi] = f"{counter} = phi i64 {incoming}"
            return  # the first iteration returned on every path
        self.lines.append(f"{following} = add i64 {counter}, 1")
        self.lines[phi] = f"{counter} = phi i64 {incoming}, [{following}, %{self.block}]"
        again = self._emit(f"icmp ult i64 {following}, {turns}")
        self.lines.append(f"br i1 {again}, label %{head}, label %{end}")
        self._start(end)

    def value(self, expression: Expr) -> str:
        """Return the operand that holds an expression's integer."""
        match expression:
            case Const(value):
                return str(value)
            case Local(name):
                return self._emit(f"load i64, ptr %v.{name}")
            case Field(view, name):
                return _argument(view, name)
            case Negate(operand):
                return self._emit(f"sub i64 0, {self.value(operand)}")
            case Abs(operand):
                return self._emit(f"call i64 @llvm.abs.i64(i64 {self.value(operand)}, i1 false)")
            case ToInt(operand):
                return self.value(operand)
            case Not() | ToBool() | Compare():
                return self._emit(f"zext i1 {self.truth(expression)} to i64")
            case Binary():
                return self._binary(expression)
            case Logic(op, operands):
                return self._lazy(op, operands)
            case Cond():
                return self._cond(expression)
            case MinMax(op, operands):
                best = self.value(operands[0])
                for operand in operands[1:]:
                    best = self._emit(f"call i64 @llvm.s{op}.i64(i64 {best}, i64 {self.value(operand)})")
                return best
            case Call(name, arguments):
                return self._call(name, arguments)

    def truth(self, expression: Expr) -> str:
        """Return the `i1` operand that holds the truth value of an expression."""
        match expression:
            case Not(operand):
                return self._emit(f"xor i1 {self.truth(operand)}, true")
            case ToBool(operand):
                return self.truth(operand)
            case Compare(ops, operands):
                return self._compare(ops, operands)
            case _:
                return self._emit(f"icmp ne i64 {self.value(expression)}, 0")

    def _binary(self, node: Binary) -> str:
        left = self.value(node.left)
        if node.op == "**":
            assert isinstance(node.right, Const)
            return self._power(left, node.right.value)
        right = self.value(node.right)
        if node.op in _OPCODES:
            return self._emit(f"{_OPCODES[node.op]} i64 {left}, {right}")
        return self._divide(left, right, node.op == "//")

    def _divide(self, left: str, right: str, quotient_wanted: bool) -> str:
        """Emit floor division or its remainder.

        `sdiv` rounds towards zero, so a remainder of the other sign is corrected.
        """
        is_zero = self._emit(f"icmp eq i64 {right}, 0")
        is_lowest = self._emit(f"icmp eq i64 {left}, {INT64_MIN}")
        is_minus_one = self._emit(f"icmp eq i64 {right}, -1")
        overflows = self._emit(f"and i1 {is_lowest}, {is_minus_one}")
        traps = self._emit(f"or i1 {is_zero}, {overflows}")
        divisor = self._emit(f"select i1 {traps}, i64 1, i64 {right}")
        remainder = self._emit(f"srem i64 {left}, {divisor}")
        is_inexact = self._emit(f"icmp ne i64 {remainder}, 0")
        signs = self._emit(f"xor i64 {remainder}, {divisor}")
        differ = self._emit(f"icmp slt i64 {signs}, 0")
        mend = self._emit(f"and i1 {is_inexact}, {differ}")
        if not quotient_wanted:
            return self._emit(f"add i64 {remainder}, {self._emit(f'select i1 {mend}, i64 {divisor}, i64 0')}")
        truncated = self._emit(f"sdiv i64 {left}, {divisor}")
        floored = self._emit(f"add i64 {truncated}, {self._emit(f'sext i1 {mend} to i64')}")
        return self._emit(f"select i1 {is_zero}, i64 0, i64 {floored}")

    def _power(self, base: str, exponent: int) -> str:
        """Emit square-and-multiply.

        Wrapping on the way is harmless, because the final value modulo 2**64 is the same.
        """
        result = "1"
        while exponent:
            if exponent & 1:
                result = self._emit(f"mul i64 {result}, {base}")
            exponent >>= 1
            if exponent:
                base = self._emit(f"mul i64 {base}, {base}")
        return result

    def _lazy(self, op: str, operands: Sequence[Expr]) -> str:
        (end,) = self._labels(1)
        incoming: list[str] = []
        for operand in operands[:-1]:
            value = self.value(operand)
            incoming.append(f"[{value}, %{self.block}]")
            test = self._emit(f"icmp ne i64 {value}, 0")
            (following,) = self._labels(1)
            yes, no = (following, end) if op == "and" else (end, following)
            self.lines.append(f"br i1 {test}, label %{yes}, label %{no}")
            self._start(following)
        last = self.value(operands[-1])
        incoming.append(f"[{last}, %{self.block}]")
        self._jump(end)
        self._start(end)
        return self._emit(f"phi i64 {', '.join(incoming)}")

    def _compare(self, ops: Sequence[CompareOp], operands: Sequence[Expr]) -> str:
        """Emit a chain of comparisons: each operand is computed once, and only while every earlier comparison holds."""
        left = self.value(operands[0])
        incoming: list[str] = []
        (end,) = self._labels(1)
        for index, (op, operand) in enumerate(zip(ops, operands[1:], strict=True)):
            right = self.value(operand)
            holds = self._emit(f"icmp {_PREDICATES[op]} i64 {left}, {right}")
            if len(ops) == 1:
                return holds
            if index == len(ops) - 1:
                incoming.append(f"[{holds}, %{self.block}]")
                self._jump(end)
            else:
                incoming.append(f"[false, %{self.block}]")
                (following,) = self._labels(1)
                self.lines.append(f"br i1 {holds}, label %{following}, label %{end}")
                self._start(following)
            left = right
        self._start(end)
        return self._emit(f"phi i1 {', '.join(incoming)}")

    def _cond(self, node: Cond) -> str:
        then, orelse, end = self._labels(3)
        self.lines.append(f"br i1 {self.truth(node.test)}, label %{then}, label %{orelse}")
        incoming: list[str] = []
        for label, branch in ((then, node.then), (orelse, node.orelse)):
            self._start(label)
            value = self.value(branch)
            incoming.append(f"[{value}, %{self.block}]")
            self._jump(end)
        self._start(end)
        return self._emit(f"phi i64 {', '.join(incoming)}")

    def _call(self, name: str, arguments: Sequence[Expr | ViewRef]) -> str:
        operands: list[str] = []
        for param, argument in zip(self.module.functions[name].params, arguments, strict=True):
            if isinstance(argument, ViewRef):
                operands += [_argument(argument.name, field) for _, field in arguments_of(self.module, (param,))]
            else:
                operands.append(self.value(argument))
        return self._emit(f"call i64 @f.{name}({', '.join(f'i64 {operand}' for operand in operands)})")

    def _emit(self, instruction: str) -> str:
        result = self._fresh()
        self.lines.append(f"{result} = {instruction}")
        return result

    def _fresh(self) -> str:
        self.count += 1
        return f"%t{self.count}"

    def _labels(self, number: int) -> list[str]:
        self.count += 1
        return [f"b{self.count}.{index}" for index in range(number)]

    def _start(self, label: str) -> None:
        self.lines.append(f"{label}:")
        self.block = label

    def _jump(self, label: str) -> None:
        self.lines.append(f"br label %{label}")


def _argument(param: str, field: str | None) -> str:
    return f"%a.{param}" if field is None else f"%a.{param}.{field}"
