"""The model card of a distilled student, and the last line that `distill` prints."""

from collections.abc import Sequence
from pathlib import Path

from sentence_transformers import SentenceTransformer

from xvlm2vec_st import DistillationTrainer
from xvlm2vec_st.building.builder import save_embedder
from xvlm2vec_st.building.model_card import CardTeacher, front_matter, read_teachers
from xvlm2vec_st.distillation.fingerprint import fingerprint

USE = "from sentence_transformers import SentenceTransformer\n"
PHI3V = "import xvlm2vec_st  # Phi-3.5-vision, which transformers lacks\n"
FRONT = "---\n"  # how a card's metadata begins


def card_teachers(teacher: SentenceTransformer, name: str, loaded_from: str) -> list[CardTeacher]:
    """The teacher of a run as its student's card names it, and the teacher's own teachers.

    Args:
        teacher: the model, as it was loaded.
        name: folder or Hub id that the user gave; a folder is named by its last part.
        loaded_from: folder or Hub id of the model itself, which may be built from that one.
    """
    shown = Path(name).resolve().name if Path(name).is_dir() else name
    return [CardTeacher(shown, fingerprint(teacher, adapters=True)), *read_teachers(loaded_from)]


def save_with_card(
    model: SentenceTransformer,
    folder: Path,
    student: str,
    languages: Sequence[str],
    teachers: Sequence[CardTeacher] = (),
) -> None:
    """Save the model; its card says what was distilled into which languages, and names the teachers.

    The teachers are in the card's metadata, as `teachers`. sentence-transformers keeps the card when it saves a model
    again, and writes a new one when it trains it further: then it may leave its teachers' space.
    """
    local, card = Path(student).is_dir(), model.model_card_data
    name = Path(student).resolve().name if local else student
    card.model_name = f"{name} distilled into {', '.join(languages)}"
    card.set_language(["en", *languages])
    card.add_tags("generated_from_trainer")  # else sentence-transformers saves the student's card again
    if not local:
        card.base_model = student
    save_embedder(model, folder)
    readme = folder / "README.md"
    if readme.is_file():
        text = readme.read_text("utf-8")
        if model[0].config.model_type == "phi3_v":
            # sentence-transformers' card template has no place for a second import.
            text = text.replace(USE, PHI3V + USE)
        # Nor for further metadata.
        readme.write_text(text.replace(FRONT, FRONT + front_matter(teachers), 1), "utf-8")


def score_summary(trainer: DistillationTrainer, languages: Sequence[str]) -> str:
    """The scores of the last evaluation in words; empty if there was none."""
    evaluations = [entry for entry in trainer.state.log_history if "eval_english_cosine" in entry]
    if not evaluations:
        return ""
    last = evaluations[-1]
    accuracies = ", ".join(f"{code} {last[f'eval_{code}_mean_accuracy']:.1%}" for code in languages)
    return f"; held-out rows: {accuracies}, English cosine {last['eval_english_cosine']:.4f}"
