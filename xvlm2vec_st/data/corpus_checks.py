"""Checks of a corpus as a whole, over all its files."""

from collections.abc import Sequence
from pathlib import Path

from xvlm2vec_st.data.corpus import ParallelRow, iter_lines, parse_object
from xvlm2vec_st.utils.lines import decode_line
from xvlm2vec_st.utils.texts import printable


class CorpusChecks:
    """Check rows as they are read: every id is unique, and every language is in some row.

    Ids are stored as 64-bit hashes. The chance that two of a million ids share one is 1 in 10^7.

    Args:
        languages: the requested languages.

    Attributes:
        rows: number of rows so far.
    """

    def __init__(self, languages: Sequence[str]) -> None:
        self.languages = languages
        self.rows = 0
        self._ids: set[int] = set()
        self._missing = set(languages)

    def add(self, rows: Sequence[ParallelRow], path: Path) -> None:
        """Count rows of a file.

        Raises:
            ValueError: an earlier row has the same id.
        """
        ids = {hash(row.id) for row in rows}
        if len(ids) < len(rows) or not self._ids.isdisjoint(ids):
            self._refuse_twice(rows, path)
        self._ids |= ids
        self._missing = self._missing.difference(*(row.translations for row in rows)) if self._missing else set()
        self.rows += len(rows)

    def _refuse_twice(self, rows: Sequence[ParallelRow], path: Path) -> None:
        """Name the first id that an earlier row has."""
        seen = set(self._ids)
        for row in rows:
            if hash(row.id) in seen:
                raise ValueError(f"{path}: id {row.id!r} stands in two rows of the corpus; give each row its own")
            seen.add(hash(row.id))

    def finish(self, paths: Sequence[Path]) -> None:
        """Check what can only be known at the end of all files.

        Raises:
            ValueError: there are no rows; no row has one of the languages.
        """
        if not self.rows:
            raise ValueError(f"{list_files(paths) or 'no files'}: no rows")
        refuse_missing([code for code in self.languages if code in self._missing], paths)


def check_present(paths: Sequence[Path], languages: Sequence[str]) -> None:
    """Look for a row of each language; usually a few rows are enough.

    Raises:
        ValueError: no row has one of the languages; a line is not a JSON object.
    """
    missing, rows = set(languages), 0
    for path in paths:
        for number, line in iter_lines(path):
            if not missing:
                return
            rows += 1
            text = decode_line(path, number, line)
            try:
                record = parse_object(text, number)
            except ValueError as error:
                raise ValueError(f"{path}, {error}") from error
            missing.difference_update([key for key, value in record.items() if value is not None])
    if rows:
        refuse_missing([code for code in languages if code in missing], paths)


def refuse_missing(missing: Sequence[str], paths: Sequence[Path]) -> None:
    """Raise a ValueError that names the missing languages, if there are any."""
    if missing:
        more = f", nor {len(missing) - 1:,} others" if len(missing) > 1 else ""
        raise ValueError(
            f"{list_files(paths)}: no row has language {missing[0]!r}{more}; request a language that is there"
        )


def list_files(paths: Sequence[Path]) -> str:
    """Three file names for a message, and the number of the rest."""
    return ", ".join(map(str, paths[:3])) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def corpus_files(paths: Sequence[str | Path]) -> list[Path]:
    """The files of a corpus, in absolute folders, because image names are relative to them.

    Raises:
        ValueError: there are no files, or one is missing.
    """
    if not paths:
        raise ValueError("no corpus files; name at least one")
    for path in paths:
        if not Path(path).is_file():
            raise ValueError(f"{printable(path)}: no such corpus file")
    return [Path(path).parent.resolve() / Path(path).name for path in paths]
