"""The same source, interpreted or compiled. Pure.

Kernels of the scheduler are plain functions over scalars and arrays. A small cell runs them as they are;
a large one asks for machine code, which Numba makes from the same source. Numba is optional (``scale``
extra) and slow to import, so it is looked for only when asked.
"""

from __future__ import annotations

import importlib
import importlib.util
import zlib
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


@cache
def can_compile() -> bool:
    """Return whether Numba is installed; does not import it."""
    return importlib.util.find_spec("numba") is not None


def compiled(function: F, wanted: bool = True) -> F:
    """Return the function as machine code if that is wanted and Numba is there, else the function itself.

    Functions that it calls, if they are written in ``tidecell`` and found as globals, are compiled with it.
    Machine code is kept on disk beside the source (or in Numba's own cache folder) for the next process.
    """
    if not wanted or not can_compile() or not isinstance(function, FunctionType):
        return function
    return cast(F, _twin(function))


@cache
def _twin(function: FunctionType) -> Any:
    """Return the compiled form of a function whose callees are compiled forms as well."""
    numba = importlib.import_module("numba")
    names = dict(function.__globals__)
    for name in function.__code__.co_names:
        value = names.get(name)
        if isinstance(value, FunctionType) and value.__module__.startswith("tidecell."):
            names[name] = _twin(value)
    twin = FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    # Numba looks whether this function's file has changed, not whether those of its callees have.
    twin.__qualname__ = f"{function.__qualname__}_{_digest(function):08x}"
    twin.__module__ = function.__module__
    return numba.njit(cache=True)(twin)


def _digest(function: FunctionType) -> int:
    """Return a number for what a kernel and those that it calls are made of."""
    code = function.__code__
    names = [function.__globals__.get(name) for name in code.co_names]
    callees = [v for v in names if isinstance(v, FunctionType) and v.__module__.startswith("tidecell.")]
    made_of = repr((code.co_code, code.co_consts, [n for n in names if isinstance(n, int | float)]))
    return zlib.crc32(made_of.encode(), sum(map(_digest, callees)) & 0xFFFFFFFF)
