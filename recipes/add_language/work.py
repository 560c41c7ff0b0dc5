"""The work folder of `add_language`: what a changed command may keep, and where the corpus stays."""

import argparse
from pathlib import Path

from xvlm2vec_st.utils.folders import move_file, read_object, remove, write_note

# Options that the translated corpus depends on. Translation is the longest step.
CORPUS = ("corpus", "mini", "images", "languages", "known_languages", "translator", "dtype", "seed")
# Files that depend on the other options too.
LATER = ("train.jsonl", "held_out.jsonl", "before.json", "after.json", "model", "model.partial", "mini-*")
LATER += ("final", "moving.json", "mini.part*")
# Everything that a run writes in OUT.work.
PARTS = (*LATER, "arguments.json*", "parallel.*", "english*", "train.*", "held_out.*", "*.part.json")
PARTS += ("model.partial.lock", "mini-*", "replaced")


def drop_outdated_work(work: Path, args: argparse.Namespace) -> None:
    """Delete the files in OUT.work that depend on changed options, and note the new options.

    Raises:
        ValueError: OUT.work holds another corpus, and --overwrite is missing.
    """
    settings = {key: str(value) for key, value in vars(args).items() if key not in ("overwrite", "out")}
    note = work / "arguments.json"
    before = read_object(note, f"delete {work}, or choose another --out") if note.is_file() else settings
    changed = [key for key in settings if settings[key] != before.get(key)]
    if other := [key for key in changed if key in CORPUS]:
        if not args.overwrite:
            raise ValueError(
                f"{work} was begun with other arguments ({', '.join(other)}), which its corpus depends on; "
                "run with the same ones, choose another --out, or pass --overwrite to drop it"
            )
        remove(work)
    elif changed:
        print(f"other arguments than before ({', '.join(changed)}): keeping the corpus, repeating the rest")
        for path in (path for pattern in LATER for path in work.glob(pattern)):
            remove(path)
    write_note(work, settings)


def corpus_folder(out: Path) -> Path:
    """The folder in which the corpus of a finished model stays.

    >>> corpus_folder(Path("models/xvlm2vec-pt")).as_posix()
    'models/xvlm2vec-pt.corpus'
    """
    return out.with_name(out.name + ".corpus")


def keep_corpus(corpus: Path, folder: Path, *, replace: bool = True) -> Path:
    """Move a corpus, its refused rows and its images to `folder`; returns the corpus' new path.

    `folder` lies beside the corpus' folder, so that relative image paths stay valid. The corpus moves last:
    after a kill, another call moves the rest.

    Raises:
        ValueError: a file exists already, and `replace` is False. It is left unchanged.
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
                    f"{place} cannot be written ({error.strerror}); the model is complete in its folder, and "
                    f"its corpus in {corpus}: move {folder} away and run the same command again"
                ) from error
    return folder / corpus.name
