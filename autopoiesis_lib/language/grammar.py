"""Text to IR: the policy language is the small, total, integer part of Python. Everything else is refused by name.

A text that is no policy at all (syntax, missing function, wrong types) is INVALID. A text that uses Python that the
language omits is UNSUPPORTED. Both errors name the line, the problem and what to write instead; nothing is ever
skipped.
"""

import ast
import io
import tokenize
import warnings
from graphlib import CycleError, TopologicalSorter

from .. import units
from ..protocol.text import hidden_character, printable
from .cost import check_cost, check_depth
from .errors import LanguageError, invalid, unsupported
from .functions import SHADOWED, FunctionReader, Scope, annotation_name, fold_constant
from .ir import Call, Const, Function, Interface, Module, Param, Signature, walk

__all__ = ["MAX_SOURCE_BYTES", "parse", "parse_tree", "universal_newlines"]

MAX_SOURCE_BYTES = 65_536
"""Greatest size of a text; a longer one is refused before parsing."""

SCALAR_NAMES = frozenset({"int", *(name for name in units.__all__ if name not in ("Unit", "Flag"))})
BOOL_NAMES = frozenset({"bool", "Flag"})


def parse(text: str, interface: Interface) -> Module:
    """Return the module that a policy text denotes.

    Raises:
        LanguageError: the text is not a policy of this interface; its `verdict` is "INVALID" or "UNSUPPORTED".
    """
    tree = parse_tree(text)
    names = _top_level_functions(tree)
    for signature in interface.decisions.values():
        if signature.name not in names:
            if not tree.body:
                raise invalid(1, f"the text is empty; define {_header(signature)}")
            raise invalid(1, f"there is no function `{signature.name}`; define {_header(signature)}")
    reader = _ModuleReader(interface)
    reader.imports(tree)
    reader.signatures(tree)
    module = reader.functions(tree)
    check_depth(module, _callees_first(module), interface.decisions)
    for name in interface.decisions:
        check_cost(module, name, interface.max_operations)
    return module


def parse_tree(text: str) -> ast.Module:
    """Return the syntax tree of a text of acceptable size, with ASCII names.

    Raises:
        LanguageError: it is too large, not Python, nested too deeply, or has invisible characters or names that are not
            ASCII.
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_SOURCE_BYTES:
        raise invalid(1, f"the text has {size:,} bytes; a policy has at most {MAX_SOURCE_BYTES:,}")
    _refuse_hidden_characters(text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except SyntaxError as error:
        if "nested" in (error.msg or "") or "too complex" in (error.msg or ""):
            raise unsupported(error.lineno or 1, "nested too deeply", "flatten it into helper functions") from None
        raise invalid(error.lineno or 1, f"not Python: {error.msg}") from None
    except ValueError as error:
        raise invalid(1, f"not Python: {error}") from None
    except (RecursionError, MemoryError):
        raise unsupported(1, "nested too deeply", "flatten it into helper functions") from None
    if text.isascii():
        return tree
    for token in tokenize.generate_tokens(io.StringIO(universal_newlines(text)).readline):
        if token.type == tokenize.NAME and not token.string.isascii():
            raise unsupported(token.start[0], f"the name {token.string!a} is not ASCII", "use plain letters a-z")
    return tree


def _refuse_hidden_characters(text: str) -> None:
    """Refuse invisible characters, in strings and comments too: the text that people review is the text that runs.

    Raises:
        LanguageError: INVALID: a control, format or bidirectional character, a lone surrogate, or a carriage return
            that is not part of a line end with the newline after it.
    """
    lines = text.replace("\r\n", "\n")
    found = hidden_character(lines, allowed="\n\t")
    if found is not None:
        letter = lines[found]
        raise invalid(
            lines.count("\n", 0, found) + 1,
            f"the character {printable(letter)} (U+{ord(letter):04X}) cannot be seen by a reader; remove it",
        )


def universal_newlines(text: str) -> str:
    """Return the text with the line ends of Python's parser, which `tokenize` on a string does not apply."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _top_level_functions(tree: ast.Module) -> set[str]:
    return {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}


def _header(signature: Signature) -> str:
    params = ", ".join(f"{param.name}: {param.type}" for param in signature.params)
    return f"`def {signature.name}({params}) -> {'bool' if signature.result.kind == 'bool' else 'int'}`"


class _ModuleReader:
    """A reader of a policy's top level: imports, constants, then function signatures, then bodies."""

    def __init__(self, interface: Interface) -> None:
        self.interface = interface
        self.types: dict[str, str] = {"int": "int", "bool": "bool"}
        """Map from a name in an annotation to its type: "int", "bool" or a view's class name."""
        self.enums: dict[str, type] = {}
        self.constants: dict[str, Const] = {}
        self.headers: dict[str, tuple[tuple[Param, ...], bool]] = {}

    def imports(self, tree: ast.Module) -> None:
        """Register imported views, enums and units, and module-level constants; refuse any other statement."""
        for index, node in enumerate(tree.body):
            match node:
                case ast.FunctionDef():
                    continue
                case ast.Expr(value=ast.Constant(value=str())) if index == 0:
                    continue
                case ast.ImportFrom(module="__future__", names=[ast.alias(name="annotations")]):
                    continue
                case ast.ImportFrom():
                    self._import(node)
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    self._constant(name, value, node.lineno)
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value, annotation=annotation):
                    if annotation_name(annotation) not in SCALAR_NAMES | BOOL_NAMES:
                        raise unsupported(
                            node.lineno, "only int and bool constants may stand at the top level", "annotate it int"
                        )
                    self._constant(name, value, node.lineno)
                case ast.Import():
                    raise unsupported(node.lineno, f"`import {node.names[0].name}`", self._import_help())
                case ast.AsyncFunctionDef():
                    raise unsupported(node.lineno, "`async def`", "use `def`")
                case _:
                    raise unsupported(
                        node.lineno,
                        f"{_describe(node)} at the top level",
                        "write only imports of views, constants and functions",
                    )

    def signatures(self, tree: ast.Module) -> None:
        """Check all headers before any body, and those of the decisions first.

        Their errors are therefore reported first.
        """
        decisions = self.interface.decisions
        nodes = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        for node in sorted(nodes, key=lambda item: item.name not in decisions):
            if node.name in self.headers:
                raise unsupported(node.lineno, f"`{node.name}` is defined twice", "give each function its own name")
            if (
                node.name in RESERVED
                or node.name in self.types
                or node.name in self.enums
                or node.name in self.constants
            ):
                raise unsupported(node.lineno, f"the function `{node.name}` shadows another name", "rename it")
            if node.decorator_list:
                raise unsupported(node.lineno, f"the decorator on `{node.name}`", "remove it")
            signature = decisions.get(node.name)
            params = self._params(node, signature)
            self.headers[node.name] = (params, self._returns_bool(node, signature))

    def functions(self, tree: ast.Module) -> Module:
        """Read every function's body as IR."""
        functions: dict[str, Function] = {}
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef):
                continue
            params, returns_bool = self.headers[node.name]
            scope = Scope(
                views=self.interface.views,
                enums=self.enums,
                constants=self.constants,
                functions=self.headers,
                taken=frozenset(self.types)
                | frozenset(self.enums)
                | frozenset(self.constants)
                | frozenset(self.headers),
            )
            body = FunctionReader(node.name, params, returns_bool, scope).read(node)
            functions[node.name] = Function(
                node.name, params, body, returns_bool, ast.get_docstring(node) or "", line=node.lineno
            )
        return Module(functions, self.interface.views, self.enums)

    def _import(self, node: ast.ImportFrom) -> None:
        if node.level or node.module not in (*self.interface.modules, "autopoiesis_lib.units"):
            raise unsupported(
                node.lineno, f"`from {'.' * node.level}{node.module or ''} import ...`", self._import_help()
            )
        for alias in node.names:
            if alias.asname is not None and alias.asname != alias.name:
                raise unsupported(
                    node.lineno, f"`import {alias.name} as {alias.asname}`", "import it under its own name"
                )
            if node.module != "autopoiesis_lib.units" and alias.name in self.interface.views:
                self.types[alias.name] = alias.name
            elif node.module != "autopoiesis_lib.units" and alias.name in self.interface.enums:
                self.types[alias.name] = "int"
                self.enums[alias.name] = self.interface.enums[alias.name]
            elif alias.name in SCALAR_NAMES:
                self.types[alias.name] = "int"
            elif alias.name in BOOL_NAMES:
                self.types[alias.name] = "bool"
            else:
                raise unsupported(node.lineno, f"importing `{alias.name}`", self._import_help())

    def _import_help(self) -> str:
        names = ", ".join([*self.interface.views, *self.interface.enums])
        return f"import nothing but `from {self.interface.modules[0]} import {names}`"

    def _constant(self, name: str, value: ast.expr, line: int) -> None:
        if name in self.constants or name in self.types or name in self.enums or name in RESERVED:
            raise unsupported(line, f"`{name}` is bound twice at the top level", "give each constant its own name")
        scope = Scope(self.interface.views, self.enums, self.constants, {}, frozenset())
        self.constants[name] = fold_constant(value, scope, f"the constant `{name}`")

    def _params(self, node: ast.FunctionDef, signature: Signature | None) -> tuple[Param, ...]:
        arguments = node.args
        if arguments.vararg or arguments.kwarg or arguments.kwonlyargs or arguments.posonlyargs:
            raise self._header_error(node, signature, "takes only plain positional parameters")
        if arguments.defaults:
            raise self._header_error(node, signature, "has default values")
        if signature is not None and len(arguments.args) != len(signature.params):
            raise invalid(
                node.lineno,
                f"`{node.name}` takes {len(arguments.args)} parameters, not {len(signature.params)}; write {_header(signature)}",
            )
        params: list[Param] = []
        for index, argument in enumerate(arguments.args):
            wanted = signature.params[index].type if signature is not None else None
            if argument.annotation is None:
                raise invalid(
                    node.lineno,
                    f"the parameter `{argument.arg}` of `{node.name}` has no type; write `{argument.arg}: {wanted or 'int'}`",
                )
            named = annotation_name(argument.annotation)
            kind = self.types.get(named or "")
            if named == "float":
                raise unsupported(node.lineno, "`float`", "use int with a unit, such as microseconds or per mille")
            if kind is None and named in (*self.interface.views, *self.interface.enums, *SCALAR_NAMES, *BOOL_NAMES):
                raise invalid(
                    node.lineno, f"`{named}` is not imported; write `from {self.interface.modules[0]} import {named}`"
                )
            if kind is None or (wanted is not None and kind != wanted):
                raise invalid(
                    node.lineno,
                    f"the parameter `{argument.arg}` of `{node.name}` is {named or 'not a plain name'}; "
                    f"expected {wanted or 'a view, int or bool'}",
                )
            if argument.arg in RESERVED or argument.arg in self.types or argument.arg in self.constants:
                raise unsupported(node.lineno, f"the parameter `{argument.arg}` shadows another name", "rename it")
            if any(argument.arg == param.name for param in params):
                raise invalid(node.lineno, f"`{node.name}` has two parameters `{argument.arg}`; rename one")
            params.append(Param(argument.arg, kind))
        return tuple(params)

    def _returns_bool(self, node: ast.FunctionDef, signature: Signature | None) -> bool:
        named = annotation_name(node.returns) if node.returns is not None else None
        wanted = None if signature is None else ("bool" if signature.result.kind == "bool" else "int")
        if named == "float":
            raise unsupported(node.lineno, f"`{node.name}` returns float", "return int, in a finer unit if need be")
        kind = self.types.get(named or "")
        if kind is None and named in SCALAR_NAMES:
            raise invalid(node.lineno, f"`{named}` is not imported; write `-> int`")
        if kind not in ("int", "bool") or (wanted is not None and kind != wanted):
            said = (
                "has no return type"
                if node.returns is None
                else f"returns {named or 'something that is not a plain name'}"
            )
            raise invalid(node.lineno, f"`{node.name}` {said}; write `-> {wanted or 'int'}`")
        return kind == "bool"

    @staticmethod
    def _header_error(node: ast.FunctionDef, signature: Signature | None, what: str) -> LanguageError:
        if signature is not None:
            return invalid(node.lineno, f"`{node.name}` must be exactly {_header(signature)}")
        return unsupported(node.lineno, f"a helper that {what} (`{node.name}`)", "use plain positional parameters")


RESERVED = SHADOWED | {"True", "False", "None"}


def _describe(node: ast.stmt) -> str:
    return {
        "ClassDef": "a class",
        "If": "`if`",
        "For": "a loop",
        "While": "`while`",
        "With": "`with`",
        "Try": "`try`",
        "Expr": "an expression",
        "Assert": "`assert`",
        "Delete": "`del`",
        "AugAssign": "an augmented assignment",
        "Raise": "`raise`",
        "Global": "`global`",
    }.get(type(node).__name__, f"{type(node).__name__}")


def _callees_first(module: Module) -> tuple[str, ...]:
    """Return the names of the functions, each after those it calls.

    Raises:
        LanguageError: there is no such order, because a function calls itself.
    """
    callees = {
        name: dict.fromkeys(node.function for node in walk(function) if isinstance(node, Call))
        for name, function in module.functions.items()
    }
    try:
        return tuple(TopologicalSorter(callees).static_order())
    except CycleError as error:
        cycle = error.args[1][:0:-1]  # each calls the next, and the last one the first
        first = min(range(len(cycle)), key=lambda index: list(callees).index(cycle[index]))
        shown = [*cycle[first:], *cycle[: first + 1]]
        raise unsupported(
            module.functions[shown[0]].line, f"recursion ({' -> '.join(shown)})", "use a bounded `for i in range(N)`"
        ) from None
