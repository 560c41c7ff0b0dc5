"""Add languages to an embedder: translate, check, distil, score before and after, save.

    xvlm2vec add-language ./xvlm2vec pt --corpus english.jsonl --known-languages it es fr de
    xvlm2vec add-language ./xvlm2vec pt zh --mini 8000 --known-languages it es fr de     # offline, 12 minutes

The model itself, frozen, is the teacher. Its English embedding of a text is the target for that text in every
language: the new ones, and those of --known-languages, which are trained again so that they are not forgotten.
With --mini the corpus is the English of the mini world, its translations are names from Unicode CLDR, and the
model is scored on MMMEBMini too. Unfinished work lies in OUT.work; run the same command again to continue. The
corpus stays in OUT.corpus/parallel.jsonl. For the next language, pass it as --corpus, and this language with
--known-languages.
"""

from collections.abc import Callable
from functools import partial

from ..shared.command import run_prepared
from .options import parse_args


def prepare() -> Callable[[], object]:
    """The work that the command line asks for."""
    arguments = parse_args(None, __doc__)
    from .command import add_languages  # it imports torch

    return partial(add_languages, arguments)


def main() -> None:
    """Run the command line."""
    run_prepared(prepare)


if __name__ == "__main__":
    main()
