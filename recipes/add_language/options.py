"""The options of `add-language`."""

import argparse
import os
from collections.abc import Sequence

from mmmeb_tasks.data.layout import KINDS
from mmmeb_tasks.mini.write import QUERIES
from xvlm2vec_st.utils.folders import expanded

from ..shared.command import parse_languages, parser_of
from ..translate.names import DTYPES, MADLAD

# Training defaults: the paper's, for models of billions of parameters; and those of the mini world's model.
LARGE = {"steps": -1, "batch_size": 8, "learning_rate": 1e-5, "muon_learning_rate": 0.0}
SMALL = {"steps": 500, "batch_size": 40, "learning_rate": 3e-3, "muon_learning_rate": 0.01}


def parse_args(argv: Sequence[str] | None, description: str | None = None) -> argparse.Namespace:
    """The command line."""
    parser = parser_of(description)
    parser.add_argument("model", type=os.path.expanduser, help="the embedder: folder or Hub id")
    parser.add_argument("languages", nargs="+", help="the new languages: pt zh")
    parser.add_argument("--out", type=expanded, help="default: the model's name and the new languages")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace OUT at the end; drop another corpus in OUT.work"
    )
    add = parser.add_argument_group("corpus").add_argument
    add("--corpus", nargs="+", metavar="SOURCE", help="English rows; sources as for xvlm2vec translate")
    add("--mini", type=int, metavar="SCENES", help="use the mini world instead, two rows per scene")
    add("--images", type=expanded, help="folder of the images; default: the source's folder")
    add("--outside-images", action="store_true", help="accept images that lie outside this folder")
    add("--known-languages", nargs="*", default=[], metavar="LANGUAGE", help="languages the model knows already")
    add("--rehearsal", type=float, default=0.7, help="share of rows that keep each known language")
    add("--translator", help=f"as for xvlm2vec translate; default: {MADLAD}, with --mini: cldr")
    add("--dtype", choices=tuple(DTYPES), default="fp32", help="of the translator")
    add("--eval-rows", type=int, default=200, help="rows held out for the scores")
    add("--tasks", nargs="+", choices=KINDS, default=KINDS, help="tasks of MMMEBMini")
    add("--queries", type=int, default=QUERIES, help="queries per task and language of MMMEBMini")
    add = parser.add_argument_group("training").add_argument
    add("--steps", type=int, help="weight updates; default: one pass over the corpus, with --mini: 500")
    add("--batch-size", type=int, help="rows per update; default: 8, with --mini: 40")
    add("--learning-rate", type=float, help="default: 1e-5; with --mini 3e-3, of embeddings and norms")
    add("--muon-learning-rate", type=float, help="of all other matrices; default: AdamW, with --mini 0.01")
    add("--lora-rank", type=int, help="train a LoRA on the language model; default: all weights but vision")
    add("--new-tokens", type=int, metavar="N", help="add up to N tokens for the new languages to the vocabulary")
    add(
        "--join-ascii",
        action="store_true",
        help="with --new-tokens: let them hold ASCII letters alone, as Polish or Dutch need",
    )
    add("--bf16", action="store_true", help="autocast")
    add("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    args.languages = parse_languages(args.languages)
    args.known_languages = parse_languages(args.known_languages)
    return args
