"""The texts of MMMEB: one instruction a kind of task, language and side, in three styles.

Source: arXiv 2503.09313 and its released evaluation code.
"""

from collections.abc import Callable, Mapping
from typing import Literal, get_args

from mmmeb_tasks.data.layout import KINDS, Kind

Style = Literal["plain", "punct", "newline"]
STYLES: tuple[Style, ...] = get_args(Style)

# kind -> language -> (query, target); {x} is the query's or the candidate's own text.
PUBLISHED: dict[Kind, dict[str, tuple[str, str]]] = {
    "i2t": {
        "en": ("Find an image caption describing the given everyday image", "{x}"),
        "it": ("Trova una didascalia che descriva l'immagine di tutti i giorni", "{x}"),
        "es": ("Encuentra una leyenda que describa la imagen cotidiana dada", "{x}"),
        "fr": ("Trouvez une légende décrivant l'image donnée", "{x}"),
        "de": ("Finde eine Bildunterschrift, die das gegebene Alltagsbild beschreibt", "{x}"),
    },
    "t2i": {
        "en": (
            "Find me an everyday image that matches the given caption: {x}",
            "Represent the given image",
        ),
        "it": (
            "Trovami un'immagine di tutti i giorni che corrisponda alla didascalia data: {x}",
            "Rappresenta l'immagine data",
        ),
        "es": (
            "Encuentra una imagen cotidiana que coincida con la leyenda dada: {x}",
            "Representa la imagen dada",
        ),
        "fr": (
            "Trouvez-moi une image de tous les jours qui correspond à la légende donnée: {x}",
            "Représentez l'image donnée",
        ),
        "de": (
            "Finde mir ein alltägliches Bild, das der gegebenen Beschriftung entspricht: {x}",
            "Stelle das gegebene Bild dar",
        ),
    },
    "vqa": {
        "en": ("Represent the given image with the following question: {x}", "{x}"),
        "it": ("Rappresenta l'immagine data con la seguente domanda: {x}", "{x}"),
        "es": ("Representa la imagen dada con la siguiente pregunta: {x}", "{x}"),
        "fr": ("Représentez l'image donnée avec la question suivante: {x}", "{x}"),
        "de": ("Stellen Sie das gegebene Bild mit der folgenden Frage dar: {x}", "{x}"),
    },
    "vg": {
        "en": (
            'Select the portion of the image that isolates the object labeled as "{x}"',
            "Represent the given cropped image of the object",
        ),
        "fr": (
            "Sélectionnez la partie de l'image qui isole l'objet étiqueté comme \"{x}\"",
            "Représentez l'image recadrée donnée de l'objet",
        ),
    },
    "c": {
        "en": ("Represent the given image for classification", "{x}"),
        "it": ("Rappresenta l'immagine data per la classificazione", "{x}"),
        "es": ("Representa la imagen dada para clasificación", "{x}"),
        "fr": ("Représentez l'image donnée pour la classification", "{x}"),
        "de": ("Stellen Sie das gegebene Bild für die Klassifizierung dar", "{x}"),
    },
}

# MMMEB has no instructions in these languages of MMMEBMini11.
IN_ENGLISH = ("pt", "nl", "pl", "ru", "zh", "ja")

# Ours, not the paper's: its grounding data has English and French only.
EXTRA_INSTRUCTIONS: dict[Kind, dict[str, tuple[str, str]]] = {
    "vg": {
        "it": (
            "Seleziona la parte dell'immagine che isola l'oggetto etichettato come \"{x}\"",
            "Rappresenta l'immagine ritagliata dell'oggetto",
        ),
        "es": (
            'Selecciona la parte de la imagen que aísla el objeto etiquetado como "{x}"',
            "Representa la imagen recortada del objeto",
        ),
        "de": (
            'Wähle den Teil des Bildes aus, der das folgende Objekt isoliert: "{x}"',
            "Stelle den gegebenen Bildausschnitt des Objekts dar",
        ),
    },
}

# What models without instructions get for a class; every other content goes to them bare.
BARE_LABELS: dict[str, str] = {
    "en": "image of {x}",
    "it": "immagine di {x}",
    "es": "imagen de {x}",
    "fr": "image de {x}",
    "de": "Bild von {x}",
}

_ENDINGS = (".", "?")


def render_query(kind: Kind, lang: str, text: str | None = None, *, style: Style = "plain") -> str:
    r"""The text of a query; its image, if the kind has one, goes before it.

    `text`: the caption (t2i), question (vqa) or label (vg); i2t and c take none.

    Raises:
        ValueError: an unknown kind, language or style; a text too many or too few.

    >>> render_query("t2i", "it", "un cane.")
    "Trovami un'immagine di tutti i giorni che corrisponda alla didascalia data: un cane"
    >>> render_query("vqa", "en", "how many dogs", style="newline")
    'Represent the given image with the following question: how many dogs?\n'
    """
    template, _ = instruction(kind, lang)
    # A query is filled before it is punctuated, a target after.
    filled = _fill(template, text, f"{kind} query")
    return _style(style)(filled, "?" if kind == "vqa" else ".")


def render_target(kind: Kind, lang: str, text: str | None = None, *, style: Style = "plain") -> str:
    r"""The text of a candidate: its own text (i2t, vqa, c), or what goes with its image.

    Raises:
        ValueError: an unknown kind, language or style; a text too many or too few.

    >>> render_target("i2t", "en", "A dog.", style="punct")
    'A dog..'
    >>> render_target("t2i", "de", style="newline")
    'Stelle das gegebene Bild dar.\n'
    """
    _, template = instruction(kind, lang)
    finish = _style(style)
    if style == "newline" and "{x}" in template:
        finish = _punct  # only what goes with an image ends in a line break
    # A query is filled before it is punctuated, a target after: hence ".." in targets whose own
    # text ends in ".". The reported figures use this.
    return _fill(finish(template, "."), text, f"{kind} target")


def render_label(lang: str, text: str) -> str:
    """A class name for a model without instructions; bare in languages of `IN_ENGLISH`.

    >>> render_label("de", "Hund")
    'Bild von Hund'
    """
    if lang in IN_ENGLISH:
        return text
    if lang not in BARE_LABELS:
        raise ValueError(_unknown("language", lang, BARE_LABELS))
    return BARE_LABELS[lang].replace("{x}", text)


def task_prompt(kind: Kind, lang: str) -> dict[str, str]:
    """The instructions without the content, as mteb's task prompt, for models with a format.

    >>> task_prompt("t2i", "es")["query"]
    'Encuentra una imagen cotidiana que coincida con la leyenda dada'
    """
    sides = zip(("query", "document"), instruction(kind, lang), strict=True)
    bare = {side: template.split("{x}")[0].rstrip(' :"') for side, template in sides}
    return {side: prompt for side, prompt in bare.items() if prompt}


def instruction(kind: Kind, lang: str) -> tuple[str, str]:
    """The two templates of a kind and language: query, target. Languages of `IN_ENGLISH` have the English ones.

    >>> instruction("c", "en")
    ('Represent the given image for classification', '{x}')
    """
    if kind not in KINDS:
        raise ValueError(_unknown("kind", kind, KINDS))
    table = PUBLISHED[kind] | EXTRA_INSTRUCTIONS.get(kind, {})
    if lang in IN_ENGLISH:
        lang = "en"
    if lang not in table:
        raise ValueError(_unknown(f"language of {kind} instructions", lang, table))
    return table[lang]


def _fill(template: str, text: str | None, what: str) -> str:
    if "{x}" not in template:
        if text is not None:
            raise ValueError(f"a {what} has no text of its own, got {text!r}; leave it out")
        return template
    if text is None:
        raise ValueError(f"a {what} needs its own text, got none")
    return template.replace("{x}", text)


def _plain(text: str, mark: str) -> str:
    text = text.strip()
    return text[:-1] if text.endswith(_ENDINGS) else text


def _punct(text: str, mark: str) -> str:
    return text if text.endswith(_ENDINGS) else text.strip() + mark


def _newline(text: str, mark: str) -> str:
    return _punct(text, mark) + "\n"


_FINISH: dict[Style, Callable[[str, str], str]] = {
    "plain": _plain,
    "punct": _punct,
    "newline": _newline,
}


def _style(style: str) -> Callable[[str, str], str]:
    if style not in _FINISH:
        raise ValueError(_unknown("style", style, STYLES))
    return _FINISH[style]


def _unknown(what: str, value: str, known: Mapping[str, object] | tuple[str, ...]) -> str:
    return f"unknown {what} {value!r}; known: {', '.join(known)}"
