"""Distil an English embedder into other languages (xVLM2Vec).

    xvlm2vec distill --student teacher/ --corpus parallel.jsonl --languages it es --output-dir xvlm2vec
    xvlm2vec distill … --lora-rank 16                      # adapt the language model only, merged at the end
    xvlm2vec distill … --resume-from-checkpoint true       # continue after a stop, from the last checkpoint
    xvlm2vec distill --config recipes/configs/xvlm2vec.yaml --corpus … --output-dir …     # as published
    accelerate launch --config_file recipes/configs/fsdp2.yaml -m recipes.distill …       # several GPUs

The student starts as a copy of the frozen teacher. All options of SentenceTransformerTrainingArguments are
accepted, with dashes or underscores. Checkpoints lie in OUTPUT_DIR.partial until the run has finished; then
OUTPUT_DIR appears, complete, a folder that sentence-transformers loads. SIGTERM or Ctrl-C ends a run after the
current update, with a checkpoint.
"""

from collections.abc import Callable

from ..shared.command import run_prepared
from .parser import check_words


def prepare() -> Callable[[], object]:
    """The work that the command line asks for."""
    check_words(None, __doc__)
    from .command import main  # it imports torch

    return main


def main() -> None:
    """Run the command line."""
    run_prepared(prepare)


if __name__ == "__main__":
    main()
