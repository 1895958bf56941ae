"""``mlflow-finetune export``."""

from __future__ import annotations

import click

from mlflow_finetune_plugin.cli.output import base_model_option, json_option, print_json, trust_code_option

REGISTER_SAME = "\0same"  # no registered model can have this name


@click.command()
@click.argument("model")
@click.option("--merged", metavar="DIR", help="New folder for the adapter merged into its base.")
@click.option(
    "--lora",
    metavar="DIR",
    help="New folder for plain LoRA, made from DoRA, IA3 or full fine-tuning and cut to --rank.",
)
@click.option(
    "--register",
    is_flag=False,
    flag_value=REGISTER_SAME,
    metavar="[NAME]",
    help="Register the plain LoRA as a new version of the same registered model, or of NAME. Works without --lora.",
)
@click.option("--rank", type=int, default=32, show_default=True, help="Rank of the plain LoRA.")
@click.option(
    "--max-nats",
    type=float,
    default=0.05,
    show_default=True,
    help="Largest accepted difference of a token's log-probability as plain LoRA.",
)
@base_model_option
@trust_code_option
@json_option
def export(
    model: str,
    merged: str | None,
    lora: str | None,
    register: str | None,
    rank: int,
    max_nats: float,
    base_model: str | None,
    trust_code: bool,
    as_json: bool,
) -> int:
    """Export a registered adapter as a merged model or as plain LoRA.

    MODEL is my-bot, my-bot/1, my-bot@champion or a models:/ URI.
    """
    from mlflow_finetune_plugin.api import export as export_model

    exported = export_model(
        model,
        merged=merged,
        lora=lora,
        register=True if register == REGISTER_SAME else register or False,
        rank=rank,
        max_nats=max_nats,
        base_model=base_model,
        trust_code=trust_code,
    )
    if as_json:
        print_json(exported.to_dict())
    else:
        print(exported.text())
    return 0
