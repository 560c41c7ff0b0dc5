"""Call a function when a module is imported, once the modules that it needs are whole."""

import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def call_after_import(name: str, call: Callable[[], object], *, packages: Sequence[str]) -> None:
    """Call `call` when the module `name` has been imported: at once if it is there, else after its import.

    The call waits until the thread that imports `name` has finished with the other modules of `packages`, too. A
    module that `call` imports from them would otherwise be half-way.

    Args:
        name: a module of one of `packages`.
        call: it may import from `packages`. What it raises ends the import that it waited for.
        packages: names of packages at the top.

    >>> call_after_import("json", lambda: print("json is there"), packages=["json"])
    json is there
    """
    if name in sys.modules:
        call()
    else:
        sys.meta_path.insert(0, AfterImport(name, call, packages))


class AfterImport:
    """A finder that finds what the others find, and counts how many imports are half-way in each thread."""

    def __init__(self, name: str, call: Callable[[], object], packages: Sequence[str]) -> None:
        self.name, self.call, self.packages = name, call, packages
        self.is_loaded = self.is_done = False
        self.thread = threading.local()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The spec of a module of the packages, its loader wrapped; None for all others, and after the call."""
        if self.is_done or name.partition(".")[0] not in self.packages:
            return None
        # It stays in the list when it is done: another thread may be walking through the list.
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    loader: Any = Loader(spec.loader, self)
                    spec.loader = loader
                return spec
        return None

    def run(self, module: ModuleType, loader: Any) -> None:
        """Run a module; then call, if this was the outermost one and the awaited one is there."""
        self.thread.depth = getattr(self.thread, "depth", 0) + 1
        try:
            loader.exec_module(module)
            self.is_loaded = self.is_loaded or module.__name__ == self.name
            if self.is_loaded and not self.is_done and self.thread.depth == 1:
                self.call()
                self.is_done = True
        finally:
            self.thread.depth -= 1


class Loader:
    """A loader that tells its finder of the module that it runs; in all else the one that it wraps."""

    def __init__(self, loader: Any, finder: AfterImport) -> None:
        self.loader, self.finder = loader, finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def exec_module(self, module: ModuleType) -> None:
        """As the wrapped loader, which the module keeps."""
        spec = module.__spec__
        if spec is not None:
            spec.loader = module.__loader__ = self.loader
        self.finder.run(module, self.loader)
