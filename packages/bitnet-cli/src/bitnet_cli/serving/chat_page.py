"""The chat page at ``/``: one file, which asks nobody but the server that it comes from."""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from aiohttp import web


@cache
def _page() -> tuple[str, dict[str, str]]:
    text = Path(__file__).with_name("chat.html").read_text(encoding="utf-8")
    return text, {
        # Only this very script runs, whatever an answer holds; and nobody puts the page into a frame of theirs.
        "Content-Security-Policy": (
            f"default-src 'none'; script-src {_hash(text, 'script')}; style-src {_hash(text, 'style')}; img-src data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


def _hash(page: str, tag: str) -> str:
    """As a content security policy names an inline element."""
    (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


async def chat_page(request: web.Request) -> web.Response:
    text, headers = _page()
    return web.Response(text=text, content_type="text/html", headers=headers)
