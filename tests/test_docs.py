"""The documentation: every link leads somewhere, every page is in the index, tables are files."""

import ast
import csv
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import normalis

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks/README.md"])
PAGES.append(ROOT / "studies/README.md")
PAGES = [page for page in PAGES if "_build" not in page.parts]
LINK = re.compile(r"\]\((?![a-z]+:)([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
#: Words that a page which explains may have.
LONGEST_EXPLANATION = 2500
#: Words that a page which says how to do one thing may have.
LONGEST_HOWTO = 900

sys.path.insert(0, str(ROOT / "studies"))
pages = importlib.import_module("pages")


def name(page):
    return str(page.relative_to(ROOT))


def prose(page):
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors(page):
    """Return the anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = [re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page):
    dead = []
    for link in LINK.findall(prose(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        there = target.exists() and (
            not anchor or target.suffix != ".md" or anchor in anchors(target)
        )
        if not there:
            dead.append(link)
    assert dead == []


def test_the_code_names_pages_that_there_are():
    files = subprocess.run(
        ["git", "ls-files", "*.py", "*.toml", "*.md", "*.yml", "Makefile"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert len(files) > 100
    dead = {
        (file, mention)
        for file in files
        if (ROOT / file).exists()
        for mention in re.findall(r"\bdocs/[\w/]+\.md\b", (ROOT / file).read_text("utf-8"))
        if not (ROOT / mention).exists()
    }
    assert dead == set()


def sources():
    """Pages and modules, in which code is named."""
    return [*PAGES, *sorted((ROOT / "src").rglob("*.py"))]


def test_files_that_are_named_are_there():
    named = re.compile(r"\b(?:benchmarks|studies|scripts)/[a-z_]+\.py\b")
    assert [
        f"{file.name}: {mention}"
        for file in sources()
        for mention in named.findall(file.read_text(encoding="utf-8"))
        if not (ROOT / mention).exists()
    ] == []


def test_shelves_that_are_named_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "src").rglob("*.py"))
    named = re.findall(r"`([A-Z]{4,})`", text)
    assert [name for name in named if not re.search(rf"^{name} = Shelf\(", code, re.M)] == []


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    listed = {line.strip() for line in index.splitlines()}
    there = {
        str(page.relative_to(ROOT / "docs").with_suffix(""))
        for page in PAGES
        if ROOT / "docs" in page.parents
    } - {"index"}
    assert there - listed == set()


def words(page):
    return sum(bool(re.search(r"\w", word)) for word in page.read_text(encoding="utf-8").split())


@pytest.mark.parametrize("page", sorted((ROOT / "docs/explanation").glob("*.md")), ids=name)
def test_what_explains_is_short(page):
    assert words(page) <= LONGEST_EXPLANATION


@pytest.mark.parametrize("page", sorted((ROOT / "docs/howto").glob("*.md")), ids=name)
def test_what_says_how_to_is_one_page(page):
    assert words(page) <= LONGEST_HOWTO


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_page_installs_what_is_on_no_index(page):
    """A name that is free on the index is anybody's; when ours is there, this test goes."""
    lines = re.findall(r"pip[x]? install .*", page.read_text(encoding="utf-8"))
    assert not [line for line in lines if re.search(r"[ '\"]normalis(\[|'|\s*$)", line) and
                "--no-index" not in line]  # fmt: skip


#: Words that this project's prose had and readers stumbled over.
ODD = re.compile(r"\b(anew|stakes|beside|alike|whatever)\b")


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", *sorted((ROOT / "docs/tutorials").glob("*.md")),
     *sorted((ROOT / "docs/howto").glob("*.md"))],
    ids=name,
)  # fmt: skip
def test_pages_for_beginners_are_in_plain_words(page):
    assert ODD.findall(prose(page)) == []


def test_the_lowest_versions_are_those_that_are_promised():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lowest = (ROOT / "constraints-min.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lowest if "==" in line and not line.startswith("#"))
    extras = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *(d for e in ("codecs", "onnx", "pacs", "research", "serve") for d in extras[e]),
    ]
    for requirement in wanted:
        if found := re.match(r"([\w.-]+)>=([\w.]+)", requirement):
            assert pinned[found[1]] == found[2]


def test_the_changelog_and_the_citation_speak_of_this_version():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\d[\d.]*)", changes, re.MULTILINE)[0] == normalis.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {normalis.__version__}\n" in citation


# -- tables ---------------------------------------------------------------------------------------


def table(rows, head="a"):
    return f"| {head} | b |\n| --- | ---: |\n" + "".join(f"| `x{i}` | {i} |\n" for i in range(rows))


def read(file):
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.reader(lines))


@pytest.fixture
def page(tmp_path):
    (tmp_path / "room").mkdir()
    file = tmp_path / "room" / "page.md"
    file.write_text("before\n<!-- part -->\nold\n<!-- end of part -->\nafter\n", encoding="utf-8")
    return file


def test_a_short_table_stays_on_its_page(page):
    pages.fill(page, {"part": table(3)}, longest=3)
    assert table(3) in page.read_text("utf-8")
    assert not (page.parents[1] / "data").exists()


def test_a_long_table_becomes_a_file_and_a_link(page):
    pages.fill(page, {"part": f"first\n\n{table(4)}\nlast"}, longest=3)
    text = page.read_text("utf-8")
    assert "[page_part.csv](../data/page_part.csv), 4 rows" in text
    assert text.index("first") < text.index("page_part.csv") < text.index("last")
    rows = read(page.parents[1] / "data/page_part.csv")
    assert rows == [["a", "b"], *([f"x{i}", str(i)] for i in range(4))]


def test_what_is_folded_away_becomes_one_file_with_the_titles_of_its_tables(page):
    body = ["**one**", "", *table(1).splitlines(), "", "**two**", "", *table(2, "c").splitlines()]
    pages.fill(page, {"part": "\n".join(pages.folded("All of it", body))})
    assert "All of it: [page_part_details.csv]" in page.read_text("utf-8")
    rows = read(page.parents[1] / "data/page_part_details.csv")
    assert rows == [
        ["part", "a", "b", "c"],
        ["one", "x0", "0", ""],
        ["two", "", "0", "x0"],
        ["two", "", "1", "x1"],
    ]


def test_a_part_that_the_page_has_no_place_for_is_an_error(page):
    with pytest.raises(SystemExit, match="no place for 'other'"):
        pages.fill(page, {"other": table(1)})


# -- pages that are made --------------------------------------------------------------------------


def test_the_page_of_commands_is_up_to_date():
    """If this fails, run docs/make_cli.py."""
    found = subprocess.run(
        [sys.executable, "-c", "import make_cli; print(make_cli.page(), end='')"],
        cwd=ROOT / "docs", capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert found == (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")


def messages():
    """Return the texts of the sources, with … where a value goes."""
    found = []
    for file in sorted((ROOT / "src/normalis").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            if isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
                found.append("".join(map(str, parts)))
    return found


def test_messages_of_troubleshooting_are_the_codes_own():
    text = (ROOT / "docs/howto/troubleshooting.md").read_text(encoding="utf-8")
    named = re.findall(r"^## `(.+)`$", text, re.MULTILINE)
    assert len(named) == 10
    texts = messages()
    for message in named:
        pieces = [piece.strip() for piece in message.split("…") if piece.strip()]
        assert any(all(piece in said for piece in pieces) for said in texts), message


def test_every_public_name_is_in_the_reference():
    text = (ROOT / "docs/reference/api.md").read_text(encoding="utf-8")
    for public in set(normalis.__all__) - {"__version__"}:
        where = normalis._LAZY[public].replace(":", ".")
        assert where in text or where.rpartition(".")[0] in text, public
