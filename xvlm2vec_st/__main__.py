"""The command line.

python -m xvlm2vec_st build BASE OUT
python -m xvlm2vec_st build microsoft/Phi-3.5-vision-instruct teacher --adapter TIGER-Lab/VLM2Vec-LoRA
"""

import argparse
import sys
from collections.abc import Sequence

from xvlm2vec_st.building.builder import DTYPES, build
from xvlm2vec_st.utils.failures import reason
from xvlm2vec_st.utils.terminal import quiet_libraries
from xvlm2vec_st.utils.texts import printable


def parser() -> argparse.ArgumentParser:
    """Commands and their arguments."""
    whole = argparse.ArgumentParser(
        prog="python -m xvlm2vec_st",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("build", help="an LVLM checkpoint to a sentence-transformers folder")
    add = command.add_argument
    add("base", metavar="BASE", help="the checkpoint, or an adapter that names its base: folder or Hub id")
    add("out", metavar="OUT", help="the new folder")
    add("--adapter", metavar="PATH", help="LoRA or DoRA, folder or Hub id; merged in fp32")
    add("--keep-adapter", action="store_true", help="store the adapter, and load BASE from where it lies")
    add(
        "--num-crops",
        type=int,
        metavar="N",
        help="phi3_v: tiles an image at most; default: the checkpoint's",
    )
    add("--dtype", choices=DTYPES, help="of the stored weights; default: the checkpoint's")
    add(
        "--template",
        metavar="FILE",
        help="a Jinja chat template, or the name of one here; default: the family's",
    )
    add("--overwrite", action="store_true", help="replace OUT")
    add("--debug", action="store_true", help="show the libraries' warnings, and the traceback of an error")
    return whole


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, or 2 with one line of error."""
    arguments = vars(parser().parse_args(argv))
    debug = arguments.pop("debug")
    if not debug:
        quiet_libraries(bars=True)
    try:
        out = build(**arguments)
    except Exception as error:
        # transformers reports missing files, broken JSON and an unreachable Hub as OSError, in many lines.
        line = reason(error)
        if debug or line is None:
            raise
        sys.stderr.write(f"error: {printable(line)}\n")
        return 2
    sys.stdout.write(f"{out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
