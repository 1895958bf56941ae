"""The documentation matches the code: commands, options, Python names, keys, links, navigation and words."""

from __future__ import annotations

import ast
import functools
import json
import re
import shlex
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml
from conftest import REPOSITORY

import mlflow_finetune_plugin as ft
from gradio_app.arguments import new_parser
from mlflow_finetune_plugin.cli.main import PROGRAM, cli
from mlflow_finetune_plugin.config.entry_points import ENTRY_POINTS, OPERATIONS
from mlflow_finetune_plugin.config.overrides import SHORTHANDS, TOP_LEVEL, leaves_of
from mlflow_finetune_plugin.config.problems import ALIASES
from mlflow_finetune_plugin.config.run_config import SECTIONS
from mlflow_finetune_plugin.methods import load_method, method_names

DOCS = REPOSITORY / "docs"
ROOT_PAGES = [REPOSITORY / f"{name}.md" for name in ("README", "ARCHITECTURE", "CONTRIBUTING", "SECURITY")]
SITE_PAGES = sorted(path for path in DOCS.rglob("*.md"))
PAGES = [*ROOT_PAGES, *SITE_PAGES]
REFERENCE = DOCS / "reference"
DECISIONS = DOCS / "decisions"
MOST_README_LINES = 155  # ten of them are the entry points
MOST_PARAGRAPH_WORDS = 80
FENCE = re.compile(r"^( *)```(.*?)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
REFUSED = {
    r"\b(told|tells|said)\b": "reports, logs, shows",
    r"\b(whoever|nobody|somebody)\b": "name the actor",
    r"\bwho asks\b": "the caller, the client",
    r"\banew\b": "again",
    r"\bfor ever\b": "always, permanently",
    r"\bshall\b": "must, or the present tense",
    r"\bof its own\b": "its, or a sentence with a verb",
    r"\b(go|goes|going) on\b": "continue",
    r"\b(stand|stands) in\b": "is in, is registered in",
    r"\bthe story of\b": "what happens",
    r"(?<!there )\bis no (?!longer\b|more\b|worse\b|better\b)": "is not a",
    r"\blearnt\b": "trained on",
}
"""Phrases that the documentation does not use, and what to write."""


def ids(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def prose(text: str) -> str:
    """Return a page without its code."""
    return re.sub(r"`[^`\n]*`", "`code`", FENCE.sub("\n", text))


def shell_lines(text: str) -> Iterator[str]:
    """Yield the lines of shell blocks, continued ones joined, and the inline code of a page."""
    for match in FENCE.finditer(text):
        if match[2].strip() in ("", "bash", "console", "sh", "shell", "text"):
            yield from match[3].replace("\\\n", " ").splitlines()
    yield from re.findall(r"`([^`\n]+)`", FENCE.sub("\n", text))


def commands(text: str, program: str = PROGRAM) -> Iterator[list[str]]:
    """Yield the arguments of every call of a program that a page shows."""
    for line in shell_lines(text):
        for match in re.finditer(rf"(?:^|[;&|(]|\$ |=\S+ )\s*(?:\S*/)?{program} ([^;&|)]*)", line):
            try:
                words = shlex.split(match[1], comments=True)
            except ValueError:
                words = match[1].split()
            end = next((at for at, word in enumerate(words) if word.startswith((">", "<"))), len(words))
            if words[:end] and not words[0].isupper() and words[0] != "...":
                yield words[:end]


def command_fault(words: list[str]) -> str | None:
    """Return what is wrong with the arguments of ``mlflow-finetune``, or None."""
    command: click.Command = cli
    context = click.Context(cli)
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        child = command.get_command(context, rest[0])
        if child is None:
            return f"no command {rest[0]!r}"
        command, rest = child, rest[1:]
    known = {"-h", "--help", *(flag for parameter in command.params for flag in parameter.opts)}
    if command.name == "playground":
        known |= {flag for action in new_parser()._actions for flag in action.option_strings}
    flags = [word.partition("=")[0] for word in rest if re.match(r"--?[a-zA-Z]", word)]
    unknown = [flag for flag in flags if flag not in known]
    return f"no option {', '.join(unknown)}" if unknown else None


@functools.cache
def option_fields() -> dict[str, str]:
    return {
        field: kind
        for kind in ("adaptation", "objective")
        for name in method_names(kind)
        for field in load_method(kind, name).Options.model_fields
    }


@functools.cache
def known_keys() -> set[str]:
    """Return every name that ``-P`` accepts with some entry point."""
    leaves = leaves_of(SECTIONS, option_fields())
    bare = {name for name, places in leaves.items() if len(places) == 1}
    dotted = {".".join(map(str, key_path)) for places in leaves.values() for key_path in places}
    of_operations = {key for operation in OPERATIONS.values() for key in operation.parameters}
    return bare | dotted | of_operations | {*SHORTHANDS, *ALIASES, *TOP_LEVEL}


@pytest.mark.parametrize("page", [page for page in PAGES if REFERENCE not in page.parents], ids=ids)
def test_commands_exist_with_their_options(page):
    faults = {
        f"{PROGRAM} {' '.join(words)}": fault
        for words in commands(page.read_text(encoding="utf-8"))
        if (fault := command_fault(words))
    }
    assert faults == {}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_entry_points_exist(page):
    text = page.read_text(encoding="utf-8")
    calls = [*commands(text, "mlflow"), *commands(text)]
    names = {words[at + 1] for words in calls for at, word in enumerate(words[:-1]) if word == "-e"}
    known = {*ENTRY_POINTS, *OPERATIONS, "main"}
    assert {name for name in names if not name.isupper()} <= known


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_overrides_name_known_keys(page):
    text = page.read_text(encoding="utf-8")
    own_options = set(
        re.findall(r"^    (\w+): .*Field\(", text, re.MULTILINE)
    )  # examples of options on the page itself
    keys = {key for key in re.findall(r"-P\s+['\"]?([A-Za-z_][\w.]*)=", text) if not key.isupper()}
    examples_of_errors = set(re.findall(r"unknown key (\S+)", text))
    unknown = keys - known_keys() - own_options - examples_of_errors
    unknown = {key for key in unknown if not key.startswith("data.columns.")}
    assert unknown == set()


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_names_of_the_python_api_exist(page):
    names = set(re.findall(r"\bft\.([A-Za-z_]\w*)", page.read_text(encoding="utf-8")))
    assert {name for name in names if name != "NAME" and not hasattr(ft, name)} == set()


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_recipes_are_valid(page):
    """Every YAML block with a key of finetune.yaml satisfies its schema, except for required keys, which an excerpt leaves out."""
    schema = json.loads((DOCS / "finetune.schema.json").read_text(encoding="utf-8"))
    excerpt = without_required(schema)
    for match in FENCE.finditer(page.read_text(encoding="utf-8")):
        if match[2].strip() in ("yaml", "yml"):
            recipe = yaml.safe_load(match[3])
            if isinstance(recipe, dict) and recipe.keys() & schema["properties"].keys():
                jsonschema.validate(recipe, excerpt)


def without_required(schema: Any) -> Any:
    if isinstance(schema, dict):
        is_keyword = isinstance(schema.get("required"), list)  # a key of a recipe may have this name too
        return {k: without_required(value) for k, value in schema.items() if k != "required" or not is_keyword}
    return [without_required(value) for value in schema] if isinstance(schema, list) else schema


@pytest.mark.parametrize("page", [*PAGES, REPOSITORY / "CHANGELOG.md"], ids=ids)
def test_relative_links_exist(page):
    text = FENCE.sub("\n", page.read_text(encoding="utf-8"))
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    targets = {link.partition("#")[0] for link in links if not re.match(r"\w+:|#", link)}
    missing = {target for target in targets if not (page.parent / target).exists()}
    assert {f"{target}; fix: correct the link" for target in missing} == set()


def test_every_page_is_in_the_navigation():
    nav = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = Counter(nav_pages(nav))
    sys.path.insert(0, str(DOCS))
    try:
        from site_hook import ROOT_PAGES as PAGES_OF_THE_ROOT
    finally:
        sys.path.remove(str(DOCS))
    assert listed == Counter([*(str(p.relative_to(DOCS)) for p in SITE_PAGES), *PAGES_OF_THE_ROOT.values()])


def nav_pages(entry: object) -> Iterator[str]:
    if isinstance(entry, str):
        if not entry.startswith("https:"):
            yield entry
    elif isinstance(entry, list):
        for child in entry:
            yield from nav_pages(child)
    elif isinstance(entry, dict):
        for child in entry.values():
            yield from nav_pages(child)


def test_readme_is_short():
    lines = (REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_README_LINES


def test_readme_has_no_long_paragraph():
    text = FENCE.sub("\n", (REPOSITORY / "README.md").read_text(encoding="utf-8"))
    paragraphs = [part for part in re.split(r"\n\s*\n|\n(?=[-|#])", text) if not part.startswith("|")]
    longest = max(paragraphs, key=lambda part: len(part.split()))
    assert len(longest.split()) <= MOST_PARAGRAPH_WORDS, longest


@pytest.mark.parametrize("page", [page for page in PAGES if DECISIONS not in page.parents], ids=ids)
def test_words_are_plain(page):
    """Decision records are exempt: each one is a text of its day."""
    text = prose(page.read_text(encoding="utf-8"))
    faults = [
        f"{match[0]!r} in '...{text[max(0, match.start() - 30) : match.end() + 30]!r}...'; write: {better}"
        for phrase, better in REFUSED.items()
        for match in re.finditer(phrase, text, re.IGNORECASE)
    ]
    assert faults == []


@pytest.mark.parametrize("root", ["mlflow_finetune_plugin", "gradio_app"])
def test_docstrings_comments_and_messages_use_the_usual_words(root):
    faults = [
        f"{ids(path)}:{line}: {match[0]!r}; write: {better}"
        for path in sorted((REPOSITORY / root).rglob("*.py"))
        for line, text in ((line, prose(text)) for line, text in strings_and_comments(path))
        for phrase, better in REFUSED.items()
        for match in re.finditer(phrase, text, re.IGNORECASE)
    ]
    assert faults == []


def strings_and_comments(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string


class TestReferenceAgainstSources:
    """Parts of the reference that are written by hand name everything that is in the code."""

    @pytest.fixture(autouse=True)
    def pages_importable(self, monkeypatch):
        monkeypatch.syspath_prepend(str(DOCS))

    def sources(self) -> str:
        roots = ("mlflow_finetune_plugin", "gradio_app")
        return "\n".join(
            path.read_text(encoding="utf-8") for root in roots for path in (REPOSITORY / root).rglob("*.py")
        )

    def test_receipt_headers(self):
        from reference_pages.http_api import HEADERS

        assert set(re.findall(r"\"(x-finetune-[a-z-]+)\"", self.sources())) == set(HEADERS)

    def test_error_codes_of_the_router(self):
        from reference_pages.http_api import CODES, error_statuses

        literal = {code for code in re.findall(r"\"([a-z_]+)\"", self.router_faults()) if "_" in code}
        assert set(error_statuses()) | literal == set(CODES)

    def router_faults(self) -> str:
        """Return the source of the functions that give a code to ``RequestError`` in a variable."""
        source = (REPOSITORY / "mlflow_finetune_plugin/serving/router/requests.py").read_text(encoding="utf-8")
        return "\n".join(line for line in source.splitlines() if re.search(r"return f?['\"].*\", \"[a-z_]+\"$", line))

    def test_environment_variables(self):
        from reference_pages.cli import ENVIRONMENT

        assert set(re.findall(r"\b((?:MLFLOW_)?FINETUNE_[A-Z_]+)\b", self.sources())) == set(ENVIRONMENT)


def test_site_builds_in_strict_mode_and_loads_nothing_from_other_hosts(tmp_path):
    mkdocs_config = pytest.importorskip("mkdocs.config", reason="needs mlflow-finetune[docs]")
    from mkdocs.commands.build import build

    build(mkdocs_config.load_config(str(REPOSITORY / "mkdocs.yml"), strict=True, site_dir=str(tmp_path)))
    pages = "".join(page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.html"))
    assert not re.search(r"<(?:script|img)[^>]+src=\"https?:", pages)
    assert not re.search(r"<link[^>]+rel=\"stylesheet\"[^>]+href=\"https?:", pages)
