"""Languages: their names, the codes that translators know them by, their scripts and final marks."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from xvlm2vec_st.data.corpus import INDONESIAN

# code, ISO 639-3, name, scripts as Unicode names its characters. ISO 15924 codes: SCRIPTS below.
_TABLE = """
af afr Afrikaans Latn|am amh Amharic Ethi|ar arb Arabic Arab|as asm Assamese Beng|az azj Azerbaijani Latn
be bel Belarusian Cyrl|bg bul Bulgarian Cyrl|bn ben Bengali Beng|bs bos Bosnian Latn|ca cat Catalan Latn
chr chr Cherokee Cher|cs ces Czech Latn|cv chv Chuvash Cyrl|cy cym Welsh Latn|da dan Danish Latn
de deu German Latn|el ell Greek Grek|en eng English Latn|es spa Spanish Latn|et est Estonian Latn
eu eus Basque Latn|fa pes Persian Arab|fi fin Finnish Latn|fil tgl Filipino Latn|fo fao Faroese Latn
fr fra French Latn|ga gle Irish Latn|gd gla Gaelic Latn|gl glg Galician Latn|gu guj Gujarati Gujr
ha hau Hausa Latn|he heb Hebrew Hebr|hi hin Hindi Deva|hr hrv Croatian Latn|hu hun Hungarian Latn
hy hye Armenian Armn|ind ind Indonesian Latn|ig ibo Igbo Latn|is isl Icelandic Latn|it ita Italian Latn
ja jpn Japanese Jpan|jv jav Javanese Latn|ka kat Georgian Geor|kk kaz Kazakh Cyrl|km khm Khmer Khmr
kn kan Kannada Knda|ko kor Korean Hang|ky kir Kyrgyz Cyrl|lb ltz Luxembourgish Latn|lo lao Lao Laoo
lt lit Lithuanian Latn|lv lvs Latvian Latn|mg plt Malagasy Latn|mi mri Maori Latn|mk mkd Macedonian Cyrl
ml mal Malayalam Mlym|mn khk Mongolian Cyrl|mr mar Marathi Deva|ms zsm Malay Latn|mt mlt Maltese Latn
my mya Burmese Mymr|nb nob Norwegian-Bokmål Latn|ne npi Nepali Deva|nl nld Dutch Latn
nn nno Norwegian-Nynorsk Latn|no nob Norwegian Latn|or ory Odia Orya|pa pan Punjabi Guru|pl pol Polish Latn
ps pbt Pashto Arab|pt por Portuguese Latn|qu quy Quechua Latn|ro ron Romanian Latn|ru rus Russian Cyrl
rw kin Kinyarwanda Latn|sd snd Sindhi Arab|si sin Sinhala Sinh|sk slk Slovak Latn|sl slv Slovenian Latn
so som Somali Latn|sq als Albanian Latn|sr srp Serbian Cyrl|sv swe Swedish Latn|sw swh Swahili Latn
ta tam Tamil Taml|te tel Telugu Telu|tg tgk Tajik Cyrl|th tha Thai Thai|ti tir Tigrinya Ethi
tk tuk Turkmen Latn|tl tgl Tagalog Latn|tr tur Turkish Latn|tt tat Tatar Cyrl|uk ukr Ukrainian Cyrl
ur urd Urdu Arab|uz uzn Uzbek Latn|vi vie Vietnamese Latn|wo wol Wolof Latn|xh xho Xhosa Latn
yi ydd Yiddish Hebr|yo yor Yoruba Latn|yue yue Cantonese Hant|zh zho Chinese Hans|zu zul Zulu Latn
zh-Hant zho Chinese-(traditional) Hant|zh-Hans zho Chinese-(simplified) Hans|sr-Latn srp Serbian-(Latin) Latn
pt-BR por Portuguese-(Brazil) Latn|pt-PT por Portuguese-(Portugal) Latn|kk-Arab kaz Kazakh-(Arabic) Arab
"""

# How Unicode names begin, by ISO 15924 code: `unicodedata.name("д")` is CYRILLIC SMALL LETTER DE.
SCRIPTS: dict[str, tuple[str, ...]] = {
    "Arab": ("ARABIC",),
    "Armn": ("ARMENIAN",),
    "Beng": ("BENGALI",),
    "Cher": ("CHEROKEE",),
    "Cyrl": ("CYRILLIC",),
    "Deva": ("DEVANAGARI",),
    "Ethi": ("ETHIOPIC",),
    "Geor": ("GEORGIAN",),
    "Grek": ("GREEK",),
    "Gujr": ("GUJARATI",),
    "Guru": ("GURMUKHI",),
    "Hang": ("HANGUL", "CJK"),
    "Hans": ("CJK",),
    "Hant": ("CJK",),
    "Hebr": ("HEBREW",),
    "Jpan": ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "CJK"),
    "Khmr": ("KHMER",),
    "Knda": ("KANNADA",),
    "Laoo": ("LAO",),
    "Latn": ("LATIN",),
    "Mlym": ("MALAYALAM",),
    "Mymr": ("MYANMAR",),
    "Orya": ("ORIYA",),
    "Sinh": ("SINHALA",),
    "Taml": ("TAMIL",),
    "Telu": ("TELUGU",),
    "Thai": ("THAI",),
}

# What ends a statement, a question, … in scripts that do not write . ? ! : for it.
MARKS: dict[str, dict[str, str]] = {
    "Arab": {"question": "؟"},
    "Armn": {"stop": "։", "question": "՞"},
    "Beng": {"stop": "।"},
    "Deva": {"stop": "।"},
    "Ethi": {"stop": "።", "question": "?"},
    "Grek": {"question": ";"},
    "Guru": {"stop": "।"},
    "Hans": {"stop": "。", "question": "？", "exclamation": "！", "colon": "："},
    "Hant": {"stop": "。", "question": "？", "exclamation": "！", "colon": "："},
    "Jpan": {"stop": "。", "question": "？", "exclamation": "！", "colon": "："},
    "Khmr": {"stop": "។"},
    "Laoo": {"stop": ""},
    "Mymr": {"stop": "။"},
    "Orya": {"stop": "।"},
    "Thai": {"stop": ""},
}
# Languages that do not write as others of their script do.
OWN_MARKS = {"mr": {"stop": "."}, "ur": {"stop": "۔", "question": "؟"}}
PLAIN_MARKS = {"stop": ".", "question": "?", "exclamation": "!", "colon": ":"}


@dataclass(frozen=True)
class Language:
    """A language by its code (`pt`, `zh-Hant`), ISO 639-3 code, English name and ISO 15924 script."""

    code: str
    iso3: str
    name: str
    script: str

    @cached_property
    def marks(self) -> dict[str, str]:
        """The mark that ends a `stop`, `question`, `exclamation`, `colon`; "" where none is written."""
        return PLAIN_MARKS | MARKS.get(self.script, {}) | OWN_MARKS.get(self.code, {})


LANGUAGES: dict[str, Language] = {
    fields[0]: Language(fields[0], fields[1], fields[2].replace("-", " "), fields[3])
    for fields in (entry.split() for line in _TABLE.split("\n") for entry in line.split("|") if entry)
}


def language(code: str) -> Language:
    """The entry of a code; of `pt-XX` that of `pt` where there is no other.

    Raises:
        ValueError: an unknown code, with the nearest known ones; `id`, which is a row's key.

    >>> language("pt").name, language("ja").marks["stop"]
    ('Portuguese', '。')
    """
    if code == "id":
        raise ValueError(INDONESIAN)
    entry = LANGUAGES.get(code) or LANGUAGES.get(code.split("-")[0].split("_")[0])
    if entry is None:
        raise ValueError(f"unknown language {code!r}; {nearest(code, LANGUAGES)}")
    return entry


def common(code: str) -> str:
    """A code as translators, identifiers and catalogues write it.

    >>> common("ind"), common("pt-BR")
    ('id', 'pt-BR')
    """
    return "id" if code == "ind" else code


def nearest(code: str, known: Iterable[str]) -> str:
    """Which known codes a wrong one may have meant; language names count as codes.

    >>> nearest("prt", ["pt", "it", "de"])
    'nearest: pt, it'
    >>> nearest("portuguese", ["pt", "it", "de"])
    'nearest: pt'
    """
    known = list(known)
    named = [c for c in known if c in LANGUAGES and LANGUAGES[c].name.casefold() == code.casefold()]
    by_iso = [c for c in known if c in LANGUAGES and LANGUAGES[c].iso3 == code]
    names = {LANGUAGES[c].name.casefold(): c for c in known if c in LANGUAGES}
    alike = [names[name] for name in difflib.get_close_matches(code.casefold(), names, n=3, cutoff=0.75)]
    close = named or by_iso or alike or difflib.get_close_matches(code, known, n=3, cutoff=0.4)
    return f"nearest: {', '.join(close)}" if close else f"known: {', '.join(sorted(known))}"
