"""The pages name functions that are there, link to files that are there, and the README fits on a few screens."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import pytest
from bootstrap import ROOT

HELP = sorted((ROOT / "web" / "docs").glob("*.md"))
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md"), *HELP])
ARCHITECTURE = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
PAPERS = {"RefDrop", "P3S-Diffusion", "Leffa", "DEADiff", "Refine-by-Align"}
FUNCTION = re.compile(r"`([\w/]+\.py):([\w.]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def names_in(path: Path) -> set[str]:
    """Functions, classes and methods ("Class.method") of a module."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return names


def rows() -> list[list[str]]:
    """The cells of the table from equation to function."""
    section = ARCHITECTURE.split("## From equation to function", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def test_the_table_has_all_papers_and_a_function_in_every_row() -> None:
    assert {paper for paper, *_ in rows()} == PAPERS
    assert all(FUNCTION.search(function) for *_, function in rows())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_functions_are_there(page: Path) -> None:
    for path, name in FUNCTION.findall(page.read_text(encoding="utf-8")):
        assert name in names_in(ROOT / path), f"{page.name} names {name}, which is not in {path}"


def test_classes_that_the_architecture_names_are_there() -> None:
    known = {name for path in (ROOT / "core").rglob("*.py") for name in names_in(path)}
    named = {name for name in re.findall(r"`([A-Z]\w*[a-z]\w*(?:\.\w+)?)`", ARCHITECTURE) if name != "Attend"}
    attributes = {"Run.latents", "Run.held", "Run.prompts", "Evaluation.acted"}
    assert len(named) > 25 and named - attributes <= known, sorted(named - attributes - known)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        path, _, place = link.partition("#")
        if not link.startswith(("http:", "https:")):
            target = page.parent / path if path else page
            assert target.exists(), f"{page.name} links to {link}"
            assert not place or place in anchors(target), f"{page.name} links to {link}"


def anchors(page: Path) -> set[str]:
    """The places in a page that a link can name, as GitHub makes them of its headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_readme_lists_every_help_page() -> None:
    linked = set(re.findall(r"web/docs/(\w+)\.md", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert linked == {page.stem for page in (ROOT / "web" / "docs").glob("*.md")}


def test_every_workflow_that_is_named_is_there() -> None:
    text = (ROOT / "docs" / "REPRODUCE.md").read_text(encoding="utf-8")
    named = {name for row in re.findall(r"^\|.*\|$", text, re.MULTILINE) for name in re.findall(r"`([a-z0-9_]+)`", row)}
    there = {path.stem for path in (ROOT / "workflows" / "api").glob("*.json")}
    prefixes = ("refdrop_", "leffa_tryon", "leffa_pose", "p3s_", "deadiff_", "refine_", "point_mask")
    assert {name for name in named if name.startswith(prefixes)} <= there


def test_what_the_registry_shows_is_there() -> None:
    """Icon and pages are addressed on the main branch, so their files must be in it."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    addresses = re.findall(r"https://\S+/ComfyUI-RefAttention/(?:tree/)?main/([\w./]+)", text)
    assert {"docs", "docs/icon.svg", "docs/banner.svg"} <= set(addresses) and all(
        (ROOT / path).exists() for path in addresses
    )


@pytest.mark.parametrize("page", [*HELP, ROOT / "docs" / "troubleshooting.md"], ids=lambda page: page.stem)
def test_messages_on_help_pages_are_messages_of_the_pack(page: Path) -> None:
    for phrase in re.findall(r"^\| (\*.*?\*)(?: \(log\))? \|", page.read_text(encoding="utf-8"), re.MULTILINE):
        for each in re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", phrase):
            assert any(could_say(text, each) for text in TEXTS), f"no message says '{each}'"


def texts() -> set[str]:
    """All texts in the code of nodes and methods; what is filled in later stands as an ellipsis."""
    found = set()
    for path in [*(ROOT / "core").rglob("*.py"), *(ROOT / "nodes").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.add("".join(each.value if isinstance(each, ast.Constant) else "…" for each in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
                found.add(re.sub(r"%[sd]", "…", node.value))
    return found


def could_say(text: str, phrase: str) -> bool:
    """Whether a text may hold a phrase, when ellipses in both stand for anything; most of the phrase must be there."""
    one, other = text.lower(), f"…{re.sub(r' *… *', '…', phrase.lower())}…"
    words = set(re.findall(r"\w{3,}", other))
    if 2 * sum(word in one for word in words) < len(words):
        return False
    most = {(0, 0): 0}  # pairs of places that can be reached: letters that are the same up to there
    for i, j in itertools.product(range(len(one) + 1), range(len(other) + 1)):
        if (i, j) not in most:
            continue
        left, right = one[i : i + 1], other[j : j + 1]
        wild = "…" in (left, right)
        steps = {(i + 1, j): 0, (i, j + 1): 0} if wild else {}
        steps |= {(i + 1, j + 1): int(not wild)} if left == right else {}
        for step, same in steps.items():
            most[step] = max(most.get(step, 0), most[i, j] + same)
    return most.get((len(one), len(other)), 0) >= 0.4 * len(phrase)


TEXTS = texts()


def test_a_message_that_nobody_writes_is_seen() -> None:
    assert could_say("mask holds … masks for a batch of ….", "mask holds … masks for a batch of …")
    assert could_say("… is no … adapter: it does not say", "is no P3S adapter")
    assert not could_say("mask holds … masks for a batch of ….", "mask is empty")
    assert not any(could_say(text, "mask is of the wrong colour") for text in TEXTS)
