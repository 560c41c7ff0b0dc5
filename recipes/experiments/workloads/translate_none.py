"""Check a corpus that people translated: `xvlm2vec translate --translator none`."""

import shutil
from hashlib import sha256
from pathlib import Path

from mmmeb_tasks.mini.write import write_corpus
from recipes.translate.command import main

TITLE = "translate --translator none, 10,000 rows of four languages"
SIZES = {"scenes": 5_000}  # two rows each
CODES = ("it", "es", "fr", "de")


def prepare(folder: Path, *, scenes: int) -> None:
    """Write the mini world's corpus: captions and instructions, as people translated them."""
    write_corpus(folder / "corpus", ["en", *CODES], scenes=scenes)


def run(folder: Path) -> str:
    """Check, and write the corpus and its report; returns a digest of all files."""
    out = folder / "out" / "parallel.jsonl"
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir()
    source = folder / "corpus" / "parallel.jsonl"
    main(["--corpus", str(source), "--languages", *CODES, "--translator", "none", "--out", str(out)])
    digest = sha256()
    for path in sorted(out.parent.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
