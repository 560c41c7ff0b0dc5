"""Notes that all images of a corpus could be opened, in the cache of `datasets`.

    CACHE/xvlm2vec_images/CORPUS.json    CORPUS: hash of the corpus files' paths and of the folder of images

A note holds the number of images and a hash of their states, in the order of the corpus. The state of an image is its
path, the path behind links, its size, and the times of the last change of its content and of the file itself: what is
edited, replaced (also by an older file of the same size), removed or moved has another state. An image in an archive
has the archive's. To find them takes a look at each file's entry in its folder; no file is opened.
"""

import json
import os
import stat
from collections.abc import Iterable, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path

import PIL
from datasets import config, is_caching_enabled
from PIL import Image

from xvlm2vec_st.images.paths import split_place

NAME = "xvlm2vec_images"
VERSION = 1  # a new number when the check of an image changes


class ImageNote:
    """The note of one corpus.

    Args:
        paths: the corpus files.
        root: folder or archive of the images; None: the folder of each file.
    """

    def __init__(self, paths: Sequence[Path], root: Path | None) -> None:
        corpus = sha256(repr([[*map(str, paths)], str(root)]).encode())
        self.file = Path(config.HF_DATASETS_CACHE).expanduser() / NAME / f"{corpus.hexdigest()[:32]}.json"
        # Many images share a folder or an archive; both are looked up once a check.
        self.real_folder = cache(os.path.realpath)
        self.archive_state = cache(self.file_state)

    def state(self, place: str) -> str:
        """What changes if an image does; one that is missing has a state too."""
        file, name = split_place(place)
        return repr((place, self.file_state(file) if name is None else self.archive_state(file)))

    def file_state(self, file: str) -> tuple[str | int | None, ...]:
        """The path behind links, size and times of a file; or the number of the system's error."""
        try:
            facts = os.lstat(file)
            if stat.S_ISLNK(facts.st_mode):
                real, facts = os.path.realpath(file), os.stat(file)
            else:
                real = os.path.join(self.real_folder(os.path.dirname(file)), os.path.basename(file))
        except (OSError, ValueError) as error:
            return (getattr(error, "errno", None),)
        return real, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns

    def state_of_all(self, states: Iterable[list[str]], roots: list[str] | None) -> str:
        """The content of a note: number and hash of all states, and of what else decides whether images open."""
        number, digest = 0, sha256(repr((VERSION, PIL.__version__, Image.MAX_IMAGE_PIXELS, roots)).encode())
        for part in states:
            number += len(part)
            digest.update("\n".join([*part, ""]).encode())
        return json.dumps({"images": number, "states": digest.hexdigest()})

    def holds(self, state: str) -> bool:
        """Whether the images were opened in this state."""
        return is_caching_enabled() and self.file.is_file() and self.file.read_bytes() == state.encode()

    def write(self, state: str) -> None:
        """Note that all images could be opened.

        Half a note, or one that another run writes at the same time, is none: then images are opened again.
        """
        if is_caching_enabled():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_bytes(state.encode())
