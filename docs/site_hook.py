"""Add the Markdown files of the repository's root to the site, and turn links out of docs/ into links to the repository."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_ROOT = Path(__file__).resolve().parent.parent
ROOT_PAGES = {
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""File in the repository's root -> page of the site."""
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)\s#]+)(#[^)\s]*)?(?=\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the root; MkDocs itself reads only docs/."""
    for source, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=(_ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Rewrite the links of a page: a file that is in the site is linked there, any other one in the repository."""
    sources = {page_name: source for source, page_name in ROOT_PAGES.items()}
    uri = page.file.src_uri
    path = sources.get(uri, f"docs/{uri}")  # where the page's text is in the repository

    def rewritten(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[1]))
        anchor = match[2] or ""
        inside = ROOT_PAGES.get(target, target.removeprefix("docs/") if target.startswith("docs/") else "")
        if inside and files.get_file_from_path(inside) is not None:
            return posixpath.relpath(inside, posixpath.dirname(uri) or ".") + anchor
        if (_ROOT / target).exists():
            kind = "tree" if (_ROOT / target).is_dir() else "blob"
            return f"{config.extra['repository']}/{kind}/main/{target}{anchor}"
        return match[0]  # strict mode reports it

    return _LINK.sub(rewritten, markdown)
