"""``mlflow-finetune users``."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path

import click

from mlflow_finetune_plugin.errors import ConfigError


@click.group()
def users() -> None:
    """Add and remove users who log in to the playground."""


@users.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("name")
@click.option("--may-promote", is_flag=True, help="Allow promote and roll back in the playground.")
def add(file: Path, name: str, may_promote: bool) -> int:
    """Ask for a password and write its hash to FILE.

    The password is read from standard input when that is not a terminal. NAME is recorded with the user's votes.
    """
    from mlflow_finetune_plugin.credentials.users import add_user

    add_user(file, name, _password(), may_promote=may_promote)
    print(f"added user {name}{' (may promote)' if may_promote else ''}")
    return 0


@users.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("name")
def remove(file: Path, name: str) -> int:
    """Remove a user from FILE. A running playground ends that user's sessions at once."""
    from mlflow_finetune_plugin.credentials.users import remove_user

    remove_user(file, name)
    print(f"removed user {name}")
    return 0


def _password() -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        raise ConfigError(["the two passwords differ; fix: type the same password twice"])
    return password
