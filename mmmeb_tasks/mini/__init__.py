"""The mini world: MMMEB in small, of emoji and the names that people gave them; bundled."""

from pathlib import Path

#: The bundled English-only embedder, a sentence-transformers folder; its card has the command that trained it.
TEACHER = Path(__file__).parent / "teacher"
