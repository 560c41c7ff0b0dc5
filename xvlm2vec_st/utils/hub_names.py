"""Names of models: a folder, or OWNER/NAME on the Hub."""

import os


def check_folder(name: str | None) -> None:
    """Refuse a name that can only be a folder, if it does not exist; the Hub would be asked for it.

    Raises:
        ValueError: the folder does not exist.

    >>> check_folder("TIGER-Lab/VLM2Vec-LoRA")
    """
    if name is None or os.path.isdir(name):  # Path.is_dir raises if the name is too long
        return
    if name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1:
        raise ValueError(f"{name}: no such folder; a name on the Hub is OWNER/NAME")
