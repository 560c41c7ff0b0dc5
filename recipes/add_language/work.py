"""What of an unfinished `recipes.add_language` a changed command may keep, and where its corpus stays."""

import argparse
from pathlib import Path

from xvlm2vec_st.utils.folders import move_file, read_object, remove, write_note

# What the translated corpus depends on; nothing else of a run takes as long.
CORPUS = ("corpus", "mini", "images", "languages", "keep", "translator", "dtype", "seed")
# What depends on all other options too.
LATER = ("train.jsonl", "held_out.jsonl", "before.json", "after.json", "model", "model.partial", "mini-*")
LATER += ("final", "moving.json", "mini.part*")
# All that a run writes in OUT.work.
PARTS = (*LATER, "arguments.json*", "parallel.*", "english*", "train.*", "held_out.*", "*.part.json")
PARTS += ("model.partial.lock", "mini-*", "replaced")


def settle(work: Path, args: argparse.Namespace) -> None:
    """Make OUT.work the work of this command: drop what was made with other options.

    Raises:
        ValueError: it holds another corpus, and --overwrite is not given.
    """
    settings = {key: str(value) for key, value in vars(args).items() if key not in ("overwrite", "out")}
    note = work / "arguments.json"
    before = read_object(note, f"delete {work}, or choose another --out") if note.is_file() else settings
    changed = [key for key in settings if settings[key] != before.get(key)]
    if other := [key for key in changed if key in CORPUS]:
        if not args.overwrite:
            raise ValueError(
                f"{work} was begun with other arguments ({', '.join(other)}), of which its corpus is made; "
                "run with the same, choose another --out, or pass --overwrite to drop it"
            )
        remove(work)
    elif changed:
        print(f"other arguments than before ({', '.join(changed)}): the corpus stays, the rest is made again")
        for path in (path for pattern in LATER for path in work.glob(pattern)):
            remove(path)
    write_note(work, settings)


def corpus_folder(out: Path) -> Path:
    """Where the corpus of a finished model stays.

    >>> corpus_folder(Path("models/xvlm2vec-pt")).as_posix()
    'models/xvlm2vec-pt.corpus'
    """
    return out.with_name(out.name + ".corpus")


def keep_corpus(corpus: Path, folder: Path, *, replace: bool = True) -> Path:
    """Move a corpus, what was refused, and the images that were written for it; returns its new place.

    `folder` lies beside the corpus' own, so that its relative paths of images stay right. The corpus moves
    last; after a kill the rest moves when this is called again.

    Raises:
        ValueError: without `replace`, a file that is there already, and is left as it is.
    """
    images = corpus.with_suffix(".images").glob("*")
    for file in (*images, corpus.with_suffix(".refused.jsonl"), corpus):
        place = folder / file.relative_to(corpus.parent)
        if file.exists():
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                move_file(file, place, replace=replace)
            except OSError as error:
                raise ValueError(
                    f"{place} cannot be written ({error.strerror}); the model is whole in its folder, its "
                    f"corpus in {corpus}: move {folder} away and run the same command again"
                ) from error
    return folder / corpus.name
