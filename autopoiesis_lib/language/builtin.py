"""Machine code as a builtin function of Python: a call costs an eighth of a call through ctypes.

`entry` writes the wrapper that CPython calls (`METH_FASTCALL`). `builtin` makes a Python object of the wrapper, which
is compiled together with the function that it wraps. Only functions of the stable ABI are called. The GIL is kept,
because these calls take about a microsecond.
"""

import ctypes
from collections.abc import Callable
from functools import cache

from .native import MachineCode

__all__ = ["builtin", "entry"]

METH_FASTCALL = 0x0080
_PYTHON = ("PyErr_BadArgument", "PyErr_Occurred", "PyLong_AsLongLong", "PyLong_FromLongLong")
_TYPES = {"p": "ptr", "i": "i64"}

# A loop that is not unrolled (`optsize`): the caller usually runs it from memory, where short code is fast code. A word
# of -1 may also mean a failed conversion.
_ENTRY = """\
define ptr @py.{name}(ptr %self, ptr %arguments, i64 %count) nounwind optsize {{
entry:
  %words = alloca [{arity} x i64]
  %as.wanted = icmp eq i64 %count, {arity}
  br i1 %as.wanted, label %read, label %wrong
wrong:
  call i32 inttoptr (i64 {PyErr_BadArgument} to ptr)()
  br label %raise
read:
  %i = phi i64 [0, %entry], [%next, %good]
  %argument = getelementptr ptr, ptr %arguments, i64 %i
  %object = load ptr, ptr %argument
  %word = call i64 inttoptr (i64 {PyLong_AsLongLong} to ptr)(ptr %object)
  %minus.one = icmp eq i64 %word, -1
  br i1 %minus.one, label %check, label %good
check:
  %error = call ptr inttoptr (i64 {PyErr_Occurred} to ptr)()
  %none = icmp eq ptr %error, null
  br i1 %none, label %good, label %raise
good:
  %to = getelementptr i64, ptr %words, i64 %i
  store i64 %word, ptr %to
  %next = add nuw nsw i64 %i, 1
  %more = icmp ult i64 %next, {arity}
  br i1 %more, label %read, label %call
call:
{loads}
{call}
  %answer = call ptr inttoptr (i64 {PyLong_FromLongLong} to ptr)(i64 {result})
  ret ptr %answer
raise:
  ret ptr null
}}
"""


class _MethodDef(ctypes.Structure):
    """CPython's `PyMethodDef`."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


def entry(name: str, kinds: str, *, returns: bool = True) -> str:
    """Return the assembly of `@py.<name>`, to be compiled together with `@<name>`.

    Args:
        name: a function of the same module that takes 64-bit words.
        kinds: one letter per argument: `p` for an address, `i` for an integer.
        returns: true if it returns an i64; the builtin of a function that returns nothing returns 0.
    """
    loads = "\n".join(
        f"  %at.{i} = getelementptr i64, ptr %words, i64 {i}\n  %word.{i} = load {_TYPES[kind]}, ptr %at.{i}"
        for i, kind in enumerate(kinds)
    )
    passed = ", ".join(f"{_TYPES[kind]} %word.{i}" for i, kind in enumerate(kinds))
    return _ENTRY.format(
        name=name,
        arity=len(kinds),
        loads=loads,
        call=f"  %result = call i64 @{name}({passed})" if returns else f"  call void @{name}({passed})",
        result="%result" if returns else "0",
        **{function: _address(function) for function in _PYTHON},
    )


def builtin(code: MachineCode, name: str) -> Callable[..., int]:
    """Return the function `name` of a module that was compiled with its `entry`; it keeps the machine code alive.

    It takes Python ints. An int outside int64 raises `OverflowError`. A value of another type, or a wrong number of
    arguments, raises `TypeError`. Both happen before any machine code runs.
    """
    definition = _MethodDef(name.encode(), code.address(f"py.{name}"), METH_FASTCALL, None)
    new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)(
        ("PyCFunction_NewEx", ctypes.pythonapi)
    )
    # The definition must live as long as the function, which holds only its `self`.
    function: Callable[..., int] = new(ctypes.addressof(definition), (code, definition), None)
    return function


@cache
def _address(function: str) -> int:
    address = ctypes.cast(getattr(ctypes.pythonapi, function), ctypes.c_void_p).value
    assert address is not None
    return address
