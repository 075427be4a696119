"""The page of a package in an index: JSON (PEP 691) or HTML (PEP 503), from which only links to one file are taken."""

import re
from dataclasses import dataclass
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from lora_chat.system.strict_json import parse_strict_json

PAGE_TYPES = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
"""Value of the header Accept of a request for a page."""
_SHA256 = re.compile(r"sha256=([0-9a-f]{64})")


@dataclass(frozen=True)
class FileLink:
    """A link to a file."""

    url: str
    sha256: str | None
    """Digest that the page states, if any."""


def find_links(page: bytes, content_type: str, address: str, name: str) -> list[FileLink]:
    """Return the links of a page to files with exactly this name. Return nothing if the page cannot be read."""
    try:
        text = page.decode("utf-8")
        links = _read_json(text, name) if "json" in content_type.lower() else _read_html(text, name)
        return [FileLink(urldefrag(urljoin(address, link.url)).url, link.sha256) for link in links]
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return []


def _read_json(text: str, name: str) -> list[FileLink]:
    page = parse_strict_json(text)
    files = [file for file in page["files"] if file["filename"] == name]
    return [FileLink(str(file["url"]), (file.get("hashes") or {}).get("sha256")) for file in files]


def _read_html(text: str, name: str) -> list[FileLink]:
    parser = _LinkParser()
    parser.feed(text)
    links = []
    for url in parser.addresses:
        if unquote(urlsplit(url).path.rpartition("/")[2]) == name:
            digest = _SHA256.search(urldefrag(url).fragment)
            links.append(FileLink(url, digest[1] if digest else None))
    return links


class _LinkParser(HTMLParser):
    """Collect the addresses of the links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value for key, value in attrs if tag == "a" and key == "href" and value]
