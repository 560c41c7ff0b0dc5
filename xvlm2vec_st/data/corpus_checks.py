"""What must hold of a corpus as a whole, whatever its number of files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xvlm2vec_st.data.corpus import lines_of, record_of
from xvlm2vec_st.utils.lines import decoded
from xvlm2vec_st.utils.texts import printable


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
        if not self.rows:
            raise ValueError(f"{names_of(paths) or 'no files'}: no rows")
        refuse_missing([code for code in self.languages if code not in self._found], paths)


def check_present(paths: Sequence[Path], languages: Sequence[str]) -> None:
    """Find a row of each language; reading stops when all are found, as a rule after a few rows.

    Raises:
        ValueError: a language that no row has; a line that is no JSON object.
    """
    missing, rows = set(languages), 0
    for path in paths:
        for number, line in lines_of(path):
            if not missing:
                return
            rows += 1
            text = decoded(path, number, line)
            try:
                record = record_of(text, number)
            except ValueError as error:
                raise ValueError(f"{path}, {error}") from error
            missing.difference_update([key for key, value in record.items() if value is not None])
    if rows:
        refuse_missing([code for code in languages if code in missing], paths)


def refuse_missing(missing: Sequence[str], paths: Sequence[Path]) -> None:
    """Name the languages that no row has, if any."""
    if missing:
        more = f", nor {len(missing) - 1:,} others" if len(missing) > 1 else ""
        raise ValueError(
            f"{names_of(paths)}: no row has language {missing[0]!r}{more}; ask for one that is there"
        )


def names_of(paths: Sequence[Path]) -> str:
    """Files for a message: three, and how many more."""
    return ", ".join(map(str, paths[:3])) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def corpus_files(paths: Sequence[str | Path]) -> list[Path]:
    """The files of a corpus, in absolute folders: images are found beside them.

    Raises:
        ValueError: none, or one that is missing.
    """
    if not paths:
        raise ValueError("no corpus files; name at least one")
    for path in paths:
        if not Path(path).is_file():
            raise ValueError(f"{printable(path)}: no such corpus file")
    return [Path(path).parent.resolve() / Path(path).name for path in paths]
