"""The policy language: text to IR (`grammar`), and one module per pass: ranges, python, smt, native, columns."""

from .errors import LanguageError
from .grammar import MAX_SOURCE_BYTES, parse
from .ir import Interface, Module, Param, Signature

__all__ = ["MAX_SOURCE_BYTES", "Interface", "LanguageError", "Module", "Param", "Signature", "parse"]
