"""Build a sentence-transformers folder from an LVLM checkpoint, and check a model against reference values.

xvlm2vec build BASE OUT
xvlm2vec build microsoft/Phi-3.5-vision-instruct teacher --adapter TIGER-Lab/VLM2Vec-LoRA
xvlm2vec build BASE OUT --extend-vocabulary parallel.jsonl --new-tokens 2000 --languages ru ja
xvlm2vec check MODEL --reference FILE
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from xvlm2vec_st.utils.failures import reason
from xvlm2vec_st.utils.terminal import quiet_libraries
from xvlm2vec_st.utils.texts import printable

DTYPES = ("bf16", "fp16", "fp32")


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
    add(
        "--extend-vocabulary",
        nargs="+",
        default=[],
        metavar="FILE",
        help="add tokens for --languages, chosen from these parallel corpora; docs/build.md says how",
    )
    add("--new-tokens", type=int, metavar="N", help="with --extend-vocabulary: how many, at most")
    add("--languages", nargs="+", default=[], metavar="CODE", help="with --extend-vocabulary: columns of the corpus")
    add(
        "--join-ascii",
        action="store_true",
        help="with --new-tokens: let them hold ASCII letters alone, as Polish or Dutch need",
    )
    add("--overwrite", action="store_true", help="replace OUT")
    add("--debug", action="store_true", help="show the libraries' warnings, and the traceback of an error")
    command.set_defaults(run=run_build)
    command = commands.add_parser("check", help="compare a model with values that its own code gave")
    add = command.add_argument
    add("model", metavar="MODEL", help="folder or Hub id")
    add("--reference", metavar="FILE", required=True, help="recorded values; docs/parity.md says how to record them")
    add("--tolerance", type=float, default=1e-3, metavar="X", help="largest 1 - cosine; default: %(default)s")
    add("--debug", action="store_true", help="show the libraries' warnings, and the traceback of an error")
    command.set_defaults(run=run_check)
    return main_parser


def run_build(**arguments: Any) -> int:
    """Build a folder, and print its name."""
    from xvlm2vec_st.building.builder import build  # it imports torch

    arguments["languages"] = " ".join(arguments["languages"]).replace(",", " ").split()  # it es, or it,es
    sys.stdout.write(f"{build(**arguments)}\n")
    return 0


def run_check(model: str, reference: str, tolerance: float) -> int:
    """Print a line per row; 1 if one differs."""
    from xvlm2vec_st.building.parity import check_parity, read_reference
    from xvlm2vec_st.sentence_transformer import SentenceTransformer

    rows = read_reference(reference)
    results = check_parity(SentenceTransformer(model), rows)
    for result in results:
        notes = [note for note in (result.ids, result.images, result.pooled) if note]
        agrees = "agrees" if result.agrees(tolerance) else "differs"
        sys.stdout.write(
            printable("; ".join([f"row {result.row} {agrees}: cosine {result.cosine:.6f}", *notes])) + "\n"
        )
    count = sum(result.agrees(tolerance) for result in results)
    sys.stdout.write(f"{count} of {len(results)} rows agree\n")
    return 0 if count == len(results) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 if `check` finds a difference, 2 after an error of one line."""
    arguments = vars(build_parser().parse_args(argv))
    debug, run = arguments.pop("debug"), arguments.pop("run")
    if not debug:
        quiet_libraries(bars=True)
    try:
        return int(run(**arguments))
    except Exception as error:
        # transformers reports missing files, broken JSON and an unreachable Hub as OSError, with long messages.
        line = reason(error)
        if debug or line is None:
            raise
        sys.stderr.write(f"error: {printable(line)}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
