"""The metadata of MMMEB's tasks: languages, kind of task, and where their statistics are stored."""

import os
from pathlib import Path

from mteb.abstasks.task_metadata import TaskMetadata

from mmmeb_tasks.data.languages import LANGUAGES
from mmmeb_tasks.data.layout import Kind


def langscripts(*languages: str) -> dict[str, list[str]]:
    """Languages of the files -> mteb's subsets and codes.

    >>> langscripts("en", "fr")
    {'en': ['eng-Latn'], 'fr': ['fra-Latn']}
    """
    return {language: [LANGUAGES[language]] for language in languages}


class MMMEBMetadata(TaskMetadata):
    """mteb's metadata, and the kind of MMMEB task, from which our encoder makes its texts."""

    kind: Kind

    @property
    def descriptive_stat_path(self) -> Path:
        """Statistics of the data: with this package; of data that it does not hold, mteb's cache."""
        packaged = Path(__file__).parent / "statistics" / f"{self.name}.json"
        if packaged.is_file():
            return packaged
        cache = Path(os.environ.get("MTEB_CACHE", Path.home() / ".cache" / "mteb"))
        return cache / "descriptive_stats" / f"{self.name}.json"
