"""``mlflow-finetune promote``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mlflow_finetune_plugin.cli.output import base_model_option, json_option, note
from mlflow_finetune_plugin.credentials.router_key import ROUTER_KEY
from mlflow_finetune_plugin.store.clients import command_client
from mlflow_finetune_plugin.store.names import CHAMPION


@click.command()
@click.argument("name")
@click.option("--version", help="Version to judge (default: the challenger).")
@click.option("--to", "alias", default=CHAMPION, metavar="ALIAS", show_default=True, help="Alias to move.")
@click.option(
    "--policy",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Project whose register.gate applies (default: the policy that the training recorded).",
)
@click.option("--accept-new-policy", is_flag=True, help="Allow a policy that was changed after the training.")
@base_model_option
@click.option(
    "--endpoint",
    metavar="URL",
    help="Router (http://.../v1) whose latency counts, and that answers where the policy asks for serving. "
    f"Its API key is read from {ROUTER_KEY}.",
)
@click.option(
    "--canary",
    metavar="PERCENTS",
    help="After a passing verdict, serve a growing share of requests first, e.g. 5,25,50. On regression the split is restored.",
)
@click.option("--step", metavar="DURATION", help="Shortest duration of a canary step (default: 10m).")
@click.option("--least-answers", metavar="N", help="Fewest canary answers per step (default: 100).")
@click.option("--dry-run", is_flag=True, help="Judge and report only; write and move nothing.")
@json_option
def promote(
    name: str,
    version: str | None,
    alias: str,
    policy: Path | None,
    accept_new_policy: bool,
    base_model: str | None,
    endpoint: str | None,
    canary: str | None,
    step: str | None,
    least_answers: str | None,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Judge a version by its policy, and move an alias to it.

    Exit code 0: promoted; 3: hold; 4: refused.
    """
    # Only this command needs scipy and matplotlib, which these modules import.
    from mlflow_finetune_plugin.promotion.config import canary_policy
    from mlflow_finetune_plugin.promotion.decision import EXIT_CODES
    from mlflow_finetune_plugin.promotion.promote import PromoteCommand
    from mlflow_finetune_plugin.promotion.promote import promote as judge_and_move
    from mlflow_finetune_plugin.promotion.report import decision_json, decision_lines

    command = PromoteCommand(
        name=name,
        version=version,
        alias=alias,
        policy=policy,
        accept_new_policy=accept_new_policy,
        base_model=base_model,
        endpoint=endpoint,
        dry_run=dry_run,
        canary=canary_policy(canary, step, least_answers),
    )
    decision, recorded = judge_and_move(command_client(), command, note)
    if as_json:
        print(decision_json(decision))
    else:
        print("\n".join(decision_lines(decision)))
        if recorded is None:
            print("  dry run  nothing was written or moved")
        else:
            print(f"  report   run {recorded.run_id}, report.html")
            if recorded.move is not None:
                print(f"  moved    {recorded.move.text}")
                if recorded.move.unrecorded is not None:
                    print(
                        "mlflow-finetune: the alias was moved, but its record could not be written: "
                        f"{recorded.move.unrecorded}; fix: that, then mlflow-finetune history {name}",
                        file=sys.stderr,
                    )
    return EXIT_CODES[decision.verdict.outcome]
