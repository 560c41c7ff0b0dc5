"""What a run is watched by: held-out rows, in every language."""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import SequentialEvaluator
from sentence_transformers.sentence_transformer.evaluation import MSEEvaluator, TranslationEvaluator
from sentence_transformers.util import pairwise_cos_sim

from xvlm2vec_st.data.dataset import SOURCE, Item, check_columns, items_of
from xvlm2vec_st.encoding.batches import images_in
from xvlm2vec_st.encoding.inputs import text_inputs
from xvlm2vec_st.images.hashing import image_key
from xvlm2vec_st.utils.failures import first_line, is_out_of_memory

# What an input says and shows: equal names, equal inputs.
Name = tuple[str, tuple[Hashable, ...]]


class Twin(tuple):
    """The name of one side of a pair, for `TranslationEvaluator`, which compares what it finds by `==`.

    Equal to another one if either side is: where one English text has two translations, both are right.

    >>> Twin(("cane", ()), ("a dog", ())) == Twin(("il cane", ()), ("a dog", ()))
    True
    """

    other: Name

    def __new__(cls, name: Name, other: Name) -> "Twin":
        """The name, and that of the other side."""
        twin = super().__new__(cls, name)
        twin.other = other
        return twin

    def __eq__(self, value: object) -> bool:
        return super().__eq__(value) or (isinstance(value, Twin) and self.other == value.other)

    __hash__ = tuple.__hash__  # vectors are looked up by plain names


class DriftEvaluator(MSEEvaluator):
    """The host's distance to the teacher's English, and the mean cosine to it: `english_cosine`."""

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """Scores by name."""
        scores = super().__call__(model, output_path, epoch, steps)
        return scores | {
            f"{self.name}_cosine": pairwise_cos_sim(self.latest, self.source_embeddings).mean().item()
        }

    def embed_inputs(self, *args: Any, **kwargs: Any) -> np.ndarray:
        """The host's, kept."""
        self.latest = super().embed_inputs(*args, **kwargs)
        return self.latest


class Encoded:
    """A model that has read all held-out rows: it takes names, and looks their vectors up.

    Rows are read in blocks. An image is opened once for all languages of its row, and gone with its
    block; nor is a text encoded once for each evaluator that asks for it.

    Args:
        model: reads the rows, at once.
        rows: as `load_parallel` gives them.
        languages: to read, English among them.
        batch_size: inputs a forward, and rows a block.

    Attributes:
        names: each row's inputs, by language.

    Raises:
        ValueError: a device out of memory; an image that cannot be read.
    """

    def __init__(
        self, model: SentenceTransformer, rows: Dataset, languages: Sequence[str], batch_size: int
    ) -> None:
        self.model_card_data = model.model_card_data
        self.names: list[dict[str, Name]] = []
        self.vectors: dict[Name, np.ndarray] = {}
        for start in range(0, len(rows), batch_size):
            block = rows.select(range(start, min(start + batch_size, len(rows)))).to_list()
            items = list(items_of(block, languages))
            with enough_memory(
                f"while held-out rows are scored, {batch_size} texts a batch; lower --batch-size "
                "(and raise --accumulation), or pass --eval-rows 0"
            ):
                # Without the model's default prompt, which training does not apply either.
                found = model.encode(
                    text_inputs(model, [item.given for item in items]),
                    prompt="",
                    batch_size=batch_size,
                    show_progress_bar=False,
                )
            named = names_of(items, len(block), languages)
            self.names += named
            for item, vector in zip(items, found, strict=True):
                self.vectors[named[item.row][languages[item.language]]] = vector

    def encode(self, inputs: Sequence[Name], *, convert_to_numpy: bool, **_: Any) -> Any:
        """Vectors as the host's evaluators ask for them: (inputs, dim), or a list of tensors."""
        found = np.stack([self.vectors[name] for name in inputs])
        return found if convert_to_numpy else list(torch.from_numpy(found))


class HeldOutEvaluator(SequentialEvaluator):
    """The host's evaluators, over rows that are read once for all of them."""

    def __init__(
        self, evaluators: Sequence[Any], rows: Dataset, languages: Sequence[str], batch_size: int
    ) -> None:
        count = len(languages)
        super().__init__(evaluators, main_score_function=lambda scores: sum(scores[:count]) / count)
        self.rows, self.languages, self.batch_size = rows, (SOURCE, *languages), batch_size

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """Scores by name."""
        read = Encoded(model, self.rows, self.languages, self.batch_size)
        return super().__call__(read, output_path, epoch, steps)


def parallel_evaluator(
    rows: Dataset, languages: Sequence[str], teacher: SentenceTransformer, *, batch_size: int = 64
) -> HeldOutEvaluator:
    """Score held-out rows: the mean over languages as the main score, English drift apart.

    A language's score is how often a translation finds its English twin and the other way round
    (`TranslationEvaluator`); `english_negative_mse` and `english_cosine` tell the student's distance
    to the teacher's English. `batch_size` counts texts: a forward is never larger than one of a
    training batch of as many rows.

    Raises:
        ValueError: a language that no held-out row has; as `Encoded`, here and when it is called.
    """
    check_columns(rows.column_names, languages)
    for language in languages:
        if all(text is None for text in rows[language]):
            raise ValueError(f"no held-out row has language {language!r}; hold out more rows")
    taught = Encoded(teacher, rows, [SOURCE], batch_size)
    english = [named[SOURCE] for named in taught.names]
    evaluators: list[Any] = []
    for language in languages:
        texts = rows[language]
        chosen = [number for number, text in enumerate(texts) if text is not None]
        twins = [english[number] for number in chosen]
        translated = [(texts[number], english[number][1]) for number in chosen]
        evaluators.append(
            TranslationEvaluator(
                [Twin(*pair) for pair in zip(twins, translated, strict=True)],
                [Twin(*pair) for pair in zip(translated, twins, strict=True)],
                name=language,
            )
        )
    evaluators.append(DriftEvaluator(english, english, teacher_model=taught, name="english"))
    return HeldOutEvaluator(evaluators, rows, languages, batch_size)


def names_of(items: Sequence[Item], rows: int, languages: Sequence[str]) -> list[dict[str, Name]]:
    """The names of a block's inputs; a row's image is looked at once."""
    shown: dict[int, tuple[Hashable, ...]] = {}
    named: list[dict[str, Name]] = [{} for _ in range(rows)]
    for item in items:
        if item.row not in shown:
            shown[item.row] = tuple(map(image_key, images_in(item.given)))
        text = item.given if isinstance(item.given, str) else item.given["text"]
        named[item.row][languages[item.language]] = (text, shown[item.row])
    return named


@contextmanager
def enough_memory(told: str) -> Iterator[None]:
    """Tell a device out of memory in words of this package: where, and what to lower.

    Raises:
        ValueError: out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(f"out of memory {told} ({first_line(error)})") from error
