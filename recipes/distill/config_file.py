"""A file of options for `recipes.distill`."""

import argparse
import difflib
import re
from pathlib import Path
from typing import Any

import yaml

from xvlm2vec_st.utils.texts import printable


class Loader(yaml.SafeLoader):
    """YAML 1.2's numbers, and each key once.

    YAML 1.1, which PyYAML reads, takes 1:30 for 90 and 010 for 8, and the last of two equal keys.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """As PyYAML's.

        Raises:
            yaml.YAMLError: a key twice.
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
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789")
)


def read_yaml(path: Path) -> Any:
    """What a YAML file says.

    Raises:
        ValueError: it is not YAML, or not UTF-8; with the file, and where.
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
    """A YAML file of options, named as on the command line without the dashes, as command line words.

    Raises:
        ValueError: no such file, no YAML mapping, a key that is no option, with the nearest one,
            or Norwegian unquoted.
    """
    try:
        there = path.is_file()
    except OSError:  # a name that is too long
        there = False
    if not there:
        raise ValueError(f"{printable(path)}: no such configuration file")
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a mapping of options to values is needed, got {type(values).__name__}")
    options = {s[2:]: a for a in parser._actions for s in a.option_strings if s.startswith("--")}
    words: list[str] = []
    for key, value in values.items():
        if key not in options or key in ("config", "help"):
            (near,) = difflib.get_close_matches(str(key), options, n=1, cutoff=0.0)
            raise ValueError(f"{path}: no option {key!r}; the nearest one is {near!r}")
        if key == "languages" and any(
            each is False for each in (value if isinstance(value, list) else [value])
        ):
            raise ValueError(f'{path}: languages: YAML reads no as False; quote it: "no"')
        if isinstance(value, bool):
            words += [f"--{key}"] if value else [f"--no-{key}"] if f"no-{key}" in options else []
        elif isinstance(value, list):
            several = options[key].nargs == "+"
            words += [f"--{key}", *map(str, value)] if several else [f"--{key}", ",".join(map(str, value))]
        elif value is not None:
            words += [f"--{key}", str(value)]
    return words
