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
        self._present: set[str] = set()

    def add(self, row: ParallelRow, path: Path) -> None:
        """Count a row of a file.

        Raises:
            ValueError: an earlier row has the same id.
        """
        if hash(row.id) in self._ids:
            raise ValueError(f"{path}: id {row.id!r} stands in two rows of the corpus; give each row its own")
        self._ids.add(hash(row.id))
        self._present |= row.translations.keys()
        self.rows += 1

    def finish(self, paths: Sequence[Path]) -> None:
        """Check what can only be known at the end of all files.

        Raises:
            ValueError: there are no rows; no row has one of the languages.
        """
        if not self.rows:
            raise ValueError(f"{list_files(paths) or 'no files'}: no rows")
        refuse_missing([code for code in self.languages if code not in self._present], paths)


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
