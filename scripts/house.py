"""How large the house is: the figures of docs/design.md, counted in the sources of a checkout.

    python scripts/house.py                    this checkout, as a table
    python scripts/house.py --before REVISION  a column for an older revision too
    python scripts/house.py --write            into docs/design.md, between its marks
    python scripts/house.py --long             the functions above 40 lines, longest first

A module of the top is a file or folder in src/normalis. An arrow is one such module importing
another, lazily or not, types alone left out; tests/test_imports.py says that none runs up. A
function's lines are those of its body that hold code: neither head, docstring, comments nor blank
lines. A clone is of one revision, as git packs it.
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import sys
import tarfile
import tempfile
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/design.md"
BEGIN, END = "<!-- house: begin -->", "<!-- house: end -->"
#: The revision before the tool and the laboratory were parted.
BEFORE = "3f3a9f2"
LONG = 40


def functions(path: Path) -> Iterator[tuple[int, str, int]]:
    """Yield (lines of its body, name, line) of each function of a file."""
    text = path.read_text(encoding="utf-8")
    code = code_lines(text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            if body:
                last = body[-1].end_lineno or body[-1].lineno
                yield (
                    len(code & set(range(body[0].lineno, last + 1))),
                    node.name,
                    node.lineno,
                )


def code_lines(text: str) -> set[int]:
    """Return the numbers of the lines that hold code."""
    nothing = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in nothing and token.type != tokenize.ENDMARKER:
            found |= set(range(token.start[0], token.end[0] + 1))
    return found


def arrows(source: Path) -> set[tuple[str, str]]:
    """Return (importing, imported) of the modules at the top."""
    names = {p.stem for p in source.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    names -= {"__init__", "__main__"}
    found = set()
    for file in source.rglob("*.py"):
        mine = file.relative_to(source).parts[0].removesuffix(".py")
        for name in imported(ast.parse(file.read_text(encoding="utf-8"))):
            other = name.split(".")[1] if name.startswith("normalis.") else ""
            if mine in names and other in names and other != mine:
                found.add((mine, other))
    return found


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the names of a tree's imports, but for those that only types need."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imported(node)


def figures(root: Path, files: list[Path]) -> dict[str, str]:
    """Return the figures of a tree.

    Args:
        root: of the tree.
        files: that the revision tracks, relative to it.
    """
    source = root / "src/normalis"
    code = sorted(source.rglob("*.py"))
    lines = {f: f.read_text(encoding="utf-8").count("\n") for f in code}
    tests = [root / f for f in files if f.parts[0] == "tests" and f.suffix == ".py"]
    flat = [f for f in source.glob("*.py") if f.stem not in ("__init__", "__main__")]
    rooms = [d for d in source.iterdir() if (d / "__init__.py").is_file()]
    of_all = [n for f in code for n, _, _ in functions(f)]
    longest = max(lines, key=lambda f: lines[f])
    size = sum((root / f).lstat().st_size for f in files)
    needed = dependencies((root / "pyproject.toml").read_text(encoding="utf-8"))
    return {
        "modules and folders at the top": f"{len(flat) + len(rooms)}",
        "flat modules at the top": f"{len(flat)}",
        "import arrows between them": f"{len(arrows(source))}",
        "longest file, lines": f"{lines[longest]} (`{longest.relative_to(source).as_posix()}`)",
        "files of src / above 350 lines": f"{len(code)} / {sum(n > 350 for n in lines.values())}",
        f"functions / with a body above {LONG} lines": (
            f"{len(of_all):,} / {sum(n > LONG for n in of_all)}"
        ),
        "lines of src / of tests": (
            f"{sum(lines.values()):,} / "
            f"{sum(f.read_text(encoding='utf-8').count(chr(10)) for f in tests):,}"
        ),
        "tracked files / MB": f"{len(files):,} / {size / 1e6:.1f}",
        "packages that `pip install normalis` asks for": f"{needed}",
    }


def dependencies(pyproject: str) -> int:
    """Return how many packages a pyproject.toml asks for."""
    import tomllib

    return len(tomllib.loads(pyproject)["project"]["dependencies"])


def tracked(root: Path) -> list[Path]:
    """Return the files that git tracks."""
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z"], check=True, capture_output=True, text=True
    ).stdout.split("\0")
    return [Path(f) for f in listed if f and (root / f).is_file()]


def of_revision(revision: str) -> dict[str, str]:
    """Return the figures of an older revision."""
    asked = ["git", "-C", str(ROOT), "archive", revision]
    done = subprocess.run(asked, check=False, capture_output=True)
    if done.returncode:
        raise SystemExit(f"{revision} is not in this clone: git fetch --unshallow")
    archive = done.stdout
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
            packed.extractall(folder, filter="data")
        root = Path(folder)
        files = [f.relative_to(root) for f in root.rglob("*") if f.is_file()]
        return figures(root, files) | clone(revision)


def clone(revision: str) -> dict[str, str]:
    """Return what a clone of one revision takes: its pack, and with the files."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-tree", "-r", "-l", revision],
        check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    objects = "\n".join(line.split()[2] for line in listed) + "\n"
    pack = subprocess.run(
        ["git", "-C", str(ROOT), "pack-objects", "--stdout", "-q"],
        input=objects.encode(), check=True, capture_output=True,
    ).stdout  # fmt: skip
    files = sum(int(line.split()[3]) for line in listed)
    sizes = f"{len(pack) / 1e6:.1f} / {(len(pack) + files) / 1e6:.1f}"
    return {"a shallow clone, MB: its pack / with its files": sizes}


def table(before: dict[str, str] | None, after: dict[str, str]) -> str:
    """Return the figures as Markdown."""
    rows = [
        "| | before | after |" if before else "| | |",
        "|---|---|---|" if before else "|---|---|",
    ]
    for name, value in after.items():
        cells = [name, *([before.get(name, "-")] if before else []), value]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def long_functions(source: Path) -> list[str]:
    """Return the functions above `LONG` lines, longest first."""
    found = [
        (n, f"{file.relative_to(source)}:{line} {name}")
        for file in sorted(source.rglob("*.py"))
        for n, name, line in functions(file)
        if n > LONG
    ]
    return [f"{n:4d}  {where}" for n, where in sorted(found, reverse=True)]


def main() -> None:
    """Count, and print or write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", nargs="?", const=BEFORE)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--long", action="store_true")
    given = parser.parse_args()
    if given.long:
        print(*long_functions(ROOT / "src/normalis"), sep="\n")
        return
    before = of_revision(given.before or BEFORE) if given.before or given.write else None
    after = figures(ROOT, tracked(ROOT))
    after |= clone("HEAD")
    made = table(before, after)
    if not given.write:
        sys.stdout.write(made + "\n")
        return
    text = PAGE.read_text(encoding="utf-8")
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    PAGE.write_text(f"{text[:start]}\n{made}\n{text[end:]}", encoding="utf-8")


if __name__ == "__main__":
    main()
