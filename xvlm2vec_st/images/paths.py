"""Where a row's image lies: in the folder or archive that was named, unless the caller allows more."""

import os
import re
from pathlib import Path

from xvlm2vec_st.utils.texts import printable

MARK = "::"
KINDS = (".zip", ".tar", ".parquet")
IN_ARCHIVE = re.compile(rf"(.*?(?:{'|'.join(map(re.escape, KINDS))})){MARK}(.*)", re.DOTALL)


def split_place(place: str) -> tuple[str, str | None]:
    """(file, name in it, or None where the file is no archive).

    >>> split_place("a/all.zip::b/1.png"), split_place("a/b::1.png")
    (('a/all.zip', 'b/1.png'), ('a/b::1.png', None))
    """
    found = IN_ARCHIVE.fullmatch(place)
    return (found[1], found[2]) if found else (place, None)


def image_place(name: str, root: str | Path) -> str:
    """A row's image by its name: a path under the folder `root`, or ARCHIVE::NAME.

    >>> image_place("a/1.png", "all.zip"), image_place("1.png", Path("c"))
    ('all.zip::a/1.png', 'c/1.png')
    """
    if Path(root).suffix in KINDS:
        return f"{root}{MARK}{name}"
    return str(Path(root) / name)


def check_inside(place: str, roots: list[str]) -> None:
    """Refuse an image that lies outside all of `roots`, whatever links lead there.

    Args:
        place: as `image_place` gives it.
        roots: real paths of folders and archives.

    Raises:
        ValueError: it lies outside, with where.
    """
    file, _ = split_place(place)
    real = os.path.realpath(file)
    if not any(real == root or real.startswith(os.path.join(root, "")) for root in roots):
        raise ValueError(
            f"image {printable(place)} lies outside {printable(', '.join(roots))}; move it there, pass "
            "--images with the folder it is in, or allow it: --outside-images (outside_images=True)"
        )
