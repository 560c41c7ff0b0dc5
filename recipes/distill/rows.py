"""The rows of a `distill` run: training, held out, and how they are batched."""

from collections.abc import Sequence
from typing import Any

from accelerate.utils import broadcast_object_list
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainingArguments

from xvlm2vec_st import MultilingualDistillationLoss, load_parallel
from xvlm2vec_st.data.batch_sampler import TokenBudgetBatches, row_costs
from xvlm2vec_st.data.corpus_checks import corpus_files
from xvlm2vec_st.data.image_checks import check_image_files
from xvlm2vec_st.data.stream import ParallelStream

from .options import DistillArguments


def load_rows(
    arguments: DistillArguments, training: SentenceTransformerTrainingArguments
) -> tuple[Dataset | ParallelStream, Dataset | None]:
    """(training rows, held-out rows or None); all processes call it.

    Raises:
        ValueError: see `load_parallel` and `ParallelStream`; more than half of the corpus is held out;
            rows are held out of a stream. A bad image is one in all processes.
    """
    held_out: Dataset | None = None
    with training.main_process_first():
        if arguments.eval_corpus:
            held_out = load_parallel(arguments.eval_corpus, arguments.languages, **image_options(arguments))
        rows = load_training_rows(arguments, training)
    if arguments.check_images:
        loaded = [(held_out, [arguments.eval_corpus]), (rows, arguments.corpus)]
        check_once([(data, files) for data, files in loaded if isinstance(data, Dataset)], arguments, training)
    if isinstance(rows, ParallelStream) or arguments.eval_corpus:
        return rows, held_out
    return split_rows(rows, arguments.eval_rows, training.seed)


def image_options(arguments: DistillArguments) -> dict[str, Any]:
    """The options of `load_parallel` for images, which are opened later: see `check_once`."""
    return {"images": arguments.images, "outside_images": arguments.outside_images, "check_images": False}


def load_training_rows(
    arguments: DistillArguments, training: SentenceTransformerTrainingArguments
) -> Dataset | ParallelStream:
    """The rows of the corpus, with those to hold out.

    Raises:
        ValueError: see `load_rows`.
    """
    options = image_options(arguments)
    if not arguments.stream:
        return load_parallel(arguments.corpus, arguments.languages, **options)
    if arguments.eval_rows and not arguments.eval_corpus:
        raise ValueError("--stream reads its rows while training: pass --eval-corpus FILE, or --eval-rows 0")
    del options["check_images"]
    return ParallelStream(arguments.corpus, arguments.languages, seed=training.seed, **options)


def check_once(
    corpora: Sequence[tuple[Dataset, Sequence[str]]],
    arguments: DistillArguments,
    training: SentenceTransformerTrainingArguments,
) -> None:
    """Check the images of corpora, (rows, files) each, in the first process, and raise its error in all.

    On a shared disk, every file would be opened once per process. And if the first process alone ended, the others
    would wait for it until the launcher ends them.

    Raises:
        ValueError: see `check_image_files`.
    """
    failed, message = None, [""]
    if training.process_index == 0:
        try:
            for data, files in corpora:
                paths, outside = corpus_files(files), arguments.outside_images
                check_image_files(data, paths, images=arguments.images, outside_images=outside)
        except Exception as error:
            failed, message = error, [str(error) or type(error).__name__]
    if training.world_size > 1:
        broadcast_object_list(message)
    if failed is not None:
        raise failed
    if message[0]:
        raise ValueError(message[0])


def split_rows(data: Dataset, held_out: int, seed: int) -> tuple[Dataset, Dataset | None]:
    """(training rows, held-out rows or None).

    Raises:
        ValueError: more than half of the corpus is held out.
    """
    if not held_out:
        return data, None
    if not 0 < held_out <= len(data) // 2:
        raise ValueError(f"--eval-rows {held_out}: the corpus has {len(data)} rows; hold out at most half, or 0")
    parts = data.train_test_split(test_size=held_out, seed=seed)
    return parts["train"], parts["test"]


def build_batch_sampler(
    arguments: DistillArguments,
    training: SentenceTransformerTrainingArguments,
    rows: Dataset | ParallelStream,
    loss: MultilingualDistillationLoss,
) -> TokenBudgetBatches | None:
    """The batches of `tokens_per_batch`, if it is set. For a stream, set the number of updates.

    Raises:
        ValueError: the corpus has fewer rows than one update needs; `tokens_per_batch` with a stream.
    """
    batch_size, steps = training.per_device_train_batch_size, training.gradient_accumulation_steps
    rows_per_update = batch_size * steps * training.world_size
    if isinstance(rows, ParallelStream):
        if arguments.tokens_per_batch:
            raise ValueError(
                "--tokens-per-batch sorts rows beforehand; with --stream, set --per-device-train-batch-size"
            )
        if training.max_steps < 0:
            training.max_steps = max(round(training.num_train_epochs * rows.rows / rows_per_update), 1)
        return None
    if len(rows) < rows_per_update and steps * training.world_size > 1:
        raise ValueError(
            f"an update takes {batch_size} rows x --gradient-accumulation-steps {steps} x "
            f"{training.world_size} processes, and the corpus has {len(rows)} rows; lower one of them"
        )
    if not arguments.tokens_per_batch:
        return None
    costs = row_costs(rows, arguments.languages, loss.model, image_size=arguments.image_size, shared=loss.shares_prefix)
    return TokenBudgetBatches(
        rows["id"], costs, budget=arguments.tokens_per_batch, max_rows=batch_size, seed=training.seed
    )
