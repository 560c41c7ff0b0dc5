"""What is added to mteb: tasks, benchmarks, models, and two steps around `mteb run`."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def after(name: str, module: ModuleType) -> None:
    """Register with one of mteb's modules, which has just been imported, or long ago.

    Raises:
        Exception: whatever a mteb that has moved something leads to.
    """
    _REGISTER[name](module)


def register_tasks(module: ModuleType) -> None:
    """Add the tasks to `mteb.tasks`, and to what was scanned from it."""
    from mmmeb_tasks.benchmark import AGGREGATES
    from mmmeb_tasks.mini.tasks import MINI_TASKS, MINI_TASKS_11
    from mmmeb_tasks.tasks import MMMEB_TASKS

    tasks = {task.metadata.name: task for task in (*MMMEB_TASKS, *MINI_TASKS, *MINI_TASKS_11, *AGGREGATES)}
    for name, task in tasks.items():
        setattr(module, name, task)
    # Not `mteb.get_tasks`, which is the function; still empty while it is being imported.
    scanned: Any = sys.modules.get("mteb.get_tasks")
    if scanned is not None and hasattr(scanned, "_TASKS_REGISTRY"):
        new = {name: task for name, task in tasks.items() if name not in scanned._TASKS_REGISTRY}
        scanned._TASKS_REGISTRY.update(new)
        scanned.TASK_LIST = (*scanned.TASK_LIST, *new.values())


def register_benchmarks(module: ModuleType) -> None:
    """Add the benchmarks to `mteb.benchmarks.benchmarks`."""
    from mteb.benchmarks import get_benchmark

    from mmmeb_tasks.benchmark import benchmarks

    for benchmark in benchmarks():
        setattr(module, benchmark.name, benchmark)
    # `mteb.benchmarks.get_benchmark` is the function that its module exports.
    sys.modules[get_benchmark.__module__]._build_registry.cache_clear()


def register_models(module: Any) -> None:
    """Add the models to `MODEL_REGISTRY`, which then knows local folders, too."""
    from mmmeb_tasks.models.local_folders import Registry

    registry = Registry(module.MODEL_REGISTRY)
    before = module.MODEL_REGISTRY
    known: Any
    for known in [*sys.modules.values()]:
        if getattr(known, "__name__", "").startswith("mteb") and known.__dict__.get("MODEL_REGISTRY") is before:
            known.MODEL_REGISTRY = registry


def register_command(module: Any) -> None:
    """Check names before `mteb run` loads a model, and print a table after it; name a card's folder."""
    from mmmeb_tasks.plugin.cli import with_folder, wrap_run

    module.run = wrap_run(module.run)
    module._create_meta = with_folder(module._create_meta)


_REGISTER: dict[str, Callable[[ModuleType], None]] = {
    "mteb.tasks": register_tasks,
    "mteb.benchmarks.benchmarks": register_benchmarks,
    "mteb.models.model_implementations": register_models,
    "mteb.cli.build_cli": register_command,
}
