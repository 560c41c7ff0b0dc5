"""Whether each query's right candidate is first, beside the mean that mteb gives."""

import json
import tempfile
from pathlib import Path

import mteb
from mteb.models import MTEBModels

from mmmeb_tasks.retrieval import MMMEBRetrieval


def query_hits(model: MTEBModels, task: MMMEBRetrieval, language: str, *, batch_size: int = 32) -> dict[str, bool]:
    """`{query id: whether its right candidate is first}` of one language, through `mteb.evaluate`.

    Args:
        model: an encoder of mteb, such as `MMMEBEncoder`.
        task: with this language only (`filter_languages`).
        language: as in the files, such as "it".
        batch_size: rows per forward pass.

    Example:
        task = MiniT2IRanking().filter_languages(None, hf_subsets=["it"])
        query_hits(MMMEBEncoder(model), task, "it")
    """
    if not task.data_loaded:
        task.load_data()  # else mteb unloads the right answers
    with tempfile.TemporaryDirectory() as folder:
        mteb.evaluate(
            model,
            task,
            cache=None,
            co2_tracker=False,
            encode_kwargs={"batch_size": batch_size, "show_progress_bar": False},
            show_progress_bar=False,
            prediction_folder=folder,
        )
        predictions = json.loads((Path(folder) / task.prediction_file_name).read_text("utf-8"))[language]["test"]
    gold = task.dataset[language]["test"]["relevant_docs"]
    # Of equal scores the greater id is first, as in mteb.
    return {
        query: max(scores, key=lambda name: (scores[name], name)) in gold[query]
        for query, scores in predictions.items()
    }
