"""The command line of `distill`, and its configuration files.

Options are read twice: by `check_words`, which needs no torch, so that --help and refusals come at once; and by
`parse_arguments`, with sentence-transformers' own class of training arguments.
"""

import argparse
import difflib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from xvlm2vec_st.utils.texts import printable

from ..shared.numbers import check_numbers
from .installed_source import hf_argument_parser, training_fields
from .options import DistillArguments, check_pair, split_fields

if TYPE_CHECKING:
    from .training_arguments import DistillTrainingArguments


def parse_arguments(
    argv: Sequence[str] | None, description: str | None = None
) -> tuple[DistillArguments, "DistillTrainingArguments"]:
    """The options of a command line, `sys.argv` by default, and of its `--config` file.

    Raises:
        ValueError: a bad option or file; see `config_words`, `DistillArguments` and `check_pair`.
    """
    from .training_arguments import DistillTrainingArguments  # it imports torch

    own, training = parse_values(argv, description, DistillTrainingArguments)
    arguments, training_arguments = DistillArguments(**own), DistillTrainingArguments(**training)
    check_pair(arguments, training_arguments)
    return arguments, training_arguments


def check_words(argv: Sequence[str] | None, description: str | None) -> None:
    """Print the help text, or refuse a bad option, before torch is imported.

    Does nothing if the installed libraries are written in another way than `training_fields` can read. Then
    `parse_arguments` does both, some seconds later.

    Raises:
        ValueError: as `parse_arguments`, unless only sentence-transformers' class can tell.
        SystemExit: the help text is printed; or an option is unknown or missing.
    """
    fields = training_fields()
    if fields is not None:
        own, _ = parse_values(argv, description, fields)
        DistillArguments(**own)


def parse_values(
    argv: Sequence[str] | None, description: str | None, training: type
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of our own options, and of the fields of the dataclass `training`.

    Raises:
        ValueError: a number out of bounds; see `config_words`, too.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    kinds = (DistillArguments, training)
    parser = build_parser(kinds, description)
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    config = finder.parse_known_args(words)[0].config
    own, rest = split_fields(
        vars(parser.parse_args([*(config_words(config, parser) if config else []), *words])), kinds
    )
    return own, rest


def build_parser(kinds: Sequence[type], description: str | None) -> argparse.ArgumentParser:
    """transformers' parser for dataclasses, with checked numbers and `--config`."""

    class DistillParser(hf_argument_parser()):
        """transformers' parser; it checks the numbers, too."""

        def parse_known_args(self, *args: Any, **kwargs: Any) -> tuple[argparse.Namespace, list[str]]:
            options, rest = super().parse_known_args(*args, **kwargs)
            check_numbers(options, self)
            return options, rest

    parser = DistillParser(
        kinds, description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", help="a YAML file of options; the command line overrides it")
    actions = {action.dest: action for action in parser._actions}
    resume, debug = actions["resume_from_checkpoint"], actions["debug"]
    resume.nargs, resume.const = "?", "true"
    resume.help = "true: continue the unfinished run from its last checkpoint; or a checkpoint's folder"
    # Without a value, --debug means the same as for the other recipes: see `shared.command.run`.
    debug.nargs, debug.const = "?", ""
    debug.help = f"show the libraries' log and the traceback of an error; or, with a value: {debug.help}"
    return parser


class Loader(yaml.SafeLoader):
    """YAML 1.2's numbers, and unique keys.

    PyYAML reads YAML 1.1, in which 1:30 is 90, 010 is 8, and the last of two equal keys wins.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Build a mapping.

        Raises:
            yaml.YAMLError: a key appears twice.
        """
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there twice", key.start_mark
                )
            if isinstance(key.value, str):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


# First letter -> how a plain value is recognised; 1:30 and 010 stay texts, which the options then refuse.
Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in pairs if tag != "tag:yaml.org,2002:int"]
    for letter, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        ValueError: it is not YAML, or not UTF-8; the message names the file and the place.
    """
    try:
        return yaml.load(path.read_text("utf-8"), Loader)  # noqa: S506 - a SafeLoader
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except RecursionError as error:
        raise ValueError(f"{path}: nested too deep for a file of options") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())[:300]}") from error


def config_words(path: Path, parser: argparse.ArgumentParser) -> list[str]:
    """The options of a YAML file as command line words, so that they get the same checks.

    Raises:
        ValueError: the file is missing or not a mapping; an unknown key, with the nearest option; Norwegian
            without quotes.
    """
    try:
        exists = path.is_file()
    except OSError:  # a name that is too long
        exists = False
    if not exists:
        raise ValueError(f"{printable(path)}: no such configuration file")
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a mapping of options to values is needed, got {type(values).__name__}")
    options = {action.dest for action in parser._actions} - {"config", "help", "debug"}
    words: list[str] = []
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in options:
            (near,) = difflib.get_close_matches(name, options, n=1, cutoff=0.0)
            raise ValueError(f"{path}: no option {key!r}; the nearest one is {near!r}")
        items = value if isinstance(value, list) else [value]
        if name == "languages" and any(item is False for item in items):
            raise ValueError(f'{path}: languages: YAML reads no as False; quote it: "no"')
        if value is not None:
            words += [f"--{name}", *(json.dumps(i) if isinstance(i, dict | bool) else str(i) for i in items)]
    return words
