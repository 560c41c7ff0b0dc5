"""Modules that this package shares with `xvlm2vec_st`, loaded without it.

They need Python alone. Importing `xvlm2vec_st` would load torch and transformers, which the benchmark's
data do not need, and register a model with transformers.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

# Beside this package in a checkout and in a wheel.
SOURCE = Path(__file__).parents[2] / "xvlm2vec_st" / "utils"


def shared(name: str) -> ModuleType:
    """The module or package `xvlm2vec_st.<name>` under a name of this package.

    >>> shared("texts").is_blank(" ")
    True
    """
    own = f"mmmeb_tasks._{name}"
    if own not in sys.modules:
        folder = SOURCE / name
        spec = spec_from_file_location(own, folder / "__init__.py" if folder.is_dir() else f"{folder}.py")
        assert spec is not None and spec.loader is not None, f"{folder} is missing"
        sys.modules[own] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[own])
    return sys.modules[own]
