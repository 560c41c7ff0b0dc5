"""MMMEB for mteb. Importing this is cheap; the modules that use mteb are imported by name.

    from mmmeb_tasks.mini.tasks import evaluate_mini
    scores = evaluate_mini(model)                       # {"en": {"i2t": 0.94, ...}, ...}

`files` and `instructions` need nothing but Python; `retrieval` and `encoder` need mteb.
"""
