"""``mlflow-finetune keys``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click


@click.group()
def keys() -> None:
    """Make API keys for serve."""


@keys.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("name")
@click.option("--requests-per-minute", type=int, metavar="N", help="Limit of this key (default: no limit).")
@click.option("--concurrent-requests", type=int, metavar="N", help="Requests answered at once (default: no limit).")
@click.option(
    "--expires",
    type=click.DateTime(formats=["%Y-%m-%d"]),
    metavar="YYYY-MM-DD",
    help="Last day of this key, in UTC (default: it does not expire).",
)
def add(
    file: Path, name: str, requests_per_minute: int | None, concurrent_requests: int | None, expires: datetime | None
) -> int:
    """Make an API key, write its hash to FILE and print the key once.

    NAME identifies the key in logs.
    """
    from mlflow_finetune_plugin.credentials.api_keys import add_key

    last_day = expires.date() if expires is not None else None
    limits = {"requests_per_minute": requests_per_minute, "concurrent_requests": concurrent_requests}
    print(add_key(file, name, expires=last_day, **limits))
    return 0
