"""Build a sentence-transformers folder from an LVLM checkpoint.

xvlm2vec build BASE OUT
xvlm2vec build microsoft/Phi-3.5-vision-instruct teacher --adapter TIGER-Lab/VLM2Vec-LoRA
"""

import argparse
import sys
from collections.abc import Sequence

from xvlm2vec_st.building.builder import DTYPES, build
from xvlm2vec_st.utils.failures import reason
from xvlm2vec_st.utils.terminal import quiet_libraries
from xvlm2vec_st.utils.texts import printable


def build_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    main_parser = argparse.ArgumentParser(
        prog="xvlm2vec",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = main_parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("build", help="convert an LVLM checkpoint to a sentence-transformers folder")
    add = command.add_argument
    add("base", metavar="BASE", help="the checkpoint, or an adapter that names its base: folder or Hub id")
    add("out", metavar="OUT", help="the new folder")
    add("--adapter", metavar="PATH", help="LoRA or DoRA, folder or Hub id; merged in fp32")
    add("--keep-adapter", action="store_true", help="store the adapter, and load BASE from its present place")
    add(
        "--num-crops",
        type=int,
        metavar="N",
        help="Phi-3.5-vision: maximum tiles per image, plus the global view; default: the checkpoint's",
    )
    add("--dtype", choices=DTYPES, help="dtype of the stored weights; default: the checkpoint's")
    add(
        "--template",
        metavar="FILE",
        help="a Jinja chat template, or the name of a bundled one; default: the family's",
    )
    add("--overwrite", action="store_true", help="replace OUT")
    add("--debug", action="store_true", help="show the libraries' warnings, and the traceback of an error")
    return main_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, or 2 after an error message of one line."""
    arguments = vars(build_parser().parse_args(argv))
    debug = arguments.pop("debug")
    if not debug:
        quiet_libraries(bars=True)
    try:
        out = build(**arguments)
    except Exception as error:
        # transformers reports missing files, broken JSON and an unreachable Hub as OSError, with long messages.
        line = reason(error)
        if debug or line is None:
            raise
        sys.stderr.write(f"error: {printable(line)}\n")
        return 2
    sys.stdout.write(f"{out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
