"""The page of `GET /`, with a policy that lets it load nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from fastapi import APIRouter, Response

router = APIRouter()


def _assemble() -> bytes:
    """`page/index.html`, in which each comment that names scripts or styles is replaced by their content."""
    folder = files(__package__.rpartition(".")[0]) / "page"

    def inserted(names: re.Match[bytes]) -> bytes:
        return b"\n".join(folder.joinpath(name).read_bytes() for name in names[1].decode().split())

    return re.sub(rb"<!-- ((?:[a-z]+\.(?:js|css) )+)-->", inserted, folder.joinpath("index.html").read_bytes())


PAGE = _assemble()


def _hashes(tag: str) -> str:
    """Sources for the policy: digests of the page's inline scripts or styles."""
    contents = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), PAGE, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(each).digest()).decode()}'" for each in contents)


PAGE_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_hashes('script')}; style-src {_hashes('style')}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    ),
    "Referrer-Policy": "no-referrer",
}


@router.get("/", response_class=Response, responses={200: {"content": {"text/html": {}}}})
async def page() -> Response:
    """A page to try the reranker in a browser."""
    return Response(PAGE, headers=PAGE_HEADERS)
