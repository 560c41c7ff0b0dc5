"""Stream a corpus larger than memory: seeded shuffle, sharded by rank, resumable."""

import os
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from xvlm2vec_st.data.corpus import SOURCE, blocks, check_languages, iter_lines, parse_line, read_parallel
from xvlm2vec_st.data.corpus_checks import CorpusChecks, check_present, corpus_files, list_files
from xvlm2vec_st.images.archives import resolve_image_root
from xvlm2vec_st.images.paths import check_inside, image_place
from xvlm2vec_st.utils.texts import printable

Line = tuple[Path, int, bytes]
ROWS = 1000  # that are checked at a time


class ParallelStream(IterableDataset):
    """The rows of corpus files, epoch after epoch without end, in a seeded order.

    An epoch reads the files in a new order and shuffles their lines through a buffer. The order is the same in
    every process. Batches go to the processes, and to a process's loading workers, in turn, so that one process
    that accumulates gradients sees what several processes see at once. A line is parsed, and its image opened,
    where it is used: skipping the batches of a stopped run only reads lines.

    Args:
        paths: corpus files, as for `load_parallel`.
        languages: the translations to load.
        images: folder or archive of the images; default: the folder of each corpus file.
        outside_images: allow image paths that leave this folder.
        buffer: number of lines in the shuffle buffer; all of them are in memory.
        seed: of the order.

    Attributes:
        skipped_batches: batches that this process has had before; they are not parsed again.

    Raises:
        ValueError: see `load_parallel`, except for images. While reading: see `parse_line`; the files have
            another number of rows than at the start.

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
        self.languages, self.images = tuple(languages), resolve_image_root(images)
        self.outside_images = outside_images
        self.buffer, self.seed = buffer, seed
        check_present(self.paths, languages)
        checks = CorpusChecks(languages)
        for path in self.paths:
            for rows in blocks(read_parallel(path, languages), ROWS):
                checks.add(rows, path)
        checks.finish(self.paths)
        self.rows = checks.rows
        self.column_names = ["id", "image", SOURCE, *self.languages]
        self.skipped_batches = 0
        self.assign_rank(1, 0, 1)

    def assign_rank(self, batch_size: int, process: int, processes: int) -> None:
        """Set which batches belong to this process."""
        self.batch_size, self.process, self.processes = batch_size, process, processes

    def __iter__(self) -> Iterator[dict[str, Any] | None]:
        """Yield this process's rows; None for the rows of skipped batches."""
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        for number, (path, line_number, line) in enumerate(self.iter_shuffled()):
            turn, process = divmod(number // self.batch_size, self.processes)
            if process == self.process and turn % workers == worker:
                yield None if turn < self.skipped_batches else self.parse(path, line_number, line)

    def iter_shuffled(self) -> Iterator[Line]:
        """Yield (file, line number, line) of every row in training order, without end."""
        for epoch in count():
            rng = random.Random(f"{self.seed}/{epoch}")
            held: list[Line] = []
            rows = 0
            for path in rng.sample(self.paths, len(self.paths)):
                for number, line in self.iter_file(path):
                    rows += 1
                    if len(held) < self.buffer:
                        held.append((path, number, line))
                    else:
                        place = rng.randrange(self.buffer)
                        yield held[place]
                        held[place] = (path, number, line)
            if rows != self.rows:
                raise ValueError(
                    f"{list_files(self.paths)}: {self.rows:,} rows when the run started, {rows:,} now; do not "
                    "change a corpus while it trains; start again with the changed one"
                )
            rng.shuffle(held)
            yield from held

    def iter_file(self, path: Path) -> Iterator[tuple[int, bytes]]:
        """Yield the lines of a file; a file that was removed is named."""
        try:
            yield from iter_lines(path)
        except OSError as error:
            raise ValueError(
                f"{path} cannot be read any more ({error.strerror}); do not change a corpus while it trains"
            ) from error

    def parse(self, path: Path, number: int, line: bytes) -> dict[str, Any]:
        """Parse a line to a row as in `load_parallel`."""
        row = parse_line(path, number, line, self.languages)
        image = None
        if row.image is not None:
            root = self.images or path.parent
            image = image_place(row.image, root)
            if not self.outside_images:
                try:
                    check_inside(image, [os.path.realpath(root)])
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}, row {printable(row.id)}: {error}") from error
        texts = {SOURCE: row.english, **dict.fromkeys(self.languages), **row.translations}
        return {"id": row.id, "image": image, **texts}


class SkippingCollator:
    """A collator that returns nothing for a skipped batch; a class, because loading workers pickle it."""

    def __init__(self, collator: Callable[[list], dict]) -> None:
        self.collator = collator

    def __call__(self, rows: list[dict[str, Any] | None]) -> dict[str, Any]:
        """Collate the rows; an empty dict for a skipped batch."""
        return {} if rows[0] is None else self.collator(rows)
