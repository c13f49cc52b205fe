"""A function call as files: written where it is submitted, carried out in a task, its result read back.

The function goes by reference (its module and name), as with ``multiprocessing``: the module is imported in
the task, a script as ``__mp_main__``, so that what stands under ``if __name__ == "__main__"`` runs once.
Functions of a notebook or a prompt have no module to import; they go by value where cloudpickle is installed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import pickle
import secrets
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from tidecell.structs.errors import TidecellError

MAIN = "__mp_main__"  # the name that multiprocessing gives a script, too
KEPT_S = 30 * 86400.0  # calls older than this are deleted when the next one is submitted
PASSED_ON = ("PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH", "LD_LIBRARY_PATH")


class Target(msgspec.Struct):
    """Where a function is found.

    Attributes:
        module: Its module; empty: it is in ``function.pickle``.
        name: Its qualified name there.
        script: Path of the script that is ``__main__``, if any.
        path: ``sys.path`` of who submitted it.
    """

    module: str
    name: str
    script: str
    path: list[str]


def environment(*more: str) -> dict[str, str]:
    """Return what a task finds of the shell that it was submitted from; ``more``: variables besides."""
    return {key: os.environ[key] for key in (*PASSED_ON, *more) if key in os.environ}


def new_folder(parent: Path) -> Path:
    """Make a private folder for one call; old ones are deleted."""
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for old in parent.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > KEPT_S:
                shutil.rmtree(old)
    folder = parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o700)
    return folder


def write(folder: Path, fn: Callable[..., Any], calls: Sequence[tuple[Any, dict[str, Any]]]) -> list[str]:
    """Write calls of a function; return the command that carries one of them out.

    Raises:
        TidecellError: Function or arguments cannot be pickled.
    """
    target = _target(fn)
    if not target.module:
        (folder / "function.pickle").write_bytes(_by_value(fn))
    (folder / "target.json").write_bytes(msgspec.json.encode(target))
    for index, arguments in enumerate(calls):
        try:
            body = pickle.dumps(arguments)
        except Exception as error:  # whatever a class of the user's does
            text = f"the arguments of {fn.__name__} cannot be pickled: {error}"
            raise TidecellError(text, "give plain values, or paths to what is large") from error
        (folder / f"arguments-{index}.pickle").write_bytes(body)
    return [sys.executable, "-P", "-m", "tidecell.call", str(folder)]


def _target(fn: Callable[..., Any]) -> Target:
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    script = str(Path(file).absolute()) if file and Path(file).is_file() else ""
    module = fn.__module__
    importable = "<" not in fn.__qualname__ and bool(module != "__main__" or script)
    path = [str(Path(p).absolute()) if p else str(Path.cwd()) for p in sys.path]
    return Target(module if importable else "", fn.__qualname__, script, path)


def _by_value(fn: Callable[..., Any]) -> bytes:
    try:
        import cloudpickle
    except ImportError as error:
        raise TidecellError(
            f"{fn.__qualname__} is in no file that a task could import",
            "put it at the top level of a module or script, or: pip install cloudpickle",
        ) from error
    return bytes(cloudpickle.dumps(fn))


# --------------------------------------------------------------------------------------- in the task


def load(folder: Path) -> Callable[..., Any]:
    """Return the function of a call."""
    target = msgspec.json.decode((folder / "target.json").read_bytes(), type=Target)
    sys.path[:] = [*dict.fromkeys([*target.path, *sys.path])]
    if target.script:
        _load_script(target.script)
    if not target.module:
        fn = pickle.loads((folder / "function.pickle").read_bytes())
    else:
        fn = sys.modules[MAIN] if target.module == "__main__" else importlib.import_module(target.module)
        for part in target.name.split("."):
            fn = getattr(fn, part)
    found: Callable[..., Any] = getattr(fn, "fn", fn)  # what the decorator wraps
    return found


def _load_script(path: str) -> None:
    """Import a script as multiprocessing does: pickles that name ``__main__`` find its classes."""
    spec = importlib.util.spec_from_file_location(MAIN, path)
    if spec is None or spec.loader is None or not path.endswith(".py"):
        return  # an installed command, for example: nothing of ours is in it
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[MAIN] = sys.modules["__main__"] = module
    spec.loader.exec_module(module)


def carry_out(folder: Path, index: int) -> None:
    """Call the function with the arguments of an item, or of the one call, and store what it returns."""
    fn = load(folder)
    path = folder / f"arguments-{index}.pickle"
    args, kwargs = pickle.loads((path if path.exists() else folder / "arguments-0.pickle").read_bytes())
    value = fn(*args, **kwargs)
    _store(folder / f"result-{index}.pickle", pickle.dumps(value))


def _store(path: Path, body: bytes) -> None:
    part = path.with_suffix(f".{os.getpid()}")
    part.write_bytes(body)
    part.replace(path)


def read_result(folder: Path, index: int) -> Any:
    """Return what a replica's function returned.

    Raises:
        FileNotFoundError: It returned nothing yet.
    """
    body = (folder / f"result-{index}.pickle").read_bytes()
    sys.modules.setdefault(MAIN, sys.modules["__main__"])  # whose classes the task knows by that name
    return pickle.loads(body)


def read_failure(folder: Path) -> str:
    """Return the traceback of the first replica that failed; empty: none did."""
    found = sorted(folder.glob("failure-*.txt"))
    return found[0].read_text() if found else ""


def main(argv: Sequence[str]) -> int:
    """Carry out a call; the exit status is 1 if it raised."""
    folder, index = Path(argv[1]), int(os.environ.get("TIDECELL_INDEX", "0"))
    failure = folder / f"failure-{index}.txt"
    failure.unlink(missing_ok=True)
    try:
        carry_out(folder, index)
    except Exception:
        text = traceback.format_exc()
        sys.stderr.write(text)
        _store(failure, text.encode())
        return 1
    return 0


__all__ = ["carry_out", "environment", "load", "new_folder", "read_failure", "read_result", "write"]

if __name__ == "__main__":
    sys.exit(main(sys.argv))
