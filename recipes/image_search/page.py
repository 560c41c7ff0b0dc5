"""The web page: a query in any language, an image to drop, and what `Answers` shows."""

from collections.abc import Sequence

import gradio as gr

from .answers import Answers, escaped

# Language code, language, query. The things are in many a folder of photos, and in the mini world of `make demo`.
EXAMPLES = (
    ("en", "English", "sunflower"),
    ("it", "Italian", "mela rossa"),
    ("es", "Spanish", "mariposa"),
    ("fr", "French", "arc-en-ciel"),
    ("de", "German", "Schloss"),
)
FAILED = "error: the query failed; if it has an image, drop it again, as a PNG or JPEG"
LONGEST_QUERY = 2000  # characters
LARGEST_UPLOAD = "100mb"
CLEARED = 3600  # seconds: uploads are cleared so often, and go at this age

# The events of gr.HTML: https://www.gradio.app/guides/custom-HTML-components
PICK_EXAMPLE = """
element.addEventListener("click", event => {
    const button = event.target.closest("button");
    if (button) trigger("click", {text: button.dataset.query});
});
"""
# A screen reader reads out what changes in an element of this role.
ANNOUNCE = 'element.setAttribute("role", "status");'

CSS = """
.examples button { margin: 0 .4em .4em 0; padding: .3em .8em; border: 1px solid var(--border-color-primary);
    border-radius: 1em; cursor: pointer; color: inherit; background: var(--block-background-fill); }
.examples button:focus-visible { outline: 2px solid var(--color-accent); }
.examples span { opacity: .75; }
.lists { display: flex; flex-wrap: wrap; gap: 2em; }
.results { flex: 1 1 20em; }
.results ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(9em, 1fr)); gap: 1em; padding: 0;
    list-style: none; }
.results figure { margin: 0; }
.results img { width: 100%; height: 9em; object-fit: contain; background: var(--background-fill-secondary); }
.results figcaption { font-size: .85em; overflow-wrap: anywhere; }
"""


def build_page(answers: Answers) -> gr.Blocks:
    """The page over an index."""
    with gr.Blocks(title="Search images", delete_cache=(CLEARED, CLEARED)) as page:
        gr.HTML(f"<h1>Search {len(answers.index):,} images</h1>", js_on_load=None)
        with gr.Row():
            with gr.Column(scale=2):
                text = gr.Textbox(label="Query, in any language", max_length=LONGEST_QUERY, autofocus=True)
                button = gr.Button("Search", variant="primary")
                examples = gr.HTML(example_buttons(EXAMPLES), js_on_load=PICK_EXAMPLE)
            # As a file: the library opens it as it opens those of the index.
            image = gr.Image(
                label="Query image", type="filepath", image_mode=None, sources=["upload", "clipboard"], height=220
            )
        shown = [gr.HTML(js_on_load=ANNOUNCE), gr.HTML(js_on_load=None)]
        searches = {"fn": answers.answer, "inputs": [text, image], "outputs": shown, "api_visibility": "private"}
        asked = gr.on([text.submit, button.click, image.upload], **searches)
        picked = examples.click(pick, outputs=[text, image], api_visibility="private").then(**searches)
        for search in (asked, picked):
            # gradio opens the image before the function runs: what fails then fails here.
            search.failure(lambda: (FAILED, ""), outputs=shown, api_visibility="private")
    return page


def pick(event: gr.EventData) -> tuple[str, None]:
    """The text and the image of the query that an example stands for."""
    return event.text, None


def example_buttons(examples: Sequence[tuple[str, str, str]]) -> str:
    """A button for each example, with its language.

    >>> example_buttons([("it", "Italian", "mela rossa")]).split("><")[1]
    'button type="button" data-query="mela rossa"'
    """
    buttons = (
        f'<button type="button" data-query="{escaped(text)}"><b lang="{code}">{escaped(text)}</b> '
        f"<span>{language}</span></button>"
        for code, language, text in examples
    )
    return f'<div class="examples" role="group" aria-label="Examples">{"".join(buttons)}</div>'


def theme() -> gr.themes.Base:
    """gradio's plain theme with the fonts of the system: it would ask Google for its own."""
    return gr.themes.Base(font="system-ui, sans-serif", font_mono="ui-monospace, monospace")
