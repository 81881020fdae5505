"""The pages from which the site of the documentation is built, and the check of what was built."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from types import ModuleType

import pytest

import taskiq_flow
import taskiq_flow.testing
from tests.commands import ROOT
from website.check import faults
from website.pages import Pages
from website.reference import fenced, reference

MOST_BYTES = 150_000
LINK = re.compile(r"\]\((?!https?:|#)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return Pages(ROOT).texts


def links(texts: dict[str, str], name: str) -> list[tuple[str, str]]:
    """Each link of a page to another, outside of its code: the page and the anchor."""
    text = re.sub(r"^```.*?^```$", "", texts[name], flags=re.MULTILINE | re.DOTALL)
    folder = PurePosixPath(name).parent
    return [
        (str(Path("/", folder, match["path"]).resolve().relative_to("/")), match["anchor"] or "")
        for match in LINK.finditer(text)
    ]


def test_each_link_leads_to_a_page_of_the_site(texts: dict[str, str]) -> None:
    known = {*texts, *Pages(ROOT).images}
    broken = [(name, path) for name in texts for path, _ in links(texts, name) if path not in known]
    assert broken == []


def test_no_link_names_an_anchor_that_the_site_writes_otherwise(texts: dict[str, str]) -> None:
    # Where a heading has a dash between spaces, GitHub's anchor has two or three in a row.
    differing = [(n, anchor) for n in texts for _, anchor in links(texts, n) if "--" in anchor]
    assert differing == []


def test_the_navigation_has_each_page_of_the_docs_once(texts: dict[str, str]) -> None:
    listed = [path for path, _ in links(texts, "SUMMARY.md")]
    assert len(listed) == len(set(listed))
    assert {
        page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")
    } <= {*listed}
    assert {name for name in texts if name.startswith("reference/")} <= {*listed}


@pytest.mark.parametrize("package", [taskiq_flow, taskiq_flow.testing], ids=lambda p: p.__name__)
def test_each_public_name_is_on_one_page_of_the_reference(package: ModuleType) -> None:
    pages = "".join(reference(ROOT / "taskiq_flow").values())
    names = re.findall(rf"^::: {package.__name__}\.(\w+)$", pages, re.MULTILINE)
    assert sorted(names) == sorted(package.__all__)


def test_each_picture_is_small_is_shown_and_asks_no_other_host() -> None:
    shown = Pages(ROOT).images
    assert set(shown.values()) == {*(ROOT / "docs" / "images").iterdir()}
    for name, file in shown.items():
        data = file.read_bytes()
        assert len(data) <= MOST_BYTES, name
        assert name == f"images/{file.name}"
        if file.suffix == ".svg":
            text = data.decode().replace("http://www.w3.org/2000/svg", "")
            assert "://" not in text, name
            assert "url(" not in text.replace("url(#", ""), name
        else:
            assert data.startswith(b"\x89PNG"), name


def test_a_public_name_of_a_module_without_a_page_is_refused(tmp_path: Path) -> None:
    init = "from taskiq_flow.novel.things import Thing\n\n__all__ = ['Thing']\n"
    (tmp_path / "__init__.py").write_text(init, encoding="utf-8")
    with pytest.raises(LookupError, match=r"no page for 'Thing'.*add 'novel' to PARTS"):
        reference(tmp_path)


def test_an_example_in_a_docstring_becomes_a_block_of_code() -> None:
    assert fenced("Adds.\n\n>>> 1 + 1\n2\n\nNo more.") == (
        "Adds.\n\n```pycon\n>>> 1 + 1\n2\n```\n\nNo more."
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    files = {
        "docs/index.md": "# All\n\n## Start\n\n| [a.md](a.md) | [run](../run.py) |\n",
        "docs/a.md": "# A page\n\n```text\n[x](../missing.md)\n```\n",
        "run.py": "print(1)\n",
        "taskiq_flow/__init__.py": "",
        "taskiq_flow/testing/__init__.py": "",
        "website/style.css": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_a_file_outside_the_docs_that_is_linked_has_a_page_of_its_own(repository: Path) -> None:
    texts = Pages(repository).texts
    assert texts["files/run.py.md"] == "# run.py\n\n```python\nprint(1)\n```\n"
    assert "[run](files/run.py.md)" in texts["index.md"]


def test_a_link_that_is_named_after_its_file_has_the_title_of_the_page(repository: Path) -> None:
    texts = Pages(repository).texts
    assert "[A page](a.md)" in texts["index.md"]
    assert texts["SUMMARY.md"].startswith(
        "- [taskiq_flow](index.md)\n- Start\n    - [A page](a.md)\n"
    )


def test_a_link_to_nothing_is_refused(repository: Path) -> None:
    (repository / "docs" / "a.md").write_text("[b](b.md)", encoding="utf-8")
    with pytest.raises(
        LookupError, match=re.escape("docs/a.md links to b.md, which does not exist")
    ):
        Pages(repository)


def test_a_picture_is_copied_and_found_from_where_its_page_is(repository: Path) -> None:
    image = repository / "docs" / "images" / "a.png"
    image.parent.mkdir()
    image.write_bytes(b"\x89PNG")
    (repository / "README.md").write_text('<img src="docs/images/a.png">\n', encoding="utf-8")
    text = '# A\n\n![a](images/a.png)\n<source srcset="images/a.png">[more](../README.md)\n'
    (repository / "docs" / "a.md").write_text(text, encoding="utf-8")
    pages = Pages(repository)
    assert pages.texts["a.md"] == text.replace("../README", "readme")
    assert pages.texts["readme.md"] == '<img src="images/a.png">\n'
    pages.write(repository / "build")
    assert (repository / "build" / "images" / "a.png").read_bytes() == b"\x89PNG"
    image.unlink()
    with pytest.raises(LookupError, match=re.escape("links to images/a.png, which does not")):
        Pages(repository)


def test_writing_removes_old_pages_and_leaves_equal_ones_untouched(repository: Path) -> None:
    folder = repository / "build"
    pages = Pages(repository)
    pages.write(folder)
    written = (folder / "a.md").stat().st_mtime_ns
    (folder / "old.md").write_text("", encoding="utf-8")
    pages.write(folder)
    assert (folder / "a.md").stat().st_mtime_ns == written
    assert not (folder / "old.md").exists()


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="b.html#there">', None),
        ('<a href="https://example.org/x">', None),
        ('<link rel="canonical" href="https://example.org/"><script src="a.js">', None),
        ('<a href="c.html">', "links to c.html, which does not exist"),
        ('<a href="b.html#here">', "links to b.html#here, which has no such anchor"),
        ('<script src="https://example.org/a.js">', "loads https://example.org/a.js, which is on"),
        ('<img src="//example.org/a.png">', "loads //example.org/a.png, which is on another host"),
        ('<link rel="stylesheet" href="https://example.org/a.css">', "which is on another host"),
        ('<source srcset="//example.org/a.png 2x">', "loads //example.org/a.png, which is on"),
        ('<link rel="stylesheet" href="b.css">', "loads b.css, which does not exist"),
    ],
)
def test_the_check_finds_what_is_wrong_with_a_page(
    tmp_path: Path, body: str, fault: str | None
) -> None:
    (tmp_path / "a.html").write_text(body, encoding="utf-8")
    (tmp_path / "b.html").write_text('<h2 id="there">', encoding="utf-8")
    (tmp_path / "a.js").touch()
    found = faults(tmp_path)
    assert found == [] if fault is None else fault in found[0]


@pytest.mark.parametrize("rule", ["@import 'a.css'", "a { src: url(https://example.org/a.woff) }"])
def test_the_check_finds_styles_that_load_from_elsewhere(tmp_path: Path, rule: str) -> None:
    (tmp_path / "a.css").write_text(rule, encoding="utf-8")
    assert faults(tmp_path) == ["a.css loads what it does not have itself"]
