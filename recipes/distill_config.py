"""A file of options for `recipes.distill`."""

import argparse
import difflib
from pathlib import Path

import yaml


def config_words(path: Path, parser: argparse.ArgumentParser) -> list[str]:
    """A YAML file of options, named as on the command line without the dashes, as command line words.

    Raises:
        ValueError: no such file, no YAML mapping, a key that is no option, with the nearest one,
            or Norwegian unquoted.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such configuration file")
    values = yaml.safe_load(path.read_text("utf-8"))
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
