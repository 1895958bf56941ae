"""``mlflow-finetune``: the group of commands, and what an error becomes on a command line."""

from __future__ import annotations

import importlib
import sys

import click

from mlflow_finetune_plugin import __version__
from mlflow_finetune_plugin.errors import FinetuneError, RunFailedError, unknown
from mlflow_finetune_plugin.jobs.console import coloured
from mlflow_finetune_plugin.startup import quiet_libraries

PROGRAM = "mlflow-finetune"
INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended

SECTIONS: dict[str, dict[str, str]] = {
    "Train": {
        "init": "train.init",
        "data": "train.data",
        "plan": "train.plan",
        "run": "train.run",
        "methods": "train.reference",
        "schema": "train.reference",
        "export": "train.export",
    },
    "Serve": {"serve": "serve.serve", "keys": "serve.keys", "chat": "serve.chat"},
    "Compare": {"playground": "compare.playground", "users": "compare.users", "votes": "compare.votes"},
    "Promote": {
        "promote": "promote.promote",
        "rollback": "promote.rollback",
        "history": "promote.rollback",
        "watch": "promote.watch",
    },
    "Installation": {"doctor": "doctor", "completion": "completion"},
}
"""Section of the help -> command -> module of this folder that defines it."""


class Commands(click.Group):
    """The group of commands. A command's module is imported when the command is used or listed."""

    def list_commands(self, context: click.Context) -> list[str]:
        return [name for commands in SECTIONS.values() for name in commands]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        for commands in SECTIONS.values():
            if name in commands:
                module = importlib.import_module(f"mlflow_finetune_plugin.cli.{commands[name]}")
                command = getattr(module, name)
                assert isinstance(command, click.Command)
                return command
        return None

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(context)
        if arguments and arguments[0] not in known and not arguments[0].startswith("-"):
            raise click.UsageError(unknown("command", arguments[0], known), context)
        return super().resolve_command(context, arguments)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        for section, names in SECTIONS.items():
            rows = [
                (name, command.get_short_help_str(100))
                for name in names
                if (command := self.get_command(context, name))
            ]
            with formatter.section(section):
                formatter.write_dl(rows)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, message=f"{PROGRAM} %(version)s")
def cli() -> None:
    """Fine-tune open language models inside MLflow: train, prove, serve, compare and promote."""
    quiet_libraries(owns_process=True)


def _print_error(text: str) -> None:
    print(f"{coloured(f'{PROGRAM}:', 'red', sys.stderr)} {text}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    2 is an error of the user's, with one message on stderr; 1 is a failed run; 130 is Ctrl-C.
    """
    try:
        return int(cli.main(args=arguments, prog_name=PROGRAM, standalone_mode=False) or 0)
    except click.ClickException as error:
        hint = f" (see: {error.ctx.command_path} --help)" if isinstance(error, click.UsageError) and error.ctx else ""
        _print_error(f"{error.format_message()}{hint}")
        return 2
    except RunFailedError as error:
        _print_error(str(error))
        return 1
    except FinetuneError as error:
        _print_error(str(error))
        return 2
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
