"""The headings of docs/troubleshooting.md quote messages that the code has."""

import re

from conftest import REPOSITORY

VARIABLE = "…"


def test_quoted_messages_are_in_the_code():
    sources = "\n".join(
        path.read_text(encoding="utf-8")
        for package in ("mlflow_finetune_plugin", "gradio_app")
        for path in (REPOSITORY / package).rglob("*.py")
    )
    code = re.sub(r'"\s*\n\s*f?"', "", sources)  # adjacent string literals are one message
    page = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### .*", page, re.MULTILINE)
    quotes = [quote for heading in headings for quote in re.findall(r"`([^`]+)`", heading)]
    parts = [part.strip(" ;:,") for quote in quotes for part in quote.split(VARIABLE)]
    assert len(quotes) > 25
    assert [part for part in parts if part and part not in code] == []
