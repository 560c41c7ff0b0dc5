"""Refuse what pages of other sites send to the page: their uploads would fill the disk."""

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class OwnOrigin:
    """Middleware that takes requests of this page, and of programs that are not browsers.

    A browser names the page that sends a request in its header `Origin`, except where it only opens an address.

    Args:
        app: that answers the others.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if headers.get("origin") not in (None, f"http://{headers.get('host')}"):
                await PlainTextResponse("a page of another site sent this", 403)(scope, receive, send)
                return
        await self.app(scope, receive, send)
