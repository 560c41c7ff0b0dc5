"""Build a parallel corpus from English rows: translate, check, repair.

    xvlm2vec translate --corpus english.jsonl --languages it es fr de pt ja --out parallel.jsonl
    xvlm2vec translate --mmeb MSCOCO_i2t A-OKVQA --images MMEB-train --languages it --out parallel.jsonl
    xvlm2vec translate --corpus messages.po --languages it --translator none --out parallel.jsonl
    xvlm2vec translate --corpus cldr --languages pt zh --translator none --out names.jsonl   # offline

Needs `pip install ".[train,corpus]"`. Unfinished work lies in OUT.work; run the same command again to continue.
For several processes, run `--shard 1/4` to `--shard 4/4`, then once without; or `accelerate launch
--num_processes 4 -m xvlm2vec_recipes.translate …`. A report lies beside OUT, as .md and .html, and the refused rows, as
.refused.jsonl.
"""

from collections.abc import Callable
from functools import partial

from ..shared.command import run_prepared
from .options import parse_args


def prepare() -> Callable[[], object]:
    """The work that the command line asks for."""
    arguments = parse_args(None, __doc__)
    from .command import translate  # it imports torch

    return partial(translate, arguments)


def main() -> None:
    """Run the command line."""
    run_prepared(prepare)


if __name__ == "__main__":
    main()
