"""Score held-out rows in every language while a model trains."""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.util import cos_sim, pairwise_cos_sim

from xvlm2vec_st.data.collator import iter_texts
from xvlm2vec_st.data.corpus import SOURCE
from xvlm2vec_st.data.dataset import check_columns
from xvlm2vec_st.encoding.batches import images_in
from xvlm2vec_st.encoding.inputs import text_inputs
from xvlm2vec_st.images.hashing import image_key
from xvlm2vec_st.utils.failures import is_out_of_memory

# The content of an input, text and images: equal contents are equal inputs.
Content = tuple[str, tuple[Hashable, ...]]
Column = dict[int, tuple[Content, NDArray[np.float32]]]


class ParallelEvaluator(BaseEvaluator):
    """Score held-out rows: retrieval between English and each language, and the drift of English.

    A language's score is how often a translation retrieves its English text, and the other way round. The
    definition is that of sentence-transformers' `TranslationEvaluator`. A pair is right too if its English or its
    translation is equal: one English text may have two translations.

    Args:
        rows: as `load_parallel` returns them.
        languages: columns to score.
        teacher: its English embeddings are the reference of the drift; it embeds the rows at once.
        batch_size: texts per forward, and rows per block. A block's images are opened once.

    Returns:
        `{language}_src2trg_accuracy`, `{language}_trg2src_accuracy` and `{language}_mean_accuracy`;
        `english_negative_mse` (times 100) and `english_cosine` between student and teacher; and
        `sequential_score`, the mean over the languages, by which checkpoints are compared.

    Raises:
        ValueError: no held-out row has one of the languages; an image cannot be read.
    """

    def __init__(
        self, rows: Dataset, languages: Sequence[str], teacher: SentenceTransformer, *, batch_size: int = 64
    ) -> None:
        super().__init__()
        check_columns(rows.column_names, languages)
        for language in languages:
            if all(text is None for text in rows[language]):
                raise ValueError(f"no held-out row has language {language!r}; hold out more rows")
        self.primary_metric = "sequential_score"
        self.rows, self.languages, self.batch_size = rows, list(languages), batch_size
        self.reference = np.stack([vector for _, vector in self.embed(teacher, [])[SOURCE].values()])

    def __call__(  # type: ignore[override]  # sentence-transformers' own evaluators narrow it too
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """Scores by name."""
        columns = self.embed(model, self.languages)
        scores: dict[str, float] = {}
        for language in self.languages:
            accuracies = retrieval_accuracies(columns[SOURCE], columns[language])
            names = ("src2trg_accuracy", "trg2src_accuracy")
            scores |= {f"{language}_{name}": value for name, value in zip(names, accuracies, strict=True)}
            scores[f"{language}_mean_accuracy"] = sum(accuracies) / 2
        english = np.stack([vector for _, vector in columns[SOURCE].values()])
        scores["english_negative_mse"] = -100 * float(((self.reference - english) ** 2).mean())
        scores["english_cosine"] = float(pairwise_cos_sim(english, self.reference).mean())
        means = [scores[f"{language}_mean_accuracy"] for language in self.languages]
        scores["sequential_score"] = sum(means) / len(means)
        self.store_metrics_in_model_card_data(model, scores, epoch, steps)
        return scores

    def embed(self, model: SentenceTransformer, languages: Sequence[str]) -> dict[str, Column]:
        """Contents and vectors of each column by row number, English first; rows are read in blocks."""
        codes = (SOURCE, *languages)
        columns: dict[str, Column] = {code: {} for code in codes}
        for start in range(0, len(self.rows), self.batch_size):
            block = self.rows.select(range(start, min(start + self.batch_size, len(self.rows)))).to_list()
            texts = list(iter_texts(block, codes))
            with memory_hint(
                f"while held-out rows were scored, {self.batch_size} texts per batch; lower "
                "per_device_train_batch_size (and raise gradient_accumulation_steps), or evaluate no rows"
            ):
                # prompt="": training does not apply the model's default prompt either.
                vectors = model.encode(
                    text_inputs(model, [text.input for text in texts]),
                    prompt="",
                    batch_size=self.batch_size,
                    show_progress_bar=False,
                )
            images: dict[int, tuple[Hashable, ...]] = {}
            for text, vector in zip(texts, vectors, strict=True):
                if text.row not in images:
                    images[text.row] = tuple(map(image_key, images_in(text.input)))
                content = text.input if isinstance(text.input, str) else text.input["text"]
                columns[codes[text.language]][start + text.row] = (content, images[text.row]), vector
        return columns


def parallel_evaluator(
    rows: Dataset, languages: Sequence[str], teacher: SentenceTransformer, *, batch_size: int = 64
) -> ParallelEvaluator:
    """Build a `ParallelEvaluator`."""
    return ParallelEvaluator(rows, languages, teacher, batch_size=batch_size)


def retrieval_accuracies(english: Column, translated: Column) -> tuple[float, float]:
    """(English to translation, translation to English): the share of right nearest neighbours."""
    numbers = list(translated)
    pairs = [(english[number][0], translated[number][0]) for number in numbers]
    similarity = cos_sim(
        np.stack([english[number][1] for number in numbers]),
        np.stack([translated[number][1] for number in numbers]),
    )

    def accuracy(nearest: torch.Tensor) -> float:
        right = [
            pairs[row][0] == pairs[other][0] or pairs[row][1] == pairs[other][1]
            for row, other in enumerate(nearest.tolist())
        ]
        return sum(right) / len(right)

    return accuracy(similarity.argmax(1)), accuracy(similarity.argmax(0))


@contextmanager
def memory_hint(hint: str) -> Iterator[None]:
    """Add to an out-of-memory error where it happened and what to lower.

    The error keeps its type: accelerate's `find_executable_batch_size`, behind transformers'
    `auto_find_batch_size`, looks for a RuntimeError.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            error.add_note(hint)
        raise
