"""The options of `translate`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xvlm2vec_st.utils.folders import expanded

from ..shared.command import parse_languages, parser_of
from .names import CHECKS, DTYPES, MADLAD, SUBSETS


@dataclass
class TranslateArguments:
    """What is translated, by whom, and how it is checked. `xvlm2vec translate --help` explains each option.

    >>> TranslateArguments(languages=["it"], out=Path("parallel.jsonl"), corpus=["cldr"]).translator
    'google/madlad400-3b-mt'
    """

    languages: list[str]
    out: Path
    corpus: list[str] = field(default_factory=list)
    mmeb: list[str] = field(default_factory=list)
    mmeb_data: Path | None = None
    images: Path | None = None
    outside_images: bool = False
    check_images: bool = True
    columns: list[str] = field(default_factory=list)
    source_language: str | None = None
    limit: int | None = None
    seed: int = 0
    overwrite: bool = False
    memory: list[Path] = field(default_factory=list)
    keep_work: bool = False
    translator: str = MADLAD
    dtype: str = "fp32"
    device: str | None = None
    device_map: str | None = None
    beams: int = 1
    tokens_per_batch: int = 4096
    shard: str | None = None
    skip_check: list[str] = field(default_factory=list)
    quality: str | None = None
    quality_min: float = 0.5


def parse_args(argv: Sequence[str] | None, description: str | None = None) -> TranslateArguments:
    """The options of a command line."""
    parser = parser_of(description)
    add = parser.add_argument_group("corpus").add_argument
    add(
        "--corpus",
        nargs="+",
        type=os.path.expanduser,
        default=[],
        metavar="SOURCE",
        help="files and datasets; see docs/corpus.md",
    )
    add("--mmeb", nargs="+", default=[], metavar="SUBSET", help=f"of MMEB-train; 'all': {', '.join(SUBSETS)}")
    add("--mmeb-data", type=expanded, metavar="FOLDER", help="a copy of MMEB-train; default: the Hub's")
    add("--images", type=expanded, help="folder, zip, tar or parquet of the images; default: the source's folder")
    add("--outside-images", action="store_true", help="accept images that lie outside this folder")
    add(
        "--no-check-images",
        dest="check_images",
        action="store_false",
        help="keep rows whose image is missing, for images that arrive later",
    )
    add("--columns", nargs="+", default=[], metavar="NAME=COLUMN", help="as in en=caption image=file id=key")
    add("--source-language", help="language of a parallel source that does not name it")
    add("--limit", type=int, help="rows per source or subset, sampled with --seed; default: all")
    add("--seed", type=int, default=0)
    add = parser.add_argument_group("result").add_argument
    add("--languages", nargs="+", required=True, metavar="LANGUAGE", help="it es pt-BR zh, or it,es")
    add("--out", type=expanded, required=True, help="the new file, JSON Lines")
    add("--overwrite", action="store_true", help="replace OUT at the end; drop another run's OUT.work")
    add("--memory", nargs="+", type=expanded, default=[], help="OUT.work folders whose translations are reused")
    add("--keep-work", action="store_true", help="keep OUT.work, for --memory")
    add = parser.add_argument_group("translator").add_argument
    add("--translator", default=MADLAD, help="a seq2seq or chat model; cldr: the mini world's names; none")
    add("--dtype", choices=tuple(DTYPES), default="fp32")
    add("--device", help="default: a GPU if there is one")
    add("--device-map", choices=("auto",), help="distribute one model over several devices")
    add("--beams", type=int, default=1, help="1: greedy decoding")
    add("--tokens-per-batch", type=int, default=4096, help="lower it if memory runs out")
    add("--shard", metavar="K/N", help="do part K of N; a run without --shard merges the parts")
    add = parser.add_argument_group("checks").add_argument
    add("--skip-check", nargs="+", default=[], choices=CHECKS, help="checks that are not applied")
    add("--quality", metavar="MODEL", help="a cross-lingual embedder that scores each translation")
    add("--quality-min", type=float, default=0.5, help="minimum cosine of English and translation")
    arguments = TranslateArguments(**vars(parser.parse_args(argv)))
    arguments.languages = parse_languages(arguments.languages)
    return arguments
