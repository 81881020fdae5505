"""The pages of the site in Markdown: ``docs/``, what its pages link to, and the reference."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from website.reference import reference

LINK = re.compile(
    r"(?:\[(?P<name>[\w/]+\.md))?\]\((?!https?:|#)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)"
)
HEADING = re.compile(r"^# (?P<title>.*)$", re.MULTILINE)
SECTION = re.compile(
    r"^## (?P<title>.*)$|^\| \[(?P<name>[^\]]*)\]\((?P<path>[^)#]*\.md)\)", re.MULTILINE
)
FENCED = re.compile(r"^(?P<fence>```+).*?^(?P=fence)$", re.MULTILINE | re.DOTALL)
IMAGE = re.compile(r'(?P<opening>\bsrc(?:set)?=")(?P<path>[^":]+)"')
IMAGES = {".png", ".svg"}
LANGUAGES = {".py": "python", ".service": "ini", ".env": "ini", ".yaml": "yaml"}


class Pages:
    """The pages of the repository in ``root``: their texts, by their path within the site.

    A link to a file outside ``docs/`` leads to a page of its own: the file itself if it is
    Markdown, else its text as a block of code. A directory becomes one page with all of its files.
    A link whose text is the name of a page's file has the title of the page instead. ``images``:
    the files of the pictures that the pages show, likewise by path.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.texts: dict[str, str] = {}
        self.images: dict[str, Path] = {}
        found = sorted((root / "docs").rglob("*.md"))
        while found:
            source = found.pop()
            if (path := self._path(source)) not in self.texts:
                self.texts[path] = self._page(source, found)
        self.texts |= {
            _reference(title): text for title, text in reference(root / "taskiq_flow").items()
        }
        self.texts["SUMMARY.md"] = self._navigation()

    def write(self, folder: Path) -> None:
        """Make ``folder`` hold these pages and nothing else. Equal files stay untouched."""
        style = (self.root / "website" / "style.css").read_text("utf-8")
        files = {
            **{name: text.encode() for name, text in {**self.texts, "style.css": style}.items()},
            **{name: image.read_bytes() for name, image in self.images.items()},
        }
        for path in folder.rglob("*"):
            if path.is_file() and path.relative_to(folder).as_posix() not in files:
                path.unlink()
        for name, data in files.items():
            path = folder / name
            if not path.exists() or path.read_bytes() != data:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)

    def _path(self, source: Path) -> str:
        path = PurePosixPath(source.relative_to(self.root).as_posix())
        if path.parts[0] == "docs":
            return str(path.relative_to("docs"))
        if len(path.parts) == 1 and path.suffix == ".md":
            return str(path).lower()
        name = path if path.suffix == ".md" else f"{path}.md"
        return f"files/{name}".replace("README.md", "about.md")

    def _page(self, source: Path, found: list[Path]) -> str:
        if source.suffix != ".md":
            return self._files(source)
        text = source.read_text("utf-8")
        folder = PurePosixPath(self._path(source)).parent

        def path_to(link: re.Match[str]) -> tuple[Path, str]:
            target = (source.parent / link["path"]).resolve()
            if not target.exists():
                name = source.relative_to(self.root)
                raise LookupError(f"{name} links to {link['path']}, which does not exist")
            if target.suffix in IMAGES:
                self.images[self._path(target)] = target
            else:
                found.append(target)
            return target, os.path.relpath(self._path(target), folder)

        def rewritten(link: re.Match[str]) -> str:
            target, path = path_to(link)
            opening = f"[{_title(target)}](" if link["name"] else "]("
            return f"{opening}{path}{link['anchor'] or ''})"

        def shown(text: str) -> str:
            text = LINK.sub(rewritten, text)
            return IMAGE.sub(lambda image: f'{image["opening"]}{path_to(image)[1]}"', text)

        parts = []
        end = 0
        for block in FENCED.finditer(text):
            parts += [shown(text[end : block.start()]), block[0]]
            end = block.end()
        return "".join([*parts, shown(text[end:])])

    def _files(self, source: Path) -> str:
        files = [source] if source.is_file() else sorted(source.iterdir())
        blocks = [
            f"```{LANGUAGES.get(file.suffix, 'text')}\n{file.read_text('utf-8')}```\n"
            for file in files
        ]
        if len(files) > 1:
            blocks = [
                f"## {file.name}\n\n{block}" for file, block in zip(files, blocks, strict=True)
            ]
        return f"# {source.relative_to(self.root).as_posix()}\n\n" + "\n".join(blocks)

    def _navigation(self) -> str:
        """The pages that the tables of ``index.md`` list, below their headings; the reference."""
        lines = ["- [taskiq_flow](index.md)"]
        section = ""
        for match in SECTION.finditer(self.texts["index.md"]):
            if match["path"] is None:
                section = match["title"]
                continue
            if section:
                lines.append(f"- {section}")
                section = ""
            lines.append(f"    - [{match['name']}]({match['path']})")
        lines.append("- Reference")
        lines += [
            f"    - [{title}]({_reference(title)})"
            for title in reference(self.root / "taskiq_flow")
        ]
        return "\n".join(lines) + "\n"


def _title(page: Path) -> str:
    heading = HEADING.search(page.read_text("utf-8"))
    return heading["title"] if heading else page.name


def _reference(title: str) -> str:
    return f"reference/{title.lower().replace(' ', '_')}.md"
