"""Function bodies to IR: statements and expressions, with checks of definite assignment, types and returns."""

import ast

from .errors import invalid, unsupported
from .expressions import ExpressionReader, Scope, annotation_name
from .ir import (
    Assign,
    Const,
    Expr,
    For,
    If,
    Return,
    Stmt,
    ToInt,
)

__all__ = ["FunctionReader", "Scope", "annotation_name", "fold_constant"]

SHADOWED = frozenset({"min", "max", "abs", "range", "int", "bool", "self", "__debug__"})
"""Names with a meaning in the language, and the one plain name to which CPython assigns nothing."""

MAX_ITERATIONS = 4_096
"""Greatest number of iterations of one loop; the operation count bounds nested loops."""

MAX_LOOPS = 20
"""Greatest nesting depth of loops: CPython compiles no more."""


def fold_constant(value: ast.expr, scope: Scope, what: str) -> Const:
    """Return the value of a constant expression.

    Raises:
        LanguageError: it reads something that is not constant, fails, or leaves int64.
    """
    from .interpreter import Fault, evaluate_constant

    expression = ExpressionReader("<constant>", (), False, scope).expression(value)
    try:
        number = evaluate_constant(expression)
    except Fault as fault:
        raise invalid(value.lineno, f"{what} cannot be computed: {fault}") from None
    except LookupError:
        raise unsupported(
            value.lineno, f"{what} is not constant and so", "use integer literals and other constants"
        ) from None
    return Const(int(number), expression.is_bool, line=value.lineno)


class FunctionReader(ExpressionReader):
    """A reader of one function: `read` is the entry."""

    loops = 0
    """Number of loops around the current point."""

    def read(self, node: ast.FunctionDef) -> tuple[Stmt, ...]:
        """Read the body of the function.

        Raises:
            LanguageError: the body is not in the language; see `parse`.
        """
        statements = node.body
        if ast.get_docstring(node) is not None:
            statements = statements[1:]
        body, ends = self.block(statements)
        if not ends:
            raise invalid(node.lineno, f"`{self.name}` may end without returning a value; return on every path")
        return body

    def block(self, statements: list[ast.stmt]) -> tuple[tuple[Stmt, ...], bool]:
        """Read the statements; return them, and true if control certainly returns before their end."""
        self._enter(statements[0] if statements else None)
        body: list[Stmt] = []
        ends = False
        for statement in statements:
            read, returned = self.statement(statement)
            if read is not None:
                body.append(read)
            ends = ends or returned
        self.depth -= 1
        return tuple(body), ends

    def statement(self, node: ast.stmt) -> tuple[Stmt | None, bool]:
        """Read one statement; return it, and true if control certainly returns in it."""
        match node:
            case ast.Pass():
                return None, False
            case ast.Return(value=value):
                return self._return(node, value), True
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                return self._assign(name, self.expression(value), node.lineno), False
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=ast.expr() as value):
                return self._annotated(name, annotation, value, node.lineno), False
            case ast.AugAssign(target=ast.Name(id=name), op=operator, value=value):
                left = self._name(name, node.lineno)
                right = self.expression(value)
                return self._assign(name, self._binary(operator, left, right, node), node.lineno), False
            case ast.If():
                return self._if(node)
            case ast.For():
                return self._for(node), False
            case ast.Assign(targets=[ast.Attribute()]) | ast.AugAssign(target=ast.Attribute()):
                raise unsupported(node.lineno, "writing to an attribute", "views are frozen; use a local variable")
            case ast.Assign() | ast.AugAssign() | ast.AnnAssign():
                raise unsupported(node.lineno, "this form of assignment", "assign one expression to one name")
            case ast.Expr(value=ast.Call(func=ast.Name(id=name))):
                raise unsupported(node.lineno, f"calling `{name}` for its effect", "a policy only computes and returns")
            case ast.Expr():
                self.expression(node.value)
                raise unsupported(node.lineno, "an expression whose value is dropped", "remove it")
            case _:
                self._refuse(node)

    def _return(self, node: ast.Return, value: ast.expr | None) -> Return:
        wanted = "bool" if self.returns_bool else "int"
        match value:
            case None:
                raise invalid(node.lineno, f"`{self.name}` returns nothing; return {wanted}")
            case ast.Constant(value=(str() | bytes() | None) as constant):
                raise invalid(node.lineno, f"`{self.name}` returns {type(constant).__name__}, not {wanted}")
            case ast.JoinedStr() | ast.Tuple() | ast.List() | ast.Dict() | ast.Set():
                raise invalid(node.lineno, f"`{self.name}` returns a {type(value).__name__.lower()}, not {wanted}")
        read = self.expression(value)
        if self.returns_bool and not read.is_bool:
            raise invalid(node.lineno, f"`{self.name}` returns int, not bool; compare it, such as `x > 0`")
        return Return(read, line=node.lineno)

    def _annotated(self, name: str, annotation: ast.expr, value: ast.expr, line: int) -> Stmt:
        named = annotation_name(annotation)
        read = self.expression(value)
        if named == "bool":
            if not read.is_bool:
                raise invalid(line, f"`{name}` is declared bool but gets an int")
            return self._assign(name, read, line)
        if named == "int" or (
            named in self.scope.taken and named not in self.scope.views and named not in self.scope.functions
        ):
            return self._assign(name, ToInt(read, line=line) if read.is_bool else read, line)
        raise unsupported(line, f"a local of type {named or 'this kind'}", "use int or bool")

    def _assign(self, name: str, value: Expr, line: int) -> Assign:
        if name in self.views:
            raise unsupported(line, f"assigning to the view `{name}`", "use a new name")
        if name in self.scope.taken or name in SHADOWED:
            raise unsupported(line, f"the local `{name}` shadows another name", "rename it")
        is_bool = self.locals.setdefault(name, value.is_bool)
        if is_bool and not value.is_bool:
            raise invalid(line, f"`{name}` is a bool above and gets an int here; use two names")
        if not is_bool and value.is_bool:
            value = ToInt(value, line=line)
        self.assigned.add(name)
        return Assign(name, value, line=line)

    def _if(self, node: ast.If) -> tuple[Stmt, bool]:
        test = self.expression(node.test)
        before = set(self.assigned)
        then, then_ends = self.block(node.body)
        after_then, self.assigned = self.assigned, set(before)
        orelse, else_ends = self.block(node.orelse)
        if then_ends and not else_ends:
            pass
        elif else_ends and not then_ends:
            self.assigned = after_then
        elif then_ends and else_ends:
            self.assigned |= after_then
        else:
            self.assigned &= after_then
        return If(test, then, orelse, line=node.lineno), then_ends and else_ends

    def _for(self, node: ast.For) -> For:
        if node.orelse:
            raise unsupported(node.lineno, "`else` on a loop", "write the code after the loop")
        if not isinstance(node.target, ast.Name):
            raise unsupported(node.lineno, "a loop over several names", "use one loop variable")
        match node.iter:
            case ast.Call(func=ast.Name(id="range"), args=arguments, keywords=[]) if 1 <= len(arguments) <= 3:
                names = (item.id for argument in arguments for item in ast.walk(argument) if isinstance(item, ast.Name))
                if any(name in self.views or name in self.locals for name in names):
                    raise unsupported(
                        node.lineno,
                        "a loop whose bounds are not constant",
                        "use `range(N)` with a constant N, and `if` inside",
                    )
                bounds = [fold_constant(argument, self.scope, "a bound of `range`").value for argument in arguments]
            case _:
                raise unsupported(
                    node.lineno, "a loop over anything but `range(...)` of constants", "use `for i in range(N)`"
                )
        start, stop, step = (
            (0, bounds[0], 1) if len(bounds) == 1 else (bounds[0], bounds[1], bounds[2] if len(bounds) == 3 else 1)
        )
        if step == 0:
            raise invalid(node.lineno, "the step of `range` is 0")
        if len_range(start, stop, step) > MAX_ITERATIONS:
            raise unsupported(
                node.lineno,
                f"a loop of {len_range(start, stop, step):,} turns",
                f"loop at most {MAX_ITERATIONS:,} times",
            )
        if self.loops == MAX_LOOPS:
            raise unsupported(
                node.lineno, f"more than {MAX_LOOPS} loops in one another", "move the inner ones to a helper"
            )
        self._assign(node.target.id, Const(start, line=node.lineno), node.lineno)
        loop_runs = len_range(start, stop, step) > 0
        before = self.assigned - {node.target.id} if not loop_runs else set(self.assigned)
        self.loops += 1
        body, ends = self.block(node.body)
        self.loops -= 1
        if not loop_runs or ends:
            self.assigned = before
        return For(node.target.id, start, stop, step, body, line=node.lineno)


def len_range(start: int, stop: int, step: int) -> int:
    """Return the number of iterations of `range(start, stop, step)`, without the limit of `len`."""
    return max(0, (stop - start + step - (1 if step > 0 else -1)) // step)
