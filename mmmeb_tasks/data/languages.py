"""The languages of MMMEB."""

# As its files name them, and as mteb does.
LANGUAGES: dict[str, str] = {
    "en": "eng-Latn",
    "it": "ita-Latn",
    "es": "spa-Latn",
    "fr": "fra-Latn",
    "de": "deu-Latn",
    # Of MMMEBMini11 only.
    "pt": "por-Latn",
    "nl": "nld-Latn",
    "pl": "pol-Latn",
    "ru": "rus-Cyrl",
    "zh": "zho-Hans",
    "ja": "jpn-Jpan",
}
