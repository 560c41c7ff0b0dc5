"""Chat templates that give VLM2Vec's raw layout: image placeholder, newline, text; no roles."""

from importlib.resources import files

FAMILIES = ("llava",)


def template(family: str) -> str:
    """The Jinja chat template of a model family (`config.model_type`).

    Whatever the order of the rows' keys, pictures come first, each as placeholder and newline. A
    sentence-transformers prompt (a system message) stands before the text and after the pictures,
    where instructions stood in training.

    Raises:
        ValueError: for a family without a template.

    >>> template("llava").count("<image>")
    1
    """
    if family not in FAMILIES:
        raise ValueError(f"no chat template for {family!r}; there is one for {', '.join(FAMILIES)}")
    return files(__name__).joinpath(f"{family}.jinja").read_text("utf-8")
