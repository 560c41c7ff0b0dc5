"""Corpora larger than memory: rows in a seeded order, dealt to processes, from any place on."""

import os
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from xvlm2vec_st.data.corpus import SOURCE, check_languages, lines_of, read_files, row_of
from xvlm2vec_st.data.corpus_checks import Tally, check_present, corpus_files, names_of
from xvlm2vec_st.images.archives import images_place
from xvlm2vec_st.images.paths import check_inside, image_place
from xvlm2vec_st.utils.texts import printable


class ParallelStream(IterableDataset):
    """The rows of corpus files, epoch after epoch without end, in an order that a seed decides.

    An epoch takes the files in a new order and mixes their lines through a buffer. The order is
    the same in every process; batches go round the processes (and a process's loading workers) in turn,
    so that one process that accumulates sees what several see at once. A line is parsed where it is
    used, an image is opened there too: passing over what a stopped run has seen costs reading alone.

    Args:
        paths: corpus files, as `load_parallel` reads them.
        languages: the translations to take.
        images: the folder or archive of the images; default: a file's own folder.
        outside_images: whether rows may name images outside that folder.
        buffer: lines that are mixed; all of them lie in memory.
        seed: of the order.

    Attributes:
        passed_over: batches a process has had before; they are not parsed again.

    Raises:
        ValueError: as `load_parallel`, but for images; while reading too, as `row_of`, and where the
            files have another number of rows than at the start.

    Example::

        stream = ParallelStream(sorted(Path("corpus").glob("*.jsonl")), ["it", "de"], images="images.zip")
        trainer = DistillationTrainer(student, args, train_dataset=stream, loss=loss, languages=["it", "de"])
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        languages: Sequence[str],
        *,
        images: str | Path | None = None,
        outside_images: bool = False,
        buffer: int = 10_000,
        seed: int = 0,
    ) -> None:
        check_languages(languages)
        self.paths = corpus_files(paths)
        self.languages, self.images = tuple(languages), images_place(images)
        self.outside_images = outside_images
        self.buffer, self.seed = buffer, seed
        check_present(self.paths, languages)
        tally = Tally(languages)
        for path, row in read_files(self.paths, languages):
            tally.add(row, path)
        tally.check(self.paths)
        self.rows = tally.rows
        self.column_names = ["id", "image", SOURCE, *self.languages]
        self.passed_over = 0
        self.deal(1, 0, 1)

    def deal(self, batch_size: int, process: int, processes: int) -> None:
        """Say which batches are this process's."""
        self.batch_size, self.process, self.processes = batch_size, process, processes

    def __iter__(self) -> Iterator[dict[str, Any] | None]:
        """This process's rows; None for those of batches passed over."""
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        for number, (path, line_number, line) in enumerate(self.ordered()):
            turn, process = divmod(number // self.batch_size, self.processes)
            if process == self.process and turn % workers == worker:
                yield None if turn < self.passed_over else self.parsed(path, line_number, line)

    def ordered(self) -> Iterator[tuple[Path, int, bytes]]:
        """(file, line number, line) of every row in the order of training, without end."""
        for epoch in count():
            rng = random.Random(f"{self.seed}/{epoch}")
            held: list[tuple[Path, int, bytes]] = []
            found = 0
            for path in rng.sample(self.paths, len(self.paths)):
                for number, line in self.lines_of(path):
                    found += 1
                    if len(held) < self.buffer:
                        held.append((path, number, line))
                    else:
                        place = rng.randrange(self.buffer)
                        yield held[place]
                        held[place] = (path, number, line)
            if found != self.rows:
                raise ValueError(
                    f"{names_of(self.paths)}: {self.rows:,} rows when the run started, {found:,} now; leave "
                    "a corpus alone while it trains, and start anew with the changed one"
                )
            rng.shuffle(held)
            yield from held

    def lines_of(self, path: Path) -> Iterator[tuple[int, bytes]]:
        """As `reading.lines_of`; a file that was removed meanwhile is named."""
        try:
            yield from lines_of(path)
        except OSError as error:
            raise ValueError(
                f"{path} cannot be read any more ({error.strerror}); leave a corpus alone while it trains"
            ) from error

    def parsed(self, path: Path, number: int, line: bytes) -> dict[str, Any]:
        """A line as `load_parallel` has a row."""
        row = row_of(path, number, line, self.languages)
        image = None
        if row.image is not None:
            root = self.images or path.parent
            image = image_place(row.image, root)
            if not self.outside_images:
                try:
                    check_inside(image, [os.path.realpath(root)])
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}, row {printable(row.id)}: {error}") from error
        return {
            "id": row.id,
            "image": image,
            SOURCE: row.english,
            **dict.fromkeys(self.languages),
            **row.translations,
        }

    def collating(self, collator: Callable[[list], dict]) -> Callable[[list], dict]:
        """The collator, for batches of None too: nothing."""
        return Collating(collator)


class Collating:
    """A collator that leaves a batch passed over alone; a class, for loading workers must pickle it."""

    def __init__(self, collator: Callable[[list], dict]) -> None:
        self.collator = collator

    def __call__(self, rows: list[dict[str, Any] | None]) -> dict[str, Any]:
        """The batch, empty where it was passed over."""
        return {} if rows[0] is None else self.collator(rows)
