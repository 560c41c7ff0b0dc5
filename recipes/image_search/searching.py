"""Answer a query from the command line."""

import argparse
import sys
from pathlib import Path

from xvlm2vec_st.utils.folders import whole_file
from xvlm2vec_st.utils.texts import one_line

from .models import load_query_model
from .queries import embed_query
from .results_page import results_page
from .store import ImageIndex, Match


def search(args: argparse.Namespace) -> list[Match]:
    """Print the best matches, and write them as a page if asked to.

    Raises:
        ValueError: the query is empty; there is no index; the model embeds into another space; --html
            cannot be written.
    """
    if args.text is None and args.image is None:
        raise ValueError("the query is empty; pass a TEXT, --image FILE, or both")
    if args.html:
        check_file(args.html)
    index = ImageIndex.open(args.index)
    model = load_query_model(index.space, args.model, args.device)
    query = embed_query(model, args.text, args.image, args.prompt, alone=index.space.prompt)
    matches = index.search(query, args.limit, folder=args.folder, since=args.since, until=args.until)
    for match in matches:
        print(f"{match.score:.4f}  {one_line(match.path)}")
    if not matches:
        print(one_line(why_none(index, args)), file=sys.stderr)
    if args.html:
        title = " + ".join(str(part) for part in (args.text, args.image) if part is not None)
        with whole_file(args.html) as part:
            part.write_text(results_page(title, matches, index.thumbnail), "utf-8")
    return matches


def check_file(html: Path) -> None:
    """Refuse, before the model loads, a page that could not be written.

    Raises:
        ValueError: it is a folder, or lies in one that does not exist.
    """
    if html.is_dir():
        raise ValueError(f"--html {html} is a folder; pass a file")
    if not html.parent.is_dir():
        raise ValueError(f"--html {html}: there is no folder {html.parent}; make it, or pass another file")


def why_none(index: ImageIndex, args: argparse.Namespace) -> str:
    """Why a search has found nothing: the index is empty, or the filters leave no image."""
    if not len(index):
        return f"{args.index} has no images; put some into {index.root}, and run the command `index` again"
    filters = [f"--{name} {value}" for name in ("folder", "since", "until") if (value := getattr(args, name))]
    return f"no image of {args.index} matches {' '.join(filters)}; --folder is a folder below {index.root}"
