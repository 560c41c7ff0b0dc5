"""What of an unfinished `recipes.add_language` a changed command may keep, and where its corpus stays."""

import argparse
import json
import shutil
from pathlib import Path

# What the translated corpus depends on; nothing else of a run takes as long.
CORPUS = ("corpus", "mini", "images", "languages", "keep", "translator", "dtype", "seed")
# What depends on all other options too.
LATER = ("train.jsonl", "held_out.jsonl", "before.json", "after.json", "model", "model.partial", "mini-*")


def settle(work: Path, args: argparse.Namespace) -> None:
    """Make OUT.work the work of this command: drop what was made with other options.

    Raises:
        ValueError: it holds another corpus, and --overwrite is not given.
    """
    settings = {key: str(value) for key, value in vars(args).items() if key not in ("overwrite", "out")}
    note = work / "arguments.json"
    before = json.loads(note.read_text()) if note.is_file() else settings
    changed = [key for key in settings if settings[key] != before.get(key)]
    if other := [key for key in changed if key in CORPUS]:
        if not args.overwrite:
            raise ValueError(
                f"{work} was begun with other arguments ({', '.join(other)}), of which its corpus is made; "
                "run with the same, choose another --out, or pass --overwrite to drop it"
            )
        shutil.rmtree(work)
    elif changed:
        print(f"other arguments than before ({', '.join(changed)}): the corpus stays, the rest is made again")
        for path in (path for pattern in LATER for path in work.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    work.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(settings, indent=2) + "\n")


def corpus_folder(out: Path) -> Path:
    """Where the corpus of a finished model stays.

    >>> corpus_folder(Path("models/xvlm2vec-pt")).as_posix()
    'models/xvlm2vec-pt.corpus'
    """
    return out.with_name(out.name + ".corpus")


def keep_corpus(corpus: Path, folder: Path) -> Path:
    """Move a corpus, what was refused, and the pictures that were written for it; returns its new place.

    `folder` stands beside the corpus' own, so that its relative paths of pictures stay right.
    """
    pictures = corpus.with_suffix(".pictures").glob("*")
    for file in (corpus, corpus.with_suffix(".refused.jsonl"), *pictures):
        place = folder / file.relative_to(corpus.parent)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.replace(place)
    return folder / corpus.name
