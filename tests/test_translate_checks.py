"""The quick forms of the checks give what the plain ones give; a corpus is checked as its rows are, one by one."""

import json
import random
import re
import unicodedata
from collections import Counter

import pytest

from mmmeb_tasks.mini.write import write_corpus
from recipes.translate import fields, language_scores, misaligned
from recipes.translate.checks import CHECKS, SENTENCE, _foreign, other_script, refusal, refusals, sentences
from recipes.translate.language_check import LETTERS, identifier, letters, width, wrong_language
from recipes.translate.languages import SCRIPTS, language
from recipes.translate.merge import merge
from recipes.translate.placeholders import PLACEHOLDER, QUOTED, numbers, placeholders, quotes
from recipes.translate.repair import ending, mark_class
from recipes.translate.repetition import REPEATED, repetition
from recipes.translate.report import EXAMPLES, examples
from xvlm2vec_st.data.corpus import ParallelRow

CODES = ["it", "es", "fr", "de"]
BITS = """{x} | <b> | %s | https://a.b/c | me@x.org | [SEP] | "label" | «mot» | „Wort“ | 「犬」
| 15" | 3 | 1,000.5 | ３ | ½ | … | .. | ? | ! | 。 | Q: | Question: | собака | 犬 | #300 - | <unk>
| ha | dog | the dog | Mr. X | e.g. A | (no.) | ' | ” | A. B. | z.B. | é | ² | ª | µ | Ω | ASSEMBLY
| iPad | ¿que? | ; | : | ſ | İ | ß | Represent the given image | a | b | .
| Rappresenta l'immagine data
| Finde mir ein alltägliches Bild, das der gegebenen Beschriftung entspricht:
| Find me an everyday image that"""
SPACES = ["", "", " ", " ", " ", "\n", " \n ", "\t", "\u3000", "\u2028", "        "]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Texts of signs, words and white space, many of them several times."""
    rng, bits = random.Random(0), [bit.strip(" \n") for bit in BITS.split("|")]
    made = []
    for _ in range(3000):
        text = "".join(rng.choice(bits) + rng.choice(SPACES) for _ in range(rng.randint(0, 7)))
        made.append(text * rng.choice((1, 1, 1, 1, 2, 3, 4, 5)) + rng.choice(bits))
    return made


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> list[tuple[str, str, str]]:
    """(English, translation, language): good ones, in the wrong language, copies, and of nasty texts."""
    corpus = write_corpus(tmp_path_factory.mktemp("mini") / "c", ["en", *CODES], scenes=100) / "parallel.jsonl"
    rows = [json.loads(line) for line in corpus.read_text("utf-8").splitlines()]
    rng = random.Random(1)
    made = [(row["en"], row[code], code) for row in rows for code in CODES]
    made += [(row["en"], row[rng.choice(["en", *CODES])], code) for row in rows for code in CODES]
    made += [(row["en"] + rng.choice(texts), row[code] + rng.choice(texts), code) for row in rows for code in CODES]
    return made


PLAIN_SENTENCE = re.compile(
    r"(?<!\bMr)(?<!\bDr)(?<!\bSt)(?<!\bMs)(?<!\bvs)(?<!Mrs)(?<!\b\w)[.!?…؟۔։።][\"'”’»)]*(?=\s+[^\Wa-z\d_]|\s*$)"
    r"|[。！？।॥།။።][」』”)]*"
)


def test_sentences_end_where_they_did(texts: list[str]) -> None:
    found = [PLAIN_SENTENCE.findall(text) for text in texts]
    assert [SENTENCE.findall(text) for text in texts] == found
    assert Counter(map(len, found)).keys() >= {0, 1, 2, 3} and sentences("Mr. A. B met St. Ives. It is so.") == 2


def test_repetitions_are_those_of_the_whole_search(texts: list[str]) -> None:
    rng = random.Random(2)
    more = ["".join(rng.choices("ab c", k=rng.randint(1, 60))) for _ in range(2000)]
    more += [f"x{unit * times}y" for unit in ("ab", "abc", " a", "abcdefgh ij", "  ", "犬 ") for times in (3, 4, 5)]
    found = [match and match.group(1) for match in map(REPEATED.search, [*texts, *more])]
    assert [*map(repetition, [*texts, *more])] == found
    assert found.count(None) > 1000 < len(found) - found.count(None)


def plain_width(text: str) -> float:
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) - wide + (2.2 * wide if wide else 0)


def test_widths_counts_and_ends_are_the_same(texts: list[str]) -> None:
    assert [*map(width, texts)] == [*map(plain_width, texts)]
    assert [*map(placeholders, texts)] == [Counter(PLACEHOLDER.findall(text)) for text in texts]
    assert [*map(quotes, texts)] == [len(QUOTED.findall(text)) for text in texts]
    assert any(map(placeholders, texts)) and any(map(quotes, texts)) and any(map(numbers, texts))
    for text in texts:
        if not ending(text.rstrip())[1] and not text.rstrip().endswith(";"):
            assert mark_class(text, "el") is None


def plain_other_script(english: str, translation: str, code: str) -> str | None:
    own, source = SCRIPTS[language(code).script], set(re.findall(r"\w+", english.casefold()))
    for word in re.findall(r"\w+", translation):
        for part in _foreign(word, own):
            known = part.casefold() in source or part.strip("0123456789_").casefold() in source
            if not known and not part.isupper():
                return part
    return None


def test_letters_of_other_scripts_are_found(texts: list[str]) -> None:
    for code in ("it", "ja", "ru", "el"):
        found = [plain_other_script("a dog", text, code) for text in texts]
        assert [other_script("a dog", text, code) for text in texts] == found
        assert len({*found}) > 5


def test_a_long_foreign_word_is_read_in_linear_time() -> None:
    assert [*_foreign("犬" + "я" * 300_000 + "犬", SCRIPTS["Jpan"])] == ["я" * 300_000]


def plain_instruction(text: str, code: str) -> str | None:
    """Every known instruction is compared."""
    body = text.strip()
    exact = next((english for english, pattern in fields._patterns(code) if body and pattern.fullmatch(body)), None)
    if exact is not None or code == "en":
        return exact
    ranked = []
    for english, words, _, opens in misaligned._known(code):
        target = misaligned._words(text)[: len(words) if opens else None]
        ranked.append((misaligned._likeness(words, target), english))
    best = max(ranked, default=(0, ""))
    return best[1] if best[0] >= misaligned.ALIKE else None


def test_instructions_are_those_of_all_comparisons(texts: list[str], pairs: list[tuple[str, str, str]]) -> None:
    both = [(text, code) for text in texts[:800] for code in ("en", "it", "de", "ja")]
    both += [(english, "en") for english, _, _ in pairs] + [(text, code) for _, text, code in pairs]
    found = [plain_instruction(text, code) for text, code in both]
    assert [misaligned.instruction_of(text, code) for text, code in both] == found
    assert len({*found}) > 6


def plain_refusal(english: str, translation: str, code: str, skip: tuple[str, ...] = ()) -> tuple[str, str] | None:
    for reason, check in CHECKS.items():
        if reason not in skip and (detail := check(english, translation, code)) is not None:
            return reason, detail
    return None


@pytest.mark.parametrize("skip", [(), ("pairing", "copy"), ("language", "number")])
def test_a_corpus_is_refused_as_its_rows_are(pairs: list[tuple[str, str, str]], skip: tuple[str, ...]) -> None:
    found = [plain_refusal(*pair, skip=skip) for pair in pairs]
    assert refusals(pairs, skip=skip) == found == [refusal(*pair, skip=skip) for pair in pairs]
    reasons = Counter(why and why[0] for why in found)
    assert reasons[None] > 300 and (reasons["language"] > 20 or "language" in skip) and len(reasons) > 8
    assert not {*skip} & {*reasons}


def test_scores_together_are_those_of_py3langid(pairs: list[tuple[str, str, str]], texts: list[str]) -> None:
    """Fails when py3langid reads or scores otherwise: then `language_scores` has to follow it."""
    some = [text for _, text, _ in pairs[::9]] + texts[:150] + ["", "A", "HUND UND KATZE", "e\u0301", "…", "x" * 400]
    names = identifier().nb_classes
    for text, scores in zip(some, language_scores.language_scores([*map(language_scores.encode, some)]), strict=True):
        ranked = dict(identifier().rank(text))
        for name, score in zip(names, scores.tolist(), strict=True):
            first = names.index(name)
            assert scores[first] == pytest.approx(ranked[name], abs=1e-4) and score <= scores[first]
    assert language_scores.language_scores([]).shape == (0, len(names))


def test_who_is_surely_right_is_not_refused(pairs: list[tuple[str, str, str]]) -> None:
    sure = language_scores.surely_right(pairs)
    refused = [wrong_language(*pair) for pair in pairs]
    assert not any(certain and why for certain, why in zip(sure, refused, strict=True))
    asked = [letters(pair[1]) >= LETTERS for pair in pairs]
    # Few are looked at twice; else nothing is gained.
    assert any(refused) and sum(sure) > 0.8 * len(pairs) and sum(asked) > 0.5 * len(pairs)


def test_rows_that_are_alike_are_kept_one_by_one() -> None:
    row = ParallelRow("1", None, "a dog", {"it": "un cane"})
    rows = [row, row, ParallelRow("2", None, "a dog", {"it": "a dog"}), ParallelRow("3", None, "a dog", {})] * 700
    merged = merge(rows, ["it"], {}, complete=False)
    assert len(merged.kept) == 1400 and [one.reason for one in merged.refused[:2]] == ["copy", "untranslated"]
    assert [one.id for one in merged.refused] == ["2", "3"] * 700


def test_examples_are_the_first_of_all_in_their_order() -> None:
    rows = [ParallelRow(str(n), None, "a", {"it": "b", "de": "c"}) for n in range(50)]
    merged = merge(rows, ["it", "de"], {}, skip=list(CHECKS), complete=False)
    tables = dict(examples(merged))
    assert [*tables] == ["kept, it (50)", "kept, de (50)"]
    one = tables["kept, de (50)"]
    assert len(one) == 1 + EXAMPLES and len({row[0] for row in one[1:]}) == EXAMPLES
    assert one[1][1:] == ["de", "a", "c", ""]


def test_long_texts_are_split_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    plain = fields.split_lines
    monkeypatch.setattr(fields, "split_lines", lambda text: seen.append(text) or plain(text))
    long = "Q: a dog?\n" * 2000
    for _ in range(3):
        fields.split_text(long), fields.split_text(long, "it")
    assert len(seen) == 2
