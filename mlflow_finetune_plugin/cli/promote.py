"""``mlflow-finetune promote``: the gate, and the move when it says so."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mlflow_finetune_plugin.credentials.router_key import ROUTER_KEY
from mlflow_finetune_plugin.store.clients import command_client
from mlflow_finetune_plugin.store.names import CHALLENGER, CHAMPION


def add_promote_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="registered model")
    parser.add_argument("--version", default=None, help=f"to judge (default: the {CHALLENGER})")
    parser.add_argument("--to", default=CHAMPION, metavar="ALIAS", help=f"to move (default: {CHAMPION})")
    parser.add_argument(
        "--policy",
        type=Path,
        default=None,
        metavar="DIR",
        help="project whose register.gate holds now, as is or changed",
    )
    parser.add_argument(
        "--accept-new-policy", action="store_true", help="judge by a policy that was changed after the training"
    )
    parser.add_argument("--base-model", default=None, help="where the base is now, when it has moved")
    parser.add_argument(
        "--endpoint",
        default=None,
        metavar="URL",
        help=f"router (http://.../v1) to time, and to ask where the policy says serving; its key from {ROUTER_KEY}",
    )
    parser.add_argument(
        "--canary",
        default=None,
        metavar="PERCENTS",
        help="when it passes, try it on a growing share of the requests first, e.g. 5,25,50; harm puts the split back",
    )
    parser.add_argument("--step", default=None, metavar="DURATION", help="of the canary, at least (default: 10m)")
    parser.add_argument("--least-answers", default=None, metavar="N", help="of the canary in each step (default: 100)")
    parser.add_argument("--dry-run", action="store_true", help="judge and tell; write and move nothing")
    parser.add_argument("--json", action="store_true", help="print the whole decision as JSON")
    parser.set_defaults(command=_promote)


def _promote(namespace: argparse.Namespace) -> int:
    from mlflow_finetune_plugin.promotion.config import canary_policy
    from mlflow_finetune_plugin.promotion.decision import EXIT_CODES
    from mlflow_finetune_plugin.promotion.promote import (  # scipy and matplotlib are for who judges
        PromoteCommand,
        promote,
    )
    from mlflow_finetune_plugin.promotion.report import decision_json, decision_lines

    command = PromoteCommand(
        name=namespace.name,
        version=namespace.version,
        alias=namespace.to,
        policy=namespace.policy,
        accept_new_policy=namespace.accept_new_policy,
        base_model=namespace.base_model,
        endpoint=namespace.endpoint,
        dry_run=namespace.dry_run,
        canary=canary_policy(namespace.canary, namespace.step, namespace.least_answers),
    )
    decision, done = promote(command_client(), command, lambda text: print(f"  {text}", file=sys.stderr, flush=True))
    if namespace.json:
        print(decision_json(decision))
    else:
        print("\n".join(decision_lines(decision)))
        if done is None:
            print("  dry run  nothing was written or moved")
        else:
            print(f"  report   run {done.run_id}, report.html")
            if done.move is not None:
                print(f"  moved    {done.move.text}")
                if done.move.unrecorded is not None:
                    told = f"the move stands, but its record could not be written: {done.move.unrecorded}"
                    print(
                        f"mlflow-finetune: {told}; fix: that, then mlflow-finetune history {command.name}",
                        file=sys.stderr,
                    )
    return EXIT_CODES[decision.verdict.outcome]
