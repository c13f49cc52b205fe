"""The same source, interpreted or compiled. Pure.

Kernels of the scheduler are plain functions over scalars and arrays. A small cell runs them as they are;
a large one asks for machine code, which Numba makes from the same source. Numba is optional (``scale``
extra) and slow to import, so it is looked for only when asked.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from functools import cache
from types import CodeType, FunctionType
from typing import Any, TypeVar, cast

COMPILE_FROM = 512  # rows; below it importing a compiler costs more than it saves

F = TypeVar("F", bound=Callable[..., Any])


@cache
def can_compile() -> bool:
    """Return whether Numba is installed; does not import it."""
    return importlib.util.find_spec("numba") is not None


def compiled(function: F, wanted: bool = True) -> F:
    """Return the function as machine code if that is wanted and Numba is there, else the function itself.

    Functions that it calls, if they are written in ``tidecell`` and found as globals, are compiled with it.
    Machine code is kept on disk for the next process, where Numba keeps it: in ``NUMBA_CACHE_DIR``, else
    beside the source, else, if that is read-only, in the user's cache folder.
    """
    if not wanted or not can_compile() or not isinstance(function, FunctionType):
        return function
    return cast(F, _twin(function))


@cache
def _twin(function: FunctionType) -> Any:
    """Return the compiled form of a function whose callees are compiled forms as well.

    Numba looks for kept machine code by a function's file and name, and compares that file's date only; of
    the functions that it calls it knows nothing. So what went into the code is part of the name.
    """
    numba = importlib.import_module("numba")
    names = dict(function.__globals__)
    for name, value in _globals_used(function):
        if _is_kernel(value):
            names[name] = _twin(value)
    twin = FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    twin.__qualname__, twin.__module__ = f"{function.__qualname__}_{digest(function)}", function.__module__
    try:
        return numba.njit(cache=True)(twin)
    except RuntimeError:  # no folder can be written to
        return numba.njit(twin)


def digest(function: FunctionType) -> str:
    """Return a name for what a function does: its code, that of its callees, and the constants they read."""
    found = hashlib.sha256()
    for part in _parts(function, set()):
        found.update(part.encode() + b"\0")
    return found.hexdigest()[:16]


def _parts(function: FunctionType, seen: set[FunctionType]) -> Iterator[str]:
    if function in seen:
        return
    seen.add(function)
    yield f"{function.__module__}.{function.__qualname__} {function.__defaults__}"
    for code in _codes(function.__code__):
        constants = [c for c in code.co_consts if not isinstance(c, CodeType)]
        yield f"{code.co_code.hex()} {constants} {code.co_names} {code.co_varnames}"
    for name, value in _globals_used(function):
        if _is_kernel(value):
            yield from _parts(value, seen)
        elif isinstance(value, int | float | str | tuple):
            yield f"{name}={value!r}"


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _globals_used(function: FunctionType) -> Iterator[tuple[str, Any]]:
    known = function.__globals__
    for code in _codes(function.__code__):
        yield from ((name, known[name]) for name in code.co_names if name in known)


def _is_kernel(value: object) -> bool:
    return isinstance(value, FunctionType) and value.__module__.startswith("tidecell.")
