"""Chat templates: VLM2Vec's raw layout for each family (image placeholder, newline, text), and published embedders'."""

from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from xvlm2vec_st.families.published import PUBLISHED
from xvlm2vec_st.families.table import FAMILIES

# Name of a template -> its image placeholder.
PLACEHOLDERS = {name: family.image for name, family in FAMILIES.items()}
NAMES = (*PLACEHOLDERS, *PUBLISHED)


class Generation(Extension):
    """The tag `generation` of transformers' templates."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Parse the statements between the two tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


PARSER = Environment(extensions=[Generation, loopcontrols])


def build_template(name: str) -> str:
    """The Jinja chat template of a model family (`config.model_type`), or of a published embedder.

    In a family's template, images come first, each as a placeholder and a newline, whatever the order of the keys.
    A prompt of sentence-transformers (a system message) stands after the images and before the text, as
    instructions did in training.

    Raises:
        ValueError: there is no template of that name.

    >>> build_template("llava").count("<image>")
    1
    """
    if name in PUBLISHED:
        return PUBLISHED[name].template
    if name not in PLACEHOLDERS:
        raise ValueError(
            f"no chat template for {name!r}; there is one for {', '.join(NAMES)}. Pass template=, the file "
            "of a Jinja chat template that writes the family's image placeholder"
        )
    placeholder = PLACEHOLDERS[name].replace("{number}", "' ~ seen.images ~ '")
    text = files("xvlm2vec_st.families").joinpath("chat_template.jinja").read_text("utf-8")
    return text.replace("@IMAGE@", placeholder)


def read_template(name: str | Path) -> str:
    """The template of that name, else the text of that file.

    Raises:
        ValueError: neither exists, or the file is empty or not a template.

    >>> read_template("vlm2vec_v2") == build_template("vlm2vec_v2")
    True
    """
    if str(name) in NAMES:
        return build_template(str(name))
    if not Path(name).is_file():
        raise ValueError(f"template {str(name)!r} is not a file; pass a file, or one of {', '.join(NAMES)}")
    try:
        text = Path(name).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"template {name}: byte {error.start} is not UTF-8; save it as UTF-8") from error
    if not text.strip():
        raise ValueError(f"template {name} is empty; it must write the image placeholder and the text")
    try:
        PARSER.parse(text)  # runs nothing
    except TemplateSyntaxError as error:
        raise ValueError(f"template {name}, line {error.lineno}: {error.message}") from error
    return text
