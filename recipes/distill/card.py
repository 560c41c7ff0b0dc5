"""The model card of a distilled student, and the last line that `distill` prints."""

from collections.abc import Sequence
from pathlib import Path

from sentence_transformers import SentenceTransformer

from xvlm2vec_st import DistillationTrainer
from xvlm2vec_st.building.builder import save_embedder

USE = "from sentence_transformers import SentenceTransformer\n"
PHI3V = "import xvlm2vec_st  # Phi-3.5-vision, which transformers lacks\n"


def save_with_card(model: SentenceTransformer, folder: Path, student: str, languages: Sequence[str]) -> None:
    """Save the model; its card says what was distilled into which languages."""
    local, card = Path(student).is_dir(), model.model_card_data
    name = Path(student).resolve().name if local else student
    card.model_name = f"{name} distilled into {', '.join(languages)}"
    card.set_language(["en", *languages])
    card.add_tags("generated_from_trainer")  # else sentence-transformers saves the student's card again
    if not local:
        card.base_model = student
    save_embedder(model, folder)
    readme = folder / "README.md"
    if model[0].config.model_type == "phi3_v" and readme.is_file():
        # sentence-transformers' card template has no place for a second import.
        readme.write_text(readme.read_text("utf-8").replace(USE, PHI3V + USE), "utf-8")


def score_summary(trainer: DistillationTrainer, languages: Sequence[str]) -> str:
    """The scores of the last evaluation in words; empty if there was none."""
    evaluations = [entry for entry in trainer.state.log_history if "eval_english_cosine" in entry]
    if not evaluations:
        return ""
    last = evaluations[-1]
    accuracies = ", ".join(f"{code} {last[f'eval_{code}_mean_accuracy']:.1%}" for code in languages)
    return f"; held-out rows: {accuracies}, English cosine {last['eval_english_cosine']:.4f}"
