# SPDX-License-Identifier: BSD-3-Clause
"""Code of another package that is replaced until an override is undone.

An override is a handle. Overrides of the same code may be nested and undone in any order: the code
is replaced by the first one and restored by the last one. This module does not import torch.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

_ABSENT = object()
_undoing = threading.Lock()


class Override:
    """The handle that an override returns. `undo`, or the end of `with`, undoes it."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release: Callable[[], None] | None = release

    def undo(self) -> None:
        """Undoes this override. After the last one, the other package's code is used again."""
        with _undoing:
            release, self._release = self._release, None
        if release is not None:
            release()

    def __enter__(self) -> "Override":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()


class Replacements:
    """What one kind of override replaces.

    Args:
        replace_all: calls `replace`, `put` and `at_end` for all of it.
    """

    def __init__(self, replace_all: Callable[["Replacements"], None]) -> None:
        self._replace_all = replace_all
        self._lock = threading.Lock()
        self._in_force = 0  # number of overrides that are not undone
        self._restore: list[Callable[[], None]] = []

    def override(self) -> Override:
        """One more override. The first one replaces everything, or nothing if that fails."""
        with self._lock:
            if self._in_force == 0:
                try:
                    self._replace_all(self)
                except BaseException:
                    self._restore_all()
                    raise
            self._in_force += 1
        return Override(self._release)

    def replace(self, owner: Any, name: str, ours: Callable[[Any], Callable[..., Any]]) -> None:
        """Replaces a function of a module or a class, if there is one, by `ours(theirs)`."""
        theirs = getattr(owner, name, None)
        if theirs is None:
            return
        # wraps also copies the attributes by which torch.jit compiles theirs.
        replaced = functools.wraps(theirs)(ours(theirs))
        is_static = isinstance(vars(owner).get(name), staticmethod)
        self.put(owner, name, staticmethod(replaced) if is_static else replaced)

    def put(self, owner: Any, name: str, value: Any) -> None:
        """Sets an attribute of a module or a class."""
        theirs = vars(owner).get(name, _ABSENT)  # with getattr, a static method would not return
        if theirs is _ABSENT:
            self.at_end(functools.partial(delattr, owner, name))
        else:
            self.at_end(functools.partial(setattr, owner, name, theirs))
        setattr(owner, name, value)

    def at_end(self, restore: Callable[[], None]) -> None:
        """Calls `restore` after the last undo; what was registered last, first."""
        self._restore.append(restore)

    def _release(self) -> None:
        with self._lock:
            self._in_force -= 1
            if self._in_force == 0:
                self._restore_all()

    def _restore_all(self) -> None:
        while self._restore:
            self._restore.pop()()


def optional_module(name: str) -> Any:
    """Imports a module of another package; None if its release does not have it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


def module_with(
    caller: str, module: str, tested: str, functions: Mapping[str, Sequence[str]]
) -> Any:
    """Imports a module and checks that its functions are the ones that we replace.

    Args:
        caller: what needs it, for the message.
        module: the name of the module; the package is its first part.
        tested: the version of the package that `caller` is tested with.
        functions: the parameters of each function, by its name in the module, such as "f" or "A.f".

    Returns:
        The module.

    Raises:
        ImportError: the package is not installed.
        RuntimeError: a function is missing or has other parameters.
    """
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"{caller}: expected {package} (tested with {tested}), not installed")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not module.startswith(str(error.name)):
            raise  # not the module itself, but something that it imports
        found = None
    for name, parameters in functions.items():
        if not has_parameters(found, name, parameters):
            raise RuntimeError(
                f"{caller}: expected {module}.{name}({', '.join(parameters)}) as in {package} "
                f"{tested}, got {package} {importlib.metadata.version(package)} without it"
            )
    return found


def has_parameters(owner: Any, name: str, parameters: Sequence[str]) -> bool:
    """Whether a module has a function, such as "f" or "A.f", with these parameters."""
    for part in name.split("."):
        owner = getattr(owner, part, None)
    return owner is not None and [*inspect.signature(owner).parameters] == [*parameters]
