"""The native semantics: a decision as machine code behind a C pointer, compiled by LLVM in a few milliseconds.

`compile_function` gives `int64 f(int64, ...)`, callable from Python, from C, and from a numba `@njit` kernel as a
first-class function. It equals the reference interpreter wherever that raises no `Fault`. Elsewhere it returns some
integer and never traps (see `llvm`). It checks nothing: call it on values inside the view domains, for a policy proved
SAFE.
"""

import ctypes
import weakref
from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import llvmlite.binding as llvm
from numba import types
from numba.core.types import WrapperAddressProtocol

from ..errors import PolicyError
from .ir import Module, Signature
from .llvm import DECLARATIONS, arguments_of, emit_functions, fields_read

__all__ = ["MachineCode", "NativeError", "NativeFunction", "compile_function", "default_layout"]


class NativeError(PolicyError):
    """A decision that cannot be compiled as requested: its layout misses a field it reads, or names an unknown one."""


class MachineCode:
    """A compiled LLVM module. It owns the executable memory, which is freed when this object is collected."""

    def __init__(self, assembly: str) -> None:
        target, cpu, features, header = _host()
        # A separate context releases the module's memory, and lets threads compile in parallel.
        context = llvm.create_context()
        module = llvm.parse_assembly(header + assembly, context)
        machine = target.create_target_machine(cpu=cpu, features=features, opt=2, jit=True)
        options = llvm.create_pipeline_tuning_options(speed_level=2)
        options.loop_vectorization = True
        options.loop_interleaving = False  # no faster at a thousand rows, and a seventh of the time to compile
        builder = llvm.create_pass_builder(machine, options)
        builder.getModulePassManager().run(module, builder)
        self._engine = llvm.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()
        # The garbage collector finalises a cycle in any order, and a context that is disposed before its engine crashes
        # the process. The finaliser holds both, and disposes of them in the only safe order.
        weakref.finalize(self, _dispose, self._engine, context).atexit = False

    def address(self, name: str) -> int:
        """Return the address of a function; it is valid while this object lives."""
        return cast(int, self._engine.get_function_address(name))


@cache
def _host() -> tuple[llvm.Target, str, str, str]:
    """Return the target of compilation: target, processor, its features, and the head of a module for it.

    The result is cached: each query releases the GIL, and beside a busy engine waits to take it again.
    """
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    cpu, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    machine = target.create_target_machine(cpu=cpu, features=features, jit=True)
    header = f'target triple = "{machine.triple}"\ntarget datalayout = "{machine.target_data}"\n'
    return target, cpu, features, header


def _dispose(engine: Any, context: Any) -> None:
    engine.close()
    context.close()


class NativeFunction(WrapperAddressProtocol):
    """A decision as `int64 f(int64, ...)`. Keep a reference while `address` may still be called."""

    def __init__(self, code: MachineCode, layout: tuple[str, ...]) -> None:
        self.code = code
        self.address: int = code.address("decision")
        """The C function's address."""
        self.layout = layout
        """Name of each argument, as `"<parameter>.<field>"`."""
        # PYFUNCTYPE keeps the GIL: releasing it would cost more than the call.
        self._call = ctypes.PYFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * len(layout))(self.address)

    def __call__(self, *values: int) -> int:
        """Return the decision for plain ints in the order of `layout`; ints outside int64 wrap, as in C."""
        return cast(int, self._call(*values))

    def __wrapper_address__(self) -> int:
        return self.address

    def signature(self) -> Any:
        """Return the numba signature, `int64(int64, ...)`."""
        return types.int64(*[types.int64] * len(self.layout))

    def __repr__(self) -> str:
        return f"<NativeFunction int64({', '.join(self.layout)})>"


def default_layout(module: Module, signature: Signature) -> tuple[str, ...]:
    """Return every field of every view in declared order, as `"<parameter>.<field>"` in the contract's names."""
    return tuple(
        param.name if field is None else f"{param.name}.{field}"
        for param, field in arguments_of(module, signature.params)
    )


def compile_function(module: Module, signature: Signature, layout: Sequence[str] | None = None) -> NativeFunction:
    """Compile a decision to machine code.

    `layout` names the arguments of the C function, in order, as `"<parameter>.<field>"` with the contract's parameter
    names (a scalar parameter by its name alone). None means `default_layout`. Fields that the policy does not read may
    be absent.

    Raises:
        NativeError: the layout names something unknown, names it twice, or misses a field the policy reads.
    """
    known = default_layout(module, signature)
    names = known if layout is None else tuple(layout)
    if unknown := [name for name in names if name not in known]:
        raise NativeError(f"`{signature.name}` has no `{unknown[0]}` to lay out; it has {', '.join(known)}")
    if len(set(names)) != len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise NativeError(f"the layout of `{signature.name}` names `{repeated}` twice; name each field once")
    read = {f"{signature.params[index].name}.{field}" for index, field in fields_read(module, signature.name)}
    read |= {param.name for param in signature.params if not param.is_view}
    if missing := sorted(read - set(names)):
        raise NativeError(f"`{signature.name}` reads `{missing[0]}`, which the layout leaves out; add it")
    position = {name: index for index, name in enumerate(names)}
    passed = ", ".join(f"i64 %{position[name]}" if name in position else "i64 0" for name in known)
    assembly = (
        f"{DECLARATIONS}\n{emit_functions(module, signature.name)}\n"
        f"define i64 @decision({', '.join(['i64'] * len(names))}) nounwind {{\n"
        f"  %result = call i64 @f.{signature.name}({passed})\n  ret i64 %result\n}}\n"
    )
    return NativeFunction(MachineCode(assembly), names)
