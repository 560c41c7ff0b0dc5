"""What a run is watched by: held-out rows, in every language."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import SequentialEvaluator
from sentence_transformers.sentence_transformer.evaluation import MSEEvaluator, TranslationEvaluator
from sentence_transformers.util import pairwise_cos_sim

from xvlm2vec_st.parallel import SOURCE, open_image


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


def parallel_evaluator(
    rows: Dataset, languages: Sequence[str], teacher: SentenceTransformer, *, batch_size: int = 64
) -> SequentialEvaluator:
    """Score held-out rows: the mean over languages as the main score, English drift apart.

    A language's score is how often a translation finds its English twin and the other way round
    (`TranslationEvaluator`); `english_negative_mse` and `english_cosine` tell the student's distance
    to the teacher's English.

    Raises:
        ValueError: a language that no held-out row has.
    """

    def inputs(language: str) -> tuple[list[int], list]:
        chosen = [i for i, row in enumerate(rows) if row[language] is not None]
        return chosen, [_input(rows[i], language) for i in chosen]

    _, english = inputs(SOURCE)
    evaluators = []
    for language in languages:
        chosen, translated = inputs(language)
        if not chosen:
            raise ValueError(f"no held-out row has language {language!r}; hold out more rows")
        twins = [english[i] for i in chosen]
        evaluators.append(TranslationEvaluator(twins, translated, batch_size=batch_size, name=language))
    drift = DriftEvaluator(english, english, teacher_model=teacher, batch_size=batch_size, name="english")
    count = len(evaluators)
    return SequentialEvaluator(
        [*evaluators, drift], main_score_function=lambda scores: sum(scores[:count]) / count
    )


def _input(row: dict[str, Any], language: str) -> Any:
    """A row in one language, as `encode` takes it."""
    if row["image"] is None:
        return row[language]
    return {"image": open_image(row["image"], row["id"], decode=True), "text": row[language]}
