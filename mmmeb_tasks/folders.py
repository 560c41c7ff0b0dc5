"""`xvlm2vec_st.folders`: the same code moves every result of this distribution into its place.

Loaded from its files, which need Python alone: importing `xvlm2vec_st` would load torch and
transformers, which the benchmark's data do not need, and register a model with transformers.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

# Beside this package in a checkout and in a wheel.
_spec = spec_from_file_location(
    "mmmeb_tasks._folders", Path(__file__).parents[1] / "xvlm2vec_st" / "folders" / "__init__.py"
)
_folders = sys.modules[_spec.name] = module_from_spec(_spec)
_spec.loader.exec_module(_folders)

Destination = _folders.Destination
expanded = _folders.expanded
remove = _folders.remove
whole_file = _folders.whole_file
