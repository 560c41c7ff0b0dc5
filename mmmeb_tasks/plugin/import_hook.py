"""Add MMMEB to mteb when mteb is imported, which has no mechanism for plug-ins.

mteb finds tasks, benchmarks and models by scanning three of its modules, and its command is a
function of a fourth. A finder in front of `sys.meta_path` runs `plugin.after` when one of the four
has been imported, before anybody scans it; where mteb is imported by one of our modules, when that
module is whole. An installation imports this file when mteb is imported (see `build_backend.py`); it
imports nothing that is not there already (0.3 ms).
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is not loaded at run time
    from typing import Any

TARGETS = (
    "mteb.tasks",
    "mteb.benchmarks.benchmarks",
    "mteb.models.model_implementations",
    "mteb.cli.build_cli",
)
PACKAGE_PREFIX = "mmmeb_tasks."
# Modules of mteb that were imported while one of our modules was incomplete. Registering waits for it.
WAITING: list[str] = []


def install() -> None:
    """Add MMMEB to the modules of mteb that are imported, and to the others when they will be."""
    for finder in sys.meta_path:
        if isinstance(finder, AfterImport):
            return
    for name in TARGETS:
        module = sys.modules.get(name)
        if module is not None and not _is_half(module):
            register(name)
    if not all(name in sys.modules for name in TARGETS):
        sys.meta_path.insert(0, AfterImport())


def after(name: str) -> None:
    """Register with a module of mteb that has run, once no module of ours is half-way."""
    if name in TARGETS:
        WAITING.append(name)
    others = [module for key, module in [*sys.modules.items()] if key.startswith(PACKAGE_PREFIX) and key != name]
    while WAITING and not any(map(_is_half, others)):
        register(WAITING.pop(0))


def _is_half(module: object) -> bool:
    return getattr(getattr(module, "__spec__", None), "_initializing", False)


def register(name: str) -> None:
    """Register with one module; mteb works on where that fails, and one line says so."""
    try:
        from mmmeb_tasks.plugin import register as plugin

        plugin.after(name, sys.modules[name])
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, too: importing mteb ends no program
        if sys.stderr is None:  # pythonw, a service
            return
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        sys.stderr.write(
            f"mmmeb_tasks: MMMEB could not be added to {name} of this mteb ({cause}); mteb works without "
            "it. Known to work: mteb 2.26. MMMEB_NO_AUTOLOAD=1 silences this.\n"
        )


class AfterImport:
    """A finder that finds what the others find, and acts after the import."""

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "Any":
        """The spec of one of the four modules or of ours, its loader wrapped; None for all others."""
        if name not in TARGETS and not name.startswith(PACKAGE_PREFIX):
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    loader: Any = Loader(spec.loader)
                    spec.loader = loader
                return spec
        return None


class Loader:
    """A loader that registers after the module has run; in all else the one that it wraps."""

    def __init__(self, loader: "Any") -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> object:
        return getattr(self.loader, name)

    def create_module(self, spec: "Any") -> "Any":
        """As the wrapped loader."""
        return self.loader.create_module(spec)

    def exec_module(self, module: "Any") -> None:
        """As the wrapped loader; then register."""
        self.loader.exec_module(module)
        module.__spec__.loader = module.__loader__ = self.loader
        after(module.__spec__.name)
