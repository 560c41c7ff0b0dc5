"""Open LanceDB tables, and say in a line what went wrong with one."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lancedb

from xvlm2vec_st.utils.failures import first_line

TABLE = "images"
SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
SOURCE = re.compile(r", [^ ,]+\.rs:\d+:\d+.*")  # where in LanceDB's own code


def connect(place: str | Path) -> Any:
    """LanceDB's connection to a folder or a URL."""
    return lancedb.connect(place if is_url(place) else os.path.abspath(place))


def find_table(place: str | Path) -> Any:
    """The table of an index; None if there is none. Makes no folder.

    Raises:
        ValueError: it is damaged, a server refuses, or the URL is of a kind that LanceDB does not know.
    """
    if not is_url(place) and not Path(place).is_dir():
        return None
    try:
        return connect(place).open_table(TABLE)
    except ValueError as error:
        if "was not found" in str(error):
            return None
        raise
    except RuntimeError as error:  # of the object store
        advice = "check address and credentials" if is_url(place) else "delete it, and index the images again"
        raise ValueError(f"{place} cannot be opened: {lance_reason(error)}; {advice}") from error


def is_url(place: str | Path) -> bool:
    """Whether an index lies behind a URL.

    >>> is_url("s3://bucket/photos"), is_url("photos.index")
    (True, False)
    """
    return "://" in str(place)


@contextmanager
def lance_errors(place: str | Path) -> Iterator[None]:
    """Turn LanceDB's RuntimeErrors into errors that end a command with one line.

    Raises:
        OSError: the system refused, as on a full disk.
        ValueError: anything else.
    """
    try:
        yield
    except RuntimeError as error:
        if match := SYSTEM_ERROR.search(str(error)):
            number = int(match[1])
            raise OSError(number, os.strerror(number), str(place)) from error
        raise ValueError(f"{place} cannot be read or written: {lance_reason(error)}; run the command again") from error


def is_missing_file(error: RuntimeError) -> bool:
    """Whether a file of the version that a query reads is gone: another run has deleted that version.

    >>> is_missing_file(RuntimeError("lance error: Not found: a/images.lance/data/1.lance, io.rs:1:2"))
    True
    """
    return "Not found" in str(error)


def lance_reason(error: Exception) -> str:
    r"""What LanceDB says, in a line and without the place in its own code.

    >>> lance_reason(RuntimeError("lance error: too small, /root/.cargo/io/utils.rs:17:20\nat"))
    'lance error: too small'
    """
    return SOURCE.sub("", first_line(error))
