"""What the published benchmark consists of: seven kinds of file, 29 files in all.

Source: the data page swap-uniba/MMMEB-Benchmark and arXiv 2503.09313.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmmeb_tasks.data.layout import Kind, data_file

HUB_DATASET = "swap-uniba/MMMEB-Benchmark"

FIVE = ("en", "it", "es", "fr", "de")
TWO = ("en", "fr")


@dataclass(frozen=True, slots=True)
class Published:
    """One task's files; `queries` and `candidates` a query are (fewest, most), both inclusive."""

    task: str
    dataset: str
    kind: Kind
    languages: tuple[str, ...]
    maximum: int
    queries: tuple[int, int]
    candidates: tuple[int, int]

    def file(self, root: Path, language: str) -> Path:
        """Where one language's rows are."""
        return data_file(root, self.dataset, language, self.maximum, self.kind)


# "About 260" and "at most" of the source are ranges here.
TASKS: tuple[Published, ...] = (
    Published("XM3600I2TRanking", "xm", "i2t", FIVE, 1000, (3600, 3600), (1000, 1000)),
    Published("XM3600T2IRanking", "xm", "t2i", FIVE, 1000, (3600, 3600), (1000, 1000)),
    Published("XTD10I2TRanking", "xtd", "i2t", FIVE, 1000, (1000, 1000), (1000, 1000)),
    Published("XTD10T2IRanking", "xtd", "t2i", FIVE, 1000, (1000, 1000), (1000, 1000)),
    Published("ImageNetMultilingual", "imagenet-1k-val", "c", FIVE, 1000, (1000, 1000), (627, 632)),
    Published("MaXMRanking", "maxm_v1", "vqa", TWO, 100, (240, 280), (2, 100)),
    Published("Flickr30kEntitiesGrounding", "flickr30k_entities", "vg", TWO, 1000, (1, 1000), (2, 1000)),
)


def published(task: str) -> Published:
    """A task's row of the table.

    >>> published("MaXMRanking").languages
    ('en', 'fr')
    """
    return next(row for row in TASKS if row.task == task)


def files(root: Path) -> Iterator[tuple[Published, str, Path]]:
    """Every file that the benchmark has: task, language, where it is.

    >>> sum(1 for _ in files(Path("data")))
    29
    """
    for row in TASKS:
        for language in row.languages:
            yield row, language, row.file(root, language)
