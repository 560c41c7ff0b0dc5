"""The rows of a `distill` run: training, held out, and how they are batched."""

from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainingArguments

from xvlm2vec_st import MultilingualDistillationLoss, load_parallel
from xvlm2vec_st.data.batch_sampler import TokenBudgetBatches, row_costs
from xvlm2vec_st.data.stream import ParallelStream

from .options import DistillArguments


def load_rows(
    arguments: DistillArguments, training: SentenceTransformerTrainingArguments
) -> tuple[Dataset | ParallelStream, Dataset | None]:
    """(training rows, held-out rows or None).

    Raises:
        ValueError: see `load_parallel` and `ParallelStream`; more than half of the corpus is held out;
            rows are held out of a stream.
    """
    # Rank 0 alone opens the images: on a shared disk, every file would be opened once per process.
    options = {
        "images": arguments.images,
        "outside_images": arguments.outside_images,
        "check_images": arguments.check_images and training.process_index == 0,
    }
    languages, held_out = arguments.languages, None
    if arguments.eval_corpus:
        held_out = load_parallel(arguments.eval_corpus, languages, **options)
    if arguments.stream:
        if arguments.eval_rows and not arguments.eval_corpus:
            raise ValueError("--stream reads its rows while training: pass --eval-corpus FILE, or --eval-rows 0")
        del options["check_images"]
        return ParallelStream(arguments.corpus, languages, seed=training.seed, **options), held_out
    data = load_parallel(arguments.corpus, languages, **options)
    return (data, held_out) if arguments.eval_corpus else split_rows(data, arguments.eval_rows, training.seed)


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
