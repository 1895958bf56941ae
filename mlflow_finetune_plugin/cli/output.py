"""What every command prints alike: notes on stderr, JSON on stdout."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
base_model_option = click.option("--base-model", metavar="DIR", help="Folder of the base model, when it has moved.")
trust_code_option = click.option(
    "--trust-code",
    is_flag=True,
    help="Run Python code in a version that this package does not know, and the rewards of its run.",
)


def note(text: str) -> None:
    """Print a line about progress to stderr."""
    print(f"  {text}", file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """Print a JSON value to stdout."""
    print(json.dumps(value, indent=1, ensure_ascii=False))
