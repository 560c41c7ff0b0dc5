"""Every text of MMMEB: kinds x languages x styles, and the two traps."""

import pytest

from mmmeb_tasks.data.layout import KINDS, Kind
from mmmeb_tasks.instructions import (
    BARE_LABELS,
    EXTRA_INSTRUCTIONS,
    IN_ENGLISH,
    PUBLISHED,
    render_label,
    render_query,
    render_target,
    task_prompt,
)

# The published table, typed a second time: kind, language, query, target ("{x}": its own text).
TABLE = """
i2t|en|Find an image caption describing the given everyday image|{x}
i2t|it|Trova una didascalia che descriva l'immagine di tutti i giorni|{x}
i2t|es|Encuentra una leyenda que describa la imagen cotidiana dada|{x}
i2t|fr|Trouvez une légende décrivant l'image donnée|{x}
i2t|de|Finde eine Bildunterschrift, die das gegebene Alltagsbild beschreibt|{x}
t2i|en|Find me an everyday image that matches the given caption: {x}|Represent the given image
t2i|it|Trovami un'immagine di tutti i giorni che corrisponda alla didascalia data: {x}|Rappresenta l'immagine data
t2i|es|Encuentra una imagen cotidiana que coincida con la leyenda dada: {x}|Representa la imagen dada
t2i|fr|Trouvez-moi une image de tous les jours qui correspond à la légende donnée: {x}|Représentez l'image donnée
t2i|de|Finde mir ein alltägliches Bild, das der gegebenen Beschriftung entspricht: {x}|Stelle das gegebene Bild dar
vqa|en|Represent the given image with the following question: {x}|{x}
vqa|it|Rappresenta l'immagine data con la seguente domanda: {x}|{x}
vqa|es|Representa la imagen dada con la siguiente pregunta: {x}|{x}
vqa|fr|Représentez l'image donnée avec la question suivante: {x}|{x}
vqa|de|Stellen Sie das gegebene Bild mit der folgenden Frage dar: {x}|{x}
vg|en|Select the portion of the image that isolates the object labeled as "{x}"|Represent the given cropped image of the object
vg|fr|Sélectionnez la partie de l'image qui isole l'objet étiqueté comme "{x}"|Représentez l'image recadrée donnée de l'objet
c|en|Represent the given image for classification|{x}
c|it|Rappresenta l'immagine data per la classificazione|{x}
c|es|Representa la imagen dada para clasificación|{x}
c|fr|Représentez l'image donnée pour la classification|{x}
c|de|Stellen Sie das gegebene Bild für die Klassifizierung dar|{x}
"""  # noqa: E501 - a table
CELLS = [tuple(line.split("|")) for line in TABLE.strip().splitlines()]
CELLS += [(kind, lang, *both) for kind, langs in EXTRA_INSTRUCTIONS.items() for lang, both in langs.items()]


def test_the_table_is_the_published_one_and_ours_is_apart() -> None:
    published = {(kind, lang) for kind, langs in PUBLISHED.items() for lang in langs}
    assert {cell[:2] for cell in CELLS[:22]} == published
    assert {cell[:2] for cell in CELLS[22:]} == {("vg", "it"), ("vg", "es"), ("vg", "de")}


@pytest.mark.parametrize(("kind", "lang", "query", "target"), CELLS)
def test_every_cell_in_every_style(kind: Kind, lang: str, query: str, target: str) -> None:
    own = "a {dog}" if "{x}" in query else None  # braces are the text's, never slots
    filled, mark = query.replace("{x}", "a {dog}"), "?" if kind == "vqa" else "."
    assert render_query(kind, lang, own) == filled
    assert render_query(kind, lang, own, style="punct") == filled + mark
    assert render_query(kind, lang, own, style="newline") == filled + mark + "\n"

    own = "a {dog}" if target == "{x}" else None
    filled, end = target.replace("{x}", "a {dog}"), "" if own else "\n"
    assert render_target(kind, lang, own) == filled
    assert render_target(kind, lang, own, style="punct") == filled + "."
    assert render_target(kind, lang, own, style="newline") == filled + "." + end


def test_a_query_is_filled_before_it_is_punctuated_a_target_after() -> None:
    query = "Find me an everyday image that matches the given caption: A dog."
    assert render_query("t2i", "en", "A dog.", style="plain") == query[:-1]
    assert render_query("t2i", "en", "A dog.", style="punct") == query
    assert render_query("t2i", "en", "A dog.", style="newline") == query + "\n"
    assert render_target("i2t", "en", "A dog.", style="plain") == "A dog."


def test_two_dots_in_targets_whose_text_ends_in_one() -> None:
    assert render_target("i2t", "en", "A dog.", style="punct") == "A dog.."
    assert render_target("i2t", "en", "A dog.", style="newline") == "A dog.."
    assert render_target("vqa", "fr", "quoi ?", style="punct") == "quoi ?."


def test_white_space_is_stripped_only_where_a_query_is_changed() -> None:
    question = "Represent the given image with the following question: "
    assert render_query("vqa", "en", " dogs? ") == question + " dogs"
    assert render_query("vqa", "en", "dogs?? ") == question + "dogs?"  # one final mark goes
    assert render_query("vqa", "en", "dogs? ", style="punct") == question + "dogs??"
    assert render_query("vqa", "en", "dogs.", style="punct") == question + "dogs."
    assert render_target("i2t", "en", " A dog. ") == " A dog. "


def test_a_vg_label_keeps_its_marks_inside_the_quotes() -> None:
    assert render_query("vg", "en", "Mr.").endswith('as "Mr."')
    assert render_query("vg", "en", "Mr.", style="punct").endswith('as "Mr.".')


def test_labels_of_models_without_instructions() -> None:
    labels = [render_label(lang, "x") for lang in BARE_LABELS]
    assert labels == ["image of x", "immagine di x", "imagen de x", "image de x", "Bild von x"]
    with pytest.raises(ValueError, match="unknown language 'fi'; known: en, it, es, fr, de"):
        render_label("fi", "x")


def test_languages_without_instructions_have_the_english_ones() -> None:
    for lang in IN_ENGLISH:
        assert render_query("vqa", lang, "что слева?") == render_query("vqa", "en", "что слева?")
        assert render_target("t2i", lang) == render_target("t2i", "en") and render_label(lang, "x") == "x"


def test_a_task_prompt_is_the_instruction_without_content() -> None:
    assert task_prompt("i2t", "fr") == {"query": "Trouvez une légende décrivant l'image donnée"}
    assert task_prompt("t2i", "de") == {
        "query": "Finde mir ein alltägliches Bild, das der gegebenen Beschriftung entspricht",
        "document": "Stelle das gegebene Bild dar",
    }
    for kind in KINDS:
        for lang in BARE_LABELS:
            assert all("{" not in p and p[-1].isalpha() for p in task_prompt(kind, lang).values())


def test_an_unknown_kind_language_or_style_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown kind 'i2i'; known: i2t, t2i, vqa, vg, c"):
        render_query("i2i", "en")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="language of vg .* 'fi'; known: en, fr, it, es, de"):
        render_target("vg", "fi")
    for render in (render_query, render_target):
        with pytest.raises(ValueError, match="unknown style 'loud'; known: plain, punct, newline"):
            render("t2i", "en", "x", style="loud")  # type: ignore[arg-type]


def test_a_text_too_many_or_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="a t2i query needs its own text, got none"):
        render_query("t2i", "en")
    with pytest.raises(ValueError, match="a c query has no text of its own, got 'dog'"):
        render_query("c", "en", "dog")
    with pytest.raises(ValueError, match="a c target needs its own text"):
        render_target("c", "en")
    with pytest.raises(ValueError, match="a t2i target has no text of its own, got 'dog'"):
        render_target("t2i", "en", "dog")
