"""Chat templates that give VLM2Vec's raw layout: image placeholder, newline, text; no roles."""

from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser


class Generation(Extension):
    """The tag `generation` of transformers' templates."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """What stands between the two tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


PARSER = Environment(extensions=[Generation, loopcontrols])

# `config.model_type`, or the name of a variant, to its file. A template is part of the model: two
# checkpoints of one family can need two. VLM2Vec's Qwen code writes a bare `<|image_pad|>`.
FILES = {
    "phi3_v": "phi3_v.jinja",
    "llava": "llava.jinja",
    "llava_next": "llava.jinja",
    "idefics3": "llava.jinja",
    "smolvlm": "llava.jinja",
    "qwen2_vl": "qwen2_vl.jinja",
    "qwen2_5_vl": "qwen2_vl.jinja",
    "qwen3_vl": "qwen2_vl.jinja",
    "qwen2_vl_bare": "qwen2_vl_bare.jinja",
}


def template(family: str) -> str:
    """The Jinja chat template of a model family (`config.model_type`).

    Whatever the order of the rows' keys, images come first, each as placeholder and newline. A
    sentence-transformers prompt (a system message) stands before the text and after the images,
    where instructions stood in training.

    Raises:
        ValueError: for a family without a template.

    >>> template("llava").count("<image>")
    1
    """
    if family not in FILES:
        raise ValueError(
            f"no chat template for {family!r}; there is one for {', '.join(FILES)}. Pass --template FILE "
            "(template=… in Python), a Jinja chat template that writes the family's image placeholder"
        )
    return files("xvlm2vec_st.families").joinpath(FILES[family]).read_text("utf-8")


def read_template(name: str | Path) -> str:
    """The template of that name here, else the text of that file.

    Raises:
        ValueError: neither is there, or the file is empty.

    >>> read_template("qwen2_vl_bare") == template("qwen2_vl_bare")
    True
    """
    if str(name) in FILES:
        return template(str(name))
    if not Path(name).is_file():
        raise ValueError(
            f"template {str(name)!r} is no file; pass one, or one of the names {', '.join(FILES)}"
        )
    try:
        text = Path(name).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"template {name}: byte {error.start} is not UTF-8; save it as UTF-8") from error
    if not text.strip():
        raise ValueError(f"template {name} is empty; it must write the image placeholder and the text")
    try:
        PARSER.parse(text)  # which computes nothing
    except TemplateSyntaxError as error:
        raise ValueError(f"template {name}, line {error.lineno}: {error.message}") from error
    return text
