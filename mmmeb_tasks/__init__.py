"""MMMEB for mteb. Importing this is cheap; the modules that use mteb are imported by name.

    from mmmeb_tasks.mini.tasks import evaluate_mini
    scores = evaluate_mini(model)                       # {"en": {"i2t": 0.94, ...}, ...}

Importing it adds the tasks, benchmarks and models to mteb, now or when mteb is imported; an
installation does so when mteb is imported. `MMMEB_NO_AUTOLOAD=1` switches both off; then
`mmmeb_tasks.plugin.import_hook.install()` does it by hand. `data.layout` and `instructions` need nothing but Python.
"""

import os

from mmmeb_tasks.plugin.import_hook import install

if not os.environ.get("MMMEB_NO_AUTOLOAD"):
    install()
