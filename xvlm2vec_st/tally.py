"""What must hold of a corpus as a whole, whatever its number of files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Tally:
    """Counts rows as they are read: each id once, every language in some row.

    Ids are kept as numbers of 64 bits: that two ids of a million share one has a chance of 1 in 10^7.

    Args:
        languages: those asked for.

    Attributes:
        rows: how many were read.
    """

    def __init__(self, languages: Sequence[str]) -> None:
        self.languages = languages
        self.rows = 0
        self._ids: set[int] = set()
        self._found: set[str] = set()

    def add(self, row: Any, path: Path) -> None:
        """Count a `ParallelRow` of a file.

        Raises:
            ValueError: an earlier row has its id.
        """
        if hash(row.id) in self._ids:
            raise ValueError(f"{path}: id {row.id!r} stands in two rows of the corpus; give each row its own")
        self._ids.add(hash(row.id))
        self._found |= row.translations.keys()
        self.rows += 1

    def check(self, paths: Sequence[Path]) -> None:
        """At the end of all files.

        Raises:
            ValueError: no rows; a language that no row has.
        """
        names = ", ".join(map(str, paths[:3])) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
        if not self.rows:
            raise ValueError(f"{names or 'no files'}: no rows")
        for language in self.languages:
            if language not in self._found:
                raise ValueError(f"{names}: no row has language {language!r}; ask for one that is there")


def corpus_files(paths: Sequence[str | Path]) -> list[Path]:
    """The files of a corpus, in absolute folders: pictures are found beside them.

    Raises:
        ValueError: none, or one that is missing.
    """
    if not paths:
        raise ValueError("no corpus files; name at least one")
    for path in paths:
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such corpus file")
    return [Path(path).parent.resolve() / Path(path).name for path in paths]
