"""Score models on MMMEB and compare them: tables, a chart, every query, a page of hard queries.

    xvlm2vec evaluate ./xvlm2vec --tasks MMMEBMini                      # offline, a minute or two
    xvlm2vec evaluate ./xvlm2vec sentence-transformers/clip-ViT-B-32-multilingual-v1 \\
        --tasks MMMEB --languages eng ita --styles plain,punct,newline --out report
    xvlm2vec evaluate ./xvlm2vec --index ./english-embedder --index-language en --tasks MMMEBMini

A model is a folder, or a name that `mteb run -m` takes. With --index, each model embeds the queries, and
INDEX the candidates: does an existing index stay valid? In OUT: scores.md, scores.csv, pairs.csv (each model
against each other one, query by query), queries.csv (the rank of each query's right answer), gap.md and
gap.csv (how far each language is from English), languages.png, queries.html. What is done is kept in OUT; the
same command goes on after a stop.
"""

from collections.abc import Callable
from functools import partial

from ..shared.command import run_prepared
from .options import parse_args


def prepare() -> Callable[[], object]:
    """The work that the command line asks for."""
    arguments = parse_args(None, __doc__)
    from .command import evaluate  # it imports torch

    return partial(evaluate, arguments)


def main() -> None:
    """Run the command line."""
    run_prepared(prepare)


if __name__ == "__main__":
    main()
