"""Read names from the source of an installed package, without the imports of its modules.

Importing sentence-transformers' training arguments takes seconds, because it imports torch. Their fields, types and
help texts are in a few statements. `Source` runs these, and no others.
"""

import argparse
import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from .options import TrainingDefaults

# Packages that are imported as they are; all others have a stand-in, an empty class.
LIGHT = {*sys.stdlib_module_names, "packaging"}


@cache
def training_fields() -> type | None:
    """A dataclass with the fields of `DistillTrainingArguments`: names, types, help texts. Not every default is right.

    None if the installed libraries are written in another way than `Source` can read. A test compares the two.
    """
    try:
        base = source_of("sentence_transformers").read("SentenceTransformerTrainingArguments")
        return dataclass(type("TrainingFields", (TrainingDefaults, base), {}))
    except Exception:  # whatever statements of another release raise; then the class itself is imported
        return None


@cache
def hf_argument_parser() -> type[argparse.ArgumentParser]:
    """transformers' `HfArgumentParser`. Its file is loaded alone, because importing transformers takes a second."""
    if "transformers" not in sys.modules:
        spec = spec_from_file_location("hf_argparser", source_of("transformers.hf_argparser").file)
        module = module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
            return module.HfArgumentParser
        except ImportError:  # it imports from its package
            pass
    return import_module("transformers").HfArgumentParser


@cache
def source_of(module: str) -> "Source":
    """The source of a module: `transformers.training_args`.

    Raises:
        ImportError: there is no such file.

    >>> source_of("transformers.debug_utils").read("DebugOption").TPU_METRICS_DEBUG.value
    'tpu_metrics_debug'
    """
    root, *parts = module.split(".")
    spec = find_spec(root)
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder, *parts)
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file():
                return Source(module, file)
    raise ImportError(f"{module} has no file of Python source")


class Source:
    """The names of a module. Each is made when it is read, by the statement that binds it.

    Methods are left out of classes. A name that is bound in a branch (`if is_torch_available(): …`), and a package
    that takes long to import, become an empty class.
    """

    def __init__(self, module: str, file: Path) -> None:
        self.module, self.file = module, file
        self.package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        self.names: dict[str, Any] = {"__name__": module}
        self.statements = dict(bound_names(ast.parse(file.read_text("utf-8")).body))

    def __getattr__(self, name: str) -> Any:
        return self.read(name)

    def read(self, name: str) -> Any:
        """The value of a name.

        Raises:
            AttributeError: the module does not bind it.
        """
        if name not in self.names:
            if name not in self.statements:
                raise AttributeError(f"{self.file} binds no {name}")
            self.names[name] = stand_in(name)
            self.bind(name, self.statements[name])
        return self.names[name]

    def bind(self, name: str, statement: ast.stmt | None) -> None:
        """Run the statement that binds a name, after those that bind the names in it."""
        if isinstance(statement, ast.Import | ast.ImportFrom):
            self.names[name] = self.imported(name, statement)
        elif statement is not None:
            short = without_methods(statement) if isinstance(statement, ast.ClassDef) else statement
            for node in ast.walk(short):
                if isinstance(node, ast.Name) and node.id in self.statements and node.id != name:
                    self.read(node.id)
            exec(compile(ast.Module([short], []), self.file, "exec", dont_inherit=True), self.names)  # noqa: S102

    def imported(self, name: str, statement: ast.Import | ast.ImportFrom) -> Any:
        """What an import statement binds to a name."""
        alias = next(alias for alias in statement.names if name in (alias.asname, alias.name))
        if isinstance(statement, ast.Import):
            return import_module(alias.name) if alias.name.partition(".")[0] in LIGHT else self.names[name]
        parents = self.package.split(".")[: len(self.package.split(".")) - statement.level + 1]
        base = ".".join([*(parents if statement.level else []), *([statement.module] if statement.module else [])])
        root = base.partition(".")[0]
        if root in LIGHT:
            return getattr(import_module(base), alias.name)
        if root not in ("sentence_transformers", "transformers"):
            return self.names[name]
        source = source_of(base)
        return source.read(alias.name) if alias.name in source.statements else source_of(f"{base}.{alias.name}")


def stand_in(name: str) -> type:
    """An empty class, which can be called with any value."""
    return type(name, (), {"__init__": lambda self, *args: None})


def bound_names(statements: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt | None]]:
    """The names that statements at the top of a module bind, each with its statement; None in a branch.

    >>> [name for name, statement in bound_names(ast.parse("import a.b as c, d; x = y = 1").body)]
    ['c', 'd', 'x', 'y']
    """
    for statement in statements:
        match statement:
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                yield from ((alias.asname or alias.name, statement) for alias in names)
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                yield name, statement
            case ast.Assign(targets=targets):
                yield from ((target.id, statement) for target in targets if isinstance(target, ast.Name))
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), body=body):
                yield from bound_names(body)
            case ast.If() | ast.Try():
                for branch in (statement.body, statement.orelse):
                    yield from ((name, None) for name, _ in bound_names(branch))


def without_methods(definition: ast.ClassDef) -> ast.ClassDef:
    """A class with its annotated fields and constants only.

    >>> source = "class A:\\n    x: int = f()\\n    y = 1\\n    def g(self): ...\\n    z = g"
    >>> print(ast.unparse(without_methods(ast.parse(source).body[0])))
    class A:
        x: int = f()
        y = 1
    """

    def is_kept(part: ast.stmt) -> bool:
        return isinstance(part, ast.AnnAssign) or (
            isinstance(part, ast.Assign) and isinstance(part.value, ast.Constant)
        )

    body = [part for part in definition.body if is_kept(part)] or [ast.Pass()]
    short = ast.ClassDef(**{name: getattr(definition, name) for name in definition._fields} | {"body": body})
    return ast.fix_missing_locations(ast.copy_location(short, definition))
