"""The command `xvlm2vec`: each recipe is a subcommand; see `xvlm2vec --help`."""

import sys
from collections.abc import Sequence
from importlib import import_module

# Subcommand -> module and what it does. A module is imported when its subcommand runs.
COMMANDS = {
    "build": ("xvlm2vec_st.__main__", "convert an LVLM checkpoint to a sentence-transformers folder"),
    "check": ("xvlm2vec_st.__main__", "compare a model with values that its own code gave"),
    "translate": (".translate.__main__", "translate an English corpus, check it, and report what was refused"),
    "distill": (".distill.__main__", "train a multilingual student from an English embedder"),
    "add-language": (".add_language.__main__", "translate, distil and score, to add languages to an embedder"),
    "evaluate": (".evaluate.__main__", "score models on MMMEB and compare them"),
    "index": (".image_search.index", "embed a folder of images, to search it"),
    "search": (".image_search.search", "find images by a text in any language, an image, or both"),
    "serve": (".image_search.serve", "search an index on a web page of this machine"),
    "demo": (".demo", "distil and score the bundled mini embedder, offline"),
}


def usage() -> str:
    """The help text: one line per subcommand.

    >>> print(usage().splitlines()[0])
    usage: xvlm2vec COMMAND [OPTIONS]
    """
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        ["usage: xvlm2vec COMMAND [OPTIONS]", "", *lines, "", "xvlm2vec COMMAND --help lists the options."]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else "--help"
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name not in COMMANDS:
        sys.stderr.write(f"error: unknown command {name!r}; commands: {', '.join(COMMANDS)}\n")
        return 2
    module, _ = COMMANDS[name]
    command = import_module(module, __package__)
    if name in ("build", "check"):
        return command.main(words)
    from .shared.command import run_prepared

    sys.argv = [f"xvlm2vec {name}", *words[1:]]
    run_prepared(command.prepare)
    return 0


if __name__ == "__main__":
    sys.exit(main())
