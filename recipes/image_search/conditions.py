"""Conditions on the rows of an index, in SQL."""

from collections.abc import Collection
from datetime import date, datetime, time, timedelta
from pathlib import Path

from .scan import FileState

# The years whose nanoseconds since 1970 fit into 64 bits.
FIRST_DAY, LAST_DAY = date(1678, 1, 1), date(2261, 12, 31)


def where(folder: str | None, since: date | None, until: date | None) -> str:
    """The condition of a search in SQL; empty without one.

    >>> where("holiday/Rome/", None, None), where(None, None, None)
    ("starts_with(path, 'holiday/Rome/')", '')
    """
    parts = []
    if folder and (below := folder.strip("/").removeprefix("./")) not in ("", "."):
        parts.append(f"starts_with(path, {quoted(below + '/')})")
    if since:
        parts.append(f"mtime_ns >= {midnight_ns(since)}")
    if until:
        parts.append(f"mtime_ns < {midnight_ns(min(until, LAST_DAY) + timedelta(days=1))}")
    return " AND ".join(parts)


def inside_root(folder: str, root: Path) -> str:
    """A folder relative to the root, where its whole path is given; else as it is.

    >>> inside_root("/photos/Rome", Path("/photos")), inside_root("Rome", Path("/photos"))
    ('Rome', 'Rome')
    """
    return Path(folder).relative_to(root).as_posix() if Path(folder).is_relative_to(root) else folder


def midnight_ns(day: date) -> int:
    """Nanoseconds from 1970 to the start of a day, in local time; of the nearest day that fits into 64 bits.

    >>> midnight_ns(date.max) < 2**63, midnight_ns(date.min) > -(2**63)
    (True, True)
    """
    fitting = min(max(day, FIRST_DAY), LAST_DAY + timedelta(days=1))
    return int(datetime.combine(fitting, time.min).timestamp()) * 10**9


def one_of(column: str, texts: Collection[str]) -> str:
    """The condition that a column holds one of some texts.

    >>> one_of("path", ["a", "it's"])
    "path IN ('a', 'it''s')"
    """
    return f"{column} IN ({', '.join(map(quoted, texts))})"


def quoted(text: str) -> str:
    """A text in SQL.

    >>> quoted("it's")
    "'it''s'"
    """
    return "'" + text.replace("'", "''") + "'"


def any_state(files: Collection[FileState]) -> str:
    """The condition that a row is of one of some files, in that state.

    >>> any_state([FileState("a.png", 5, 9)])
    "(path = 'a.png' AND size = 5 AND mtime_ns = 9)"
    """
    states = (f"(path = {quoted(path)} AND size = {size} AND mtime_ns = {mtime})" for path, size, mtime in files)
    return " OR ".join(states)
