"""The mini world: MMMEB in small, made of emoji and the names people gave them; all of it bundled."""

from pathlib import Path

#: The bundled English-only embedder, a sentence-transformers folder; its card tells how it was made.
TEACHER = Path(__file__).parent / "teacher"
