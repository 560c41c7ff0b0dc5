"""Images that a page shows, copied beside it."""

import hashlib
import html
import re
import shutil
from pathlib import Path

from xvlm2vec_st.utils.folders import whole_file


def copied(source: Path, folder: Path) -> str:
    """Copy an image into `folder` under a name of its content; returns the name.

    Images of one name stay apart, those of an earlier page are not taken for others, and the name is safe in
    an address, whatever the image's own is.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "a#b?.PNG").write_bytes(b"pixels")
    >>> copied(folder / "a#b?.PNG", folder)
    '6ec9c2b0eb140107.png'
    """
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    suffix = source.suffix.lower()
    name = digest + (suffix if re.fullmatch(r"\.[a-z0-9]{1,5}", suffix) else "")
    if not (folder / name).exists():
        with whole_file(folder / name) as part:
            shutil.copy(source, part)
    return name


def image_tag(source: Path, folder: Path, *, css: str = "") -> str:
    """An `<img>` of a copy in `folder`, which lies beside the page."""
    name = copied(source, folder)
    return f'<img class="{html.escape(css)}" src="{html.escape(folder.name)}/{name}" alt="">'
