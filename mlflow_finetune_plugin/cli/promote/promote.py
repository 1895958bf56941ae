"""``mlflow-finetune promote``."""

from __future__ import annotations

import click

from mlflow_finetune_plugin.cli.output import base_model_option, json_option, note, print_json, trust_code_option
from mlflow_finetune_plugin.cli.promote.printing import print_unrecorded, print_verdict
from mlflow_finetune_plugin.credentials.router_key import ROUTER_KEY
from mlflow_finetune_plugin.store.names import CHAMPION


@click.command()
@click.argument("model")
@click.option(
    "--version",
    help="Version to judge (default: the challenger, which is the newest version that scored better than its base).",
)
@click.option("--to", "alias", default=CHAMPION, metavar="ALIAS", show_default=True, help="Alias to move.")
@click.option(
    "--policy",
    metavar="DIR",
    help="Project whose register.gate applies (default: the policy that the training recorded).",
)
@click.option("--accept-new-policy", is_flag=True, help="Allow a policy that was changed after the training.")
@base_model_option
@trust_code_option
@click.option(
    "--endpoint",
    metavar="URL",
    help="Router (http://.../v1) whose latency counts, and that answers where the policy asks for serving. "
    f"Its API key is read from {ROUTER_KEY}.",
)
@click.option(
    "--canary",
    metavar="PERCENTS",
    help="After a passing verdict, serve a growing share of requests first, e.g. 5,25,50. "
    "On regression the split is restored.",
)
@click.option("--step", metavar="DURATION", help="Shortest duration of a canary step (default: 10m).")
@click.option("--least-answers", metavar="N", help="Fewest canary answers per step (default: 100).")
@click.option(
    "--failures-at-most", metavar="SHARE", help="Share of the canary's answers that may fail (default: 0.05)."
)
@click.option("--dry-run", is_flag=True, help="Judge only: move nothing, and write no report. The tests are counted.")
@json_option
def promote(
    model: str,
    version: str | None,
    alias: str,
    policy: str | None,
    accept_new_policy: bool,
    base_model: str | None,
    trust_code: bool,
    endpoint: str | None,
    canary: str | None,
    step: str | None,
    least_answers: str | None,
    failures_at_most: str | None,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Judge a version by its policy, and move an alias to it.

    MODEL is my-bot, my-bot/3, my-bot@challenger or a models:/ URI.

    Exit code 0: promoted, or already champion; 3: hold; 4: rejected.
    """
    from mlflow_finetune_plugin.api import promote as judge_and_move

    result = judge_and_move(
        model,
        version,
        alias=alias,
        policy=policy,
        accept_new_policy=accept_new_policy,
        base_model=base_model,
        trust_code=trust_code,
        endpoint=endpoint,
        canary=canary,
        step=step,
        least_answers=least_answers,
        failures_at_most=failures_at_most,
        dry_run=dry_run,
        on_progress=note,
    )
    if as_json:
        print_json(result.to_dict())
    else:
        print_verdict(result.text(), result.exit_code)
    print_unrecorded(result.move)
    return result.exit_code
