"""Reads a built site as a browser would: where its links lead, and what its pages load."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "object": "data",
}
"""Attributes whose address a browser loads without being asked. ``link`` is told by its ``rel``."""

NOT_LOADED = {"canonical", "next", "prev", "alternate", "edit"}


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.anchors |= {attributes[name] for name in ("id", "name") if name in attributes}
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        elif tag == "link" and not set(attributes.get("rel", "").split()) & NOT_LOADED:
            self.loaded.append(attributes.get("href", ""))
        elif tag in LOADED:
            self.loaded.append(attributes.get(LOADED[tag], ""))
        if "srcset" in attributes:
            self.loaded += [part.split()[0] for part in attributes["srcset"].split(",")]


def faults(site: Path) -> list[str]:
    """What is wrong with the site in this folder, a sentence each; empty if nothing is.

    Links within the site lead to a page of it, and to an anchor there. Pages load files of the
    site only. Links to other hosts are not followed.
    """
    pages = {path.resolve(): _Page(path.read_text("utf-8")) for path in site.rglob("*.html")}
    found: list[str] = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve()).as_posix()
        if name == "404.html":  # its addresses are those of a server's root
            continue
        for address in page.links:
            found += [
                f"{name} links to {address}, {fault}" for fault in _link(address, path, pages)
            ]
        for address in page.loaded:
            if _elsewhere(address):
                found.append(f"{name} loads {address}, which is on another host")
            elif not (path.parent / unquote(urlsplit(address).path)).exists():
                found.append(f"{name} loads {address}, which does not exist")
    for style in site.rglob("*.css"):
        text = style.read_text("utf-8")
        if "url(http" in text or "url(//" in text or "@import" in text:
            found.append(f"{style.relative_to(site).as_posix()} loads what it does not have itself")
    return sorted(set(found))


def _link(address: str, page: Path, pages: dict[Path, _Page]) -> list[str]:
    if _elsewhere(address) or urlsplit(address).scheme:
        return []
    path, anchor = urldefrag(address)
    target = (page.parent / unquote(path)).resolve() if path else page
    target = target / "index.html" if target.is_dir() else target
    if target not in pages:
        return [] if target.exists() else ["which does not exist"]
    if anchor and unquote(anchor) not in pages[target].anchors:
        return ["which has no such anchor"]
    return []


def _elsewhere(address: str) -> bool:
    return bool(urlsplit(address).netloc)
