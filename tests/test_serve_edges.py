"""The page while something else happens: another site sends requests, or an image leaves the index."""

import http.client
from datetime import datetime
from types import SimpleNamespace
from urllib.parse import urlsplit

import image_page
import numpy as np
import pytest

for package in ("gradio", "lancedb"):
    pytest.importorskip(package)
from recipes.image_search.answers import Answers  # noqa: E402

pytestmark = pytest.mark.filterwarnings(image_page.PANDAS)
FORM = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nx\r\n--edge--\r\n'


def test_a_page_of_another_site_sends_nothing(tmp_path):
    with image_page.served(image_page.make_index(tmp_path, [0]), [None]) as address:

        def post(origin):
            connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
            headers = {"Content-Type": "multipart/form-data; boundary=edge"} | ({"Origin": origin} if origin else {})
            connection.request("POST", "/gradio_api/upload", FORM, headers)
            return connection.getresponse().status

        own, other_port = address.rstrip("/"), f"http://127.0.0.1:{urlsplit(address).port + 1}"
        assert [post(origin) for origin in (None, own)] == [200, 200]
        assert [post(origin) for origin in ("http://evil.example", "null", other_port)] == [403, 403, 403]


def test_an_image_that_leaves_the_index_during_a_search_is_a_line():
    def gone(content):
        raise ValueError("an image has left the index since it was found; search again")

    match = SimpleNamespace(path="a.png", score=1.0, width=1, height=1, modified=datetime(2024, 5, 1), content="00")
    index = SimpleNamespace(search=lambda vector, limit: [match], thumbnail=gone)
    answers = Answers(index, {"teacher": lambda text, image: np.ones(2)}, 20)
    assert answers.answer("mela", None) == ("error: an image has left the index since it was found; search again", "")
