"""The host's trainer on parallel rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.base.evaluation import SequentialEvaluator
from sentence_transformers.sentence_transformer.evaluation import MSEEvaluator, TranslationEvaluator
from torch import Tensor

from xvlm2vec_st.parallel import SOURCE, ParallelCollator, open_image


class DistillationTrainer(SentenceTransformerTrainer):
    """`SentenceTransformerTrainer` over the rows of `load_parallel`.

    Takes what its base takes, and `languages`: which columns are translations. The batch size
    counts rows; a row holds one English text and up to `len(languages)` translations. Where the loss
    (given by name) shares prefixes, what a row's texts have in common is computed once.

    Example::

        loss = MultilingualDistillationLoss(student, teacher)
        trainer = DistillationTrainer(student, args, train_dataset=corpus, loss=loss, languages=["it"])
        trainer.train()
    """

    def __init__(
        self, model: SentenceTransformer, *args: Any, languages: Sequence[str], **kwargs: Any
    ) -> None:
        shared = getattr(kwargs.get("loss"), "shares_prefix", False)
        collator = ParallelCollator(model.preprocess, languages=tuple(languages), shared=shared)
        kwargs.setdefault("data_collator", collator)
        # The card's callback cannot draw widget examples from rows with empty cells.
        model.model_card_data.generate_widget_examples = False
        model.model_card_data.widget = model.model_card_data.widget or [{"text": "red apple"}]
        super().__init__(model, *args, **kwargs)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """The host's, without its statistics of columns: they fail on the first empty cell."""
        kept, self.train_dataset, self.eval_dataset = (self.train_dataset, self.eval_dataset), None, None
        super().add_model_card_callback(default_args_dict)
        self.train_dataset, self.eval_dataset = kept

    def _load_from_checkpoint(self, checkpoint_path: str, *args: Any) -> None:
        """Resume; an adapter is put back by peft, for the host's own loader drops DoRA's magnitudes."""
        adapter = Path(checkpoint_path) / "adapter_model.safetensors"
        if not adapter.is_file():
            return super()._load_from_checkpoint(checkpoint_path, *args)
        left = set_peft_model_state_dict(self.model[0].model, load_adapter_states(adapter))
        if left.unexpected_keys:
            raise ValueError(f"{adapter}: keys that fit nothing: {left.unexpected_keys}")


def load_adapter_states(path: Path) -> dict[str, Tensor]:
    """An adapter file's tensors, named as the model's own modules are (without peft's prefix)."""
    return {key.removeprefix("base_model.model."): value for key, value in load_file(path).items()}


def parallel_evaluator(
    rows: Dataset, languages: Sequence[str], teacher: SentenceTransformer, *, batch_size: int = 64
) -> SequentialEvaluator:
    """Score held-out rows: the mean over languages as the main score, English drift apart.

    A language's score is how often a translation finds its English twin and the other way round
    (`TranslationEvaluator`); `english_negative_mse` is the student's distance to the teacher's English.
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
    drift = MSEEvaluator(english, english, teacher_model=teacher, batch_size=batch_size, name="english")
    count = len(evaluators)
    return SequentialEvaluator(
        [*evaluators, drift], main_score_function=lambda scores: sum(scores[:count]) / count
    )


def _input(row: dict[str, Any], language: str) -> Any:
    """A row in one language, as `encode` takes it."""
    if row["image"] is None:
        return row[language]
    return {"image": open_image(row["image"], row["id"], decode=True), "text": row[language]}
