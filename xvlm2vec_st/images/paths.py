"""Paths of images in folders and archives, and the check that they stay there."""

import os
import re
from pathlib import Path

from xvlm2vec_st.utils.texts import printable

MARK = "::"
ARCHIVES = (".zip", ".tar", ".parquet")
IN_ARCHIVE = re.compile(rf"(.*?(?:{'|'.join(map(re.escape, ARCHIVES))})){MARK}(.*)", re.DOTALL)


def split_place(place: str) -> tuple[str, str | None]:
    """(file, name in it); the name is None if the file is not an archive.

    >>> split_place("a/all.zip::b/1.png"), split_place("a/b::1.png")
    (('a/all.zip', 'b/1.png'), ('a/b::1.png', None))
    """
    match = IN_ARCHIVE.fullmatch(place)
    return (match[1], match[2]) if match else (place, None)


def image_place(name: str, root: str | Path) -> str:
    """The place of a row's image: a path under the folder `root`, or ARCHIVE::NAME.

    >>> image_place("a/1.png", "all.zip"), image_place("1.png", Path("c"))
    ('all.zip::a/1.png', 'c/1.png')
    """
    if Path(root).suffix in ARCHIVES:
        return f"{root}{MARK}{name}"
    return str(Path(root) / name)


def check_inside(place: str, roots: list[str]) -> None:
    """Refuse an image outside all of `roots`; links are followed.

    Args:
        place: see `image_place`.
        roots: real paths of folders and archives.

    Raises:
        ValueError: the image lies outside.
    """
    file, _ = split_place(place)
    real = os.path.realpath(file)
    if not any(real == root or real.startswith(os.path.join(root, "")) for root in roots):
        raise ValueError(
            f"image {printable(place)} lies outside {printable(', '.join(roots))}; move it there, pass "
            "images= with its folder, or allow it with outside_images=True"
        )
