"""The structure of the source, as numbers: `python tests/structure.py`.

Names at the top of each package, import circles, tables of families, chat templates, FSDP configurations, lines, the
median length of a function's body, the longest file. test_structure.py holds the numbers to their bounds.
"""

import ast
import statistics
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("xvlm2vec_st", "mmmeb_tasks", "recipes")
Graph = dict[str, set[str]]


def source_files(package: str) -> list[Path]:
    """The Python files of a package."""
    return sorted((ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    """A file's module: `recipes.distill.options`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def import_graph(package: str) -> Graph:
    """For each module, the modules of its package that it imports, inside functions too."""
    paths = {module_name(path): path for path in source_files(package)}
    graph: Graph = {name: set() for name in paths}
    for name, path in paths.items():
        home = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            graph[name] |= {target for target in imported_names(node, home) if target in paths} - {name}
    return graph


def imported_names(node: ast.AST, home: str) -> Iterator[str]:
    """The modules that an import statement may load; `home` is the package that it stands in."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        parents = home.split(".")[: len(home.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*parents, *([node.module] if node.module else [])])
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names)


def room_graph(package: str) -> Graph:
    """The imports between the names at the top of a package; `__init__` and `__main__` are left out."""
    rooms: Graph = {}
    for name, targets in import_graph(package).items():
        room = room_of(name)
        if room is not None:
            rooms.setdefault(room, set()).update({room_of(target) for target in targets} - {room, None})
    return rooms


def room_of(module: str) -> str | None:
    """The folder or file at the top of the package that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] != "__main__" else None


def find_circle(graph: Graph) -> list[str]:
    """The names of one circle, or none.

    >>> find_circle({"a": {"b"}, "b": {"a"}, "c": set()})
    ['a', 'b', 'a']
    """
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def bodies(package: str) -> Iterator[int]:
    """The lines of each function's body, without its docstring."""
    for path in source_files(package):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[ast.get_docstring(node) is not None :]
                if body:
                    yield (body[-1].end_lineno or 0) - body[0].lineno + 1


def lines_of(path: Path) -> int:
    """The number of lines of a file."""
    return len(path.read_text("utf-8").splitlines())


def names_at_the_top(package: str) -> list[str]:
    """Files and folders that are committed at the top of a package."""
    return sorted(p.name for p in (ROOT / package).iterdir() if p.name != "__pycache__")


def counts() -> dict[str, int | float]:
    """The numbers, by what they count."""
    files = [path for package in PACKAGES for path in source_files(package)]
    other = [p for package in PACKAGES for end in ("yaml", "jinja") for p in (ROOT / package).rglob(f"*.{end}")]
    other = [path for path in other if "mini/teacher" not in path.as_posix()]
    return {
        **{f"names at the top of {package}": len(names_at_the_top(package)) for package in PACKAGES},
        **{f"import circles in {package}": bool(find_circle(import_graph(package))) for package in PACKAGES},
        "tables of families": sum("dict[str, Family]" in path.read_text("utf-8") for path in files),
        "chat templates": sum(path.suffix == ".jinja" for path in other),
        "FSDP configurations": sum(path.name.startswith("fsdp") for path in other),
        "lines of Python, YAML and Jinja": sum(map(lines_of, [*files, *other])),
        "lines of the longest file": max(map(lines_of, files)),
        "median lines of a body": statistics.median(length for package in PACKAGES for length in bodies(package)),
    }


if __name__ == "__main__":
    for name, value in counts().items():
        sys.stdout.write(f"{value:>8g}  {name}\n")
