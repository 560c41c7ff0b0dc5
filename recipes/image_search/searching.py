"""Answer a query from the command line."""

import argparse
import sys

from xvlm2vec_st.utils.folders import whole_file
from xvlm2vec_st.utils.texts import printable

from .models import load_query_model
from .queries import embed_query
from .results_page import results_page
from .store import ImageIndex, Match


def search(args: argparse.Namespace) -> list[Match]:
    """Print the best matches, and write them as a page if asked to.

    Raises:
        ValueError: the query is empty; there is no index; the model embeds into another space.
    """
    if args.text is None and args.image is None:
        raise ValueError("the query is empty; pass a TEXT, --image FILE, or both")
    index = ImageIndex.open(args.index)
    model = load_query_model(index.space, args.model, args.device)
    query = embed_query(model, args.text, args.image, args.prompt, alone=index.space.prompt)
    matches = index.search(query, args.limit, folder=args.folder, since=args.since, until=args.until)
    for match in matches:
        print(f"{match.score:.4f}  {printable(match.path)}")
    if not matches:
        print("no image of the index is in that folder and time", file=sys.stderr)
    if args.html:
        title = " + ".join(str(part) for part in (args.text, args.image) if part is not None)
        with whole_file(args.html) as part:
            part.write_text(results_page(title, matches, index.thumbnail), "utf-8")
    return matches
