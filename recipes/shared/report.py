"""What a comparison of two models looks like: a table, a chart, a contact sheet."""

import html
from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer

from mmmeb_tasks.data.layout import read_rows
from mmmeb_tasks.instructions import render_query, render_target

from .image_copies import image_tag
from .markup import markdown_table, page_head

Scores = Mapping[str, Mapping[str, float]]

TOP = 5
BEFORE, AFTER, RIGHT, WRONG = "#9aa5b1", "#1f77b4", "#2ca02c", "#d0d0d0"


def score_table(before: Scores, after: Scores, index: Scores | None = None) -> str:
    """P@1 in per cent, tasks x languages, as Markdown; a cell is `teacher → student (difference)`.

    Args:
        before: the teacher's scores.
        after: the student's, over its own candidates.
        index: the student's over the teacher's candidates: a third figure, after a dot.

    >>> print(score_table({"en": {"i2t": 0.9}}, {"en": {"i2t": 0.895}}))
    | P@1, %: teacher → student | en |
    |---|---|
    | i2t | 90.0 → 89.5 (-0.5) |
    >>> scores = [{"en": {"i2t": 0.9}}, {"en": {"i2t": 0.895}}, {"en": {"i2t": 0.88}}]
    >>> print(score_table(*scores).splitlines()[-1])
    | i2t | 90.0 → 89.5 (-0.5) · 88.0 |
    """
    languages = list(before)
    rows = []
    for task in before[languages[0]]:
        cells = []
        for language in languages:
            old, new = 100 * before[language][task], 100 * after[language][task]
            over_index = "" if index is None else f" · {100 * index[language][task]:.1f}"
            cells.append(f"{old:.1f} → {new:.1f} ({new - old:+.1f}){over_index}")
        rows.append([task, *cells])
    head = "P@1, %: teacher → student" + ("" if index is None else " · student on the teacher's index")
    return markdown_table([head, *languages], rows)


def languages_chart(before: Scores, after: Scores, path: Path) -> None:
    """Bars of the mean P@1 over tasks, a language before and after; PNG."""
    languages = list(before)

    def means(scores: Scores) -> list[float]:
        return [100 * sum(scores[lang].values()) / len(scores[lang]) for lang in languages]

    figure, axes = plt.subplots(figsize=(7, 3.2), dpi=150)
    for shift, (label, values, colour) in enumerate(
        [("English teacher", means(before), BEFORE), ("after distillation", means(after), AFTER)]
    ):
        bars = axes.bar(
            [i + 0.4 * (shift - 0.5) for i in range(len(languages))], values, 0.38, label=label, color=colour
        )
        axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=8)
    axes.set_xticks(range(len(languages)), languages)
    axes.set_ylabel("mean P@1 of five tasks, %")
    axes.set_ylim(0, 112)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=2, loc="upper center", fontsize=8)
    axes.set_title("MMMEBMini: 100 candidates a query, chance is 1 %", fontsize=9)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def top_images(model: SentenceTransformer, text: str, language: str, images: list[Path]) -> list[int]:
    """The numbers of the five images nearest to a caption, best first."""
    query = model.encode([render_query("t2i", language, text)], convert_to_tensor=True)
    target = render_target("t2i", language)
    items = [{"image": Image.open(path).convert("RGB"), "text": target} for path in images]
    scores = model.similarity(query, model.encode(items, convert_to_tensor=True, batch_size=64))[0]
    return torch.topk(scores, TOP).indices.tolist()


def contact_sheet(teacher: SentenceTransformer, student: SentenceTransformer, data: Path, out: Path) -> None:
    """One query in five languages with its five nearest images, teacher above student.

    Writes `contact.png`, and `contact.html` with its images in `images/`. The query is the
    first of the benchmark, whatever the models make of it; its right image has a green frame.
    """
    queries, retrieved = {}, {"teacher": {}, "student": {}}
    for file in sorted((data / "datasets").glob("*_formatted_t2i.jsonl")):
        language = file.name.split("_")[1]
        row = next(iter(read_rows(data, "mini", language, 100, "t2i")))
        queries[language] = row
    order = [lang for lang in ("en", "it", "es", "fr", "de") if lang in queries]
    for language in order:
        row = queries[language]
        images = list(row.candidates)
        for name, model in (("teacher", teacher), ("student", student)):
            best = top_images(model, row.text, language, images)
            retrieved[name][language] = [(images[i], i == 0) for i in best]
    texts = {language: queries[language].text for language in order}
    _sheet_png(texts, retrieved, out / "contact.png")
    _sheet_html(texts, retrieved, out)


def _sheet_png(texts: dict[str, str], retrieved: dict[str, dict], path: Path) -> None:
    rows = [(language, name) for language in texts for name in ("teacher", "student")]
    figure, grid = plt.subplots(len(rows), TOP, figsize=(1.15 * TOP + 2.6, 1.12 * len(rows)), dpi=110)
    for (language, name), line in zip(rows, grid, strict=True):
        for axes, (image, right) in zip(line, retrieved[name][language], strict=True):
            axes.imshow(Image.open(image))
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set(edgecolor=RIGHT if right else WRONG, linewidth=4 if right else 1)
        label = f"{language}: {texts[language]}\n{name}"
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8, labelpad=8, parse_math=False)
    figure.tight_layout()
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


def _sheet_html(texts: dict[str, str], retrieved: dict[str, dict], out: Path) -> None:
    (out / "images").mkdir()
    body = []
    for language, text in texts.items():
        body.append(f"<h2>{language}: {html.escape(text)}</h2>")
        for name in ("teacher", "student"):
            images = []
            for image, right in retrieved[name][language]:
                images.append(image_tag(image, out / "images", css="right" if right else ""))
            body.append(f"<p><span>{name}</span>{''.join(images)}</p>")
    style = (
        "body{font:16px sans-serif;margin:2em}h2{font-size:16px;margin:1em 0 0}p{margin:.3em 0}"
        "span{display:inline-block;width:6em;vertical-align:middle}"
        "img{width:96px;margin:3px;border:4px solid #ddd;vertical-align:middle}"
        "img.right{border-color:#2ca02c}"
    )
    page = (
        f"{page_head('One query, five languages', style)}<h1>One query in five languages: top five images</h1>"
        f"{''.join(body)}</html>\n"
    )
    (out / "contact.html").write_text(page, encoding="utf-8")
