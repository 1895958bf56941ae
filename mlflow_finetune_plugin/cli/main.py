"""``mlflow-finetune``: run, plan, data, export, serve, keys, playground, users, votes, promote, watch, rollback, history, methods, init, schema, doctor."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin import __version__
from mlflow_finetune_plugin.cli.playground import add_playground_arguments, add_users_arguments
from mlflow_finetune_plugin.cli.promote import add_promote_arguments
from mlflow_finetune_plugin.cli.rollback import add_history_arguments, add_rollback_arguments
from mlflow_finetune_plugin.cli.serve import add_keys_arguments, add_serve_arguments, serve
from mlflow_finetune_plugin.cli.votes import add_votes_arguments, votes
from mlflow_finetune_plugin.cli.watch import add_watch_arguments
from mlflow_finetune_plugin.errors import ConfigError, FinetuneError, one_line, unknown, without_secrets
from mlflow_finetune_plugin.store.names import CHALLENGER
from mlflow_finetune_plugin.store.registry import FoundModel, find_model
from mlflow_finetune_plugin.submission.run_arguments import (
    RunArguments,
    add_run_arguments,
    run_arguments,
    run_parameters,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

PACKAGE = Path(__file__).parent.parent


def main(argv: list[str] | None = None) -> int:
    """Runs one command. Exit code 2 and one message on stderr for a fault of the user's, 1 for a failed run, 130 for Ctrl-C."""
    parser = _parser()
    namespace = parser.parse_args(argv)
    # on CPUs bitsandbytes warns of a faster kernel at its import, which PEFT causes whether or not anything is quantised
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        return int(namespace.command(namespace))
    except FinetuneError as error:
        print(f"mlflow-finetune: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130  # as shells say it; what was stopped has been told already


def recipes_folder() -> Path:
    """The packaged recipes: inside an installed package, beside it in a checkout."""
    inside = PACKAGE / "recipes"
    return inside if inside.is_dir() else PACKAGE.parent / "recipes"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mlflow-finetune", description="Fine-tune open language models inside MLflow."
    )
    parser.add_argument("--version", action="version", version=f"mlflow-finetune {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="train, prove, log and register: the same as mlflow run PROJECT -b finetune")
    add_run_arguments(run)
    run.set_defaults(command=_run)

    methods = commands.add_parser("methods", help="list entry points, adaptations and objectives with their options")
    methods.set_defaults(command=_methods)

    init = commands.add_parser("init", help="start a project of your own from a packaged recipe")
    init.add_argument("name", help="folder to create; its name becomes the registered model's name")
    init.add_argument("--recipe", default="quickstart", help="packaged recipe to copy (default: quickstart)")
    init.set_defaults(command=_init)

    schema = commands.add_parser("schema", help="print the JSON Schema of finetune.yaml, for editors")
    schema.set_defaults(command=_schema)

    _add_export(commands)

    data = commands.add_parser("data", help="show what a run would make of its data, without a run")
    data.add_argument(
        "source", nargs="?", default=".", help="project folder, or a data file or name; default: this folder"
    )
    data.add_argument("-e", "--entry-point", default="lora", help="entry point whose defaults apply (default: lora)")
    data.add_argument("-P", "--param-list", action="append", default=[], metavar="NAME=VALUE", help="as of run")
    data.add_argument("--html", type=Path, default=None, metavar="PATH", help="also write the report as a page")
    data.add_argument("--json", type=Path, default=None, metavar="PATH", help="also write the report as JSON")
    data.set_defaults(command=_data)

    plan = commands.add_parser(
        "plan", help="predict memory and time of a run, without a run; exit code 2 when it does not fit"
    )
    plan.add_argument("project", nargs="?", default=".", help="project folder; default: this folder")
    plan.add_argument("-e", "--entry-point", default="lora", help="as of run (default: lora)")
    plan.add_argument("-P", "--param-list", action="append", default=[], metavar="NAME=VALUE", help="as of run")
    plan.add_argument("--json", action="store_true", help="print JSON: bytes, seconds, reasons")
    plan.set_defaults(command=_plan)

    serving = commands.add_parser(
        "serve", help="answer OpenAI's API with registered models, following their aliases live"
    )
    add_serve_arguments(serving)
    serving.set_defaults(command=serve)

    keys = commands.add_parser("keys", help="API keys for serve")
    add_keys_arguments(keys)

    _add_playground(commands)
    _add_promotion(commands)

    doctor = commands.add_parser("doctor", help="check the installation, the device and runs left behind")
    doctor.add_argument("--reap", action="store_true", help="end runs whose process or host died")
    doctor.set_defaults(command=_doctor)
    return parser


def _add_playground(commands: Any) -> None:
    playground = commands.add_parser("playground", help="chat with two sides in the browser, blind, and vote")
    add_playground_arguments(playground)

    users = commands.add_parser("users", help="who may log in to the playground")
    add_users_arguments(users)


def _add_promotion(commands: Any) -> None:
    promote = commands.add_parser(
        "promote",
        help="judge a version by its policy, and move an alias to it: exit code 0 promoted, 3 held, 4 rejected",
    )
    add_promote_arguments(promote)

    watching = commands.add_parser(
        "watch", help="is the champion still the one to have? exit code 0 keep, 3 re-tune, 4 roll back"
    )
    add_watch_arguments(watching)

    rollback = commands.add_parser("rollback", help="the previous version becomes champion again; undoes itself")
    add_rollback_arguments(rollback)

    told = commands.add_parser("history", help="who moved which alias of a registered model, when, on what evidence")
    add_history_arguments(told)

    ballots = commands.add_parser("votes", help="show, import, export and delete the votes on a model's versions")
    add_votes_arguments(ballots)
    ballots.set_defaults(command=votes)


def _add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="make a registered adapter a plain model merged into its base, or plain LoRA, also as a new version",
    )
    export.add_argument("model", help="models:/NAME/VERSION or models:/NAME@ALIAS")
    ways = export.add_mutually_exclusive_group()
    ways.add_argument("--merged", metavar="DIR", help="new folder for the merged model")
    ways.add_argument("--lora", metavar="DIR", help="new folder for plain LoRA, from DoRA or IA3, cut to --rank")
    export.add_argument(
        "--register",
        nargs="?",
        const="",
        metavar="NAME",
        help="the plain LoRA as a new version, of the same registered model or of NAME; --lora DIR may then be left out",
    )
    export.add_argument("--rank", type=int, default=32, help="of the plain LoRA (default: 32)")
    export.add_argument(
        "--max-nats", type=float, default=0.05, help="how far a token may be off as plain LoRA (default: 0.05)"
    )
    export.add_argument("--base-model", default=None, help="where the base is now, when it has moved")
    export.set_defaults(command=_export)


def _run(namespace: argparse.Namespace) -> int:
    import os

    import mlflow
    from mlflow.exceptions import ExecutionException

    from mlflow_finetune_plugin.backend import FinetuneRun, interruptions_held, wait_in_foreground
    from mlflow_finetune_plugin.submission.mlflow_run import Submission
    from mlflow_finetune_plugin.submission.submit import submit

    arguments = run_arguments(namespace)
    submission = Submission(
        project_uri=arguments.project,
        entry_point=arguments.entry_point,
        parameters=arguments.parameters,
        version=arguments.version,
        backend_config=_backend_config(arguments.backend_config),
        tracking_uri=mlflow.get_tracking_uri(),
        experiment_id=_experiment_id(arguments),
        run_name=arguments.run_name,
        run_id=os.environ.get("MLFLOW_RUN_ID"),  # set when an MLproject's command calls us: then the run exists
    )
    held: list[int] = []
    with interruptions_held(held):
        job = submit(submission)
    print(f"  run      {job.run_id}", file=sys.stderr, flush=True)
    if job.detach:
        print(job.run_id)
        return 0
    try:
        wait_in_foreground(FinetuneRun(job.run_id, job.folder, job.tracking_uri), held)
    except ExecutionException as error:
        print(f"mlflow-finetune: {error}", file=sys.stderr)
        return 1
    return 0


def _backend_config(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = json.loads(Path(text).read_text(encoding="utf-8") if text.endswith(".json") else text)
    except OSError as error:
        raise ConfigError([f"-c {text}: cannot be read: {error.strerror}; fix: name a JSON file"]) from error
    except ValueError as error:
        raise ConfigError([f"-c {text}: not JSON: {error}; fix: for example -c '{{\"detach\": true}}'"]) from error
    if not isinstance(value, dict):
        raise ConfigError([f"-c {text}: expected a JSON object; fix: for example -c '{{\"detach\": true}}'"])
    return value


def _experiment_id(arguments: RunArguments) -> str:
    """The experiment as ``mlflow run`` chooses it. Raises TrackingError when the server cannot say."""
    import os

    import mlflow
    from mlflow.tracking.fluent import _get_experiment_id

    from mlflow_finetune_plugin.errors import TrackingError

    try:
        if arguments.experiment_name is None:
            return str(os.environ.get("MLFLOW_EXPERIMENT_ID") or _get_experiment_id())
        client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name(arguments.experiment_name)
        return str(experiment.experiment_id if experiment else client.create_experiment(arguments.experiment_name))
    except Exception as error:  # whatever a tracking store raises, the person is told what it said
        raise TrackingError(
            f"tracking server {without_secrets(mlflow.get_tracking_uri())}: {one_line(error)}"
        ) from error


def _methods(namespace: argparse.Namespace) -> int:
    from mlflow_finetune_plugin.config.reference import methods_text

    print(methods_text())
    return 0


def _init(namespace: argparse.Namespace) -> int:
    from mlflow_finetune_plugin.config.run_config import register_name_problems
    from mlflow_finetune_plugin.config.yaml_source import parse_value

    recipes = {path.parent.name: path.parent for path in sorted(recipes_folder().glob("*/finetune.yaml"))}
    if namespace.recipe not in recipes:
        raise ConfigError([unknown("recipe", namespace.recipe, list(recipes))])
    target = Path(namespace.name)
    name = target.absolute().name
    if faults := register_name_problems(name):
        raise ConfigError(faults)
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        raise ConfigError([f"{target}: exists and is not empty; fix: choose another name"])
    source = recipes[namespace.recipe]
    ours = shutil.ignore_patterns("__pycache__", "make_data.py", "demo.py", "playground.py")
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=ours)
    written = name if parse_value(name) == name else json.dumps(name)  # a folder called 2024 is no number
    for recipe in target.rglob("finetune.yaml"):
        text = recipe.read_text(encoding="utf-8")
        recipe.write_text(text.replace(f"name: {namespace.recipe}", f"name: {written}"), encoding="utf-8")
    print(f"{target}: a copy of the recipe {namespace.recipe}. Put your rows into {target}/data, then:")
    print(f"  {_command_of(target).replace('run .', f'run {target}')}")
    return 0


def _command_of(recipe: Path) -> str:
    """Every packaged recipe's first line is a comment with its command."""
    return (recipe / "finetune.yaml").read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def _schema(namespace: argparse.Namespace) -> int:
    from mlflow_finetune_plugin.config.reference import json_schema

    print(json.dumps(json_schema(), indent=1, ensure_ascii=False))
    return 0


def _export(namespace: argparse.Namespace) -> int:
    from mlflow import MlflowClient

    if namespace.merged is not None and namespace.register is not None:
        raise ConfigError(["--register: is for plain LoRA, --merged is none; fix: leave one of them out"])
    if namespace.merged is None and namespace.lora is None and namespace.register is None:
        raise ConfigError(["nothing to make; fix: --merged DIR, --lora DIR or --register"])
    client = MlflowClient()
    found = find_model(client, namespace.model)
    if namespace.merged is None:
        return _export_lora(namespace, client, found)
    from mlflow_finetune_plugin.logged_models.merging import export_merged

    merged = export_merged(found.uri, Path(namespace.merged).expanduser(), namespace.base_model)
    print(
        f"{found.uri} merged into {merged.folder}; its log-probabilities differ from the adapter's by at most "
        f"{merged.max_nats:.2g} nats over {merged.tokens} tokens"
    )
    return 0


def _export_lora(namespace: argparse.Namespace, client: MlflowClient, found: FoundModel) -> int:
    folder = Path(namespace.lora).expanduser() if namespace.lora is not None else None
    rank, base_model, max_nats = namespace.rank, namespace.base_model, namespace.max_nats
    registered = ""
    if namespace.register is not None:
        from mlflow_finetune_plugin.logged_models.converted_version import register_converted

        done = register_converted(
            client,
            found,
            rank,
            name=namespace.register or None,
            folder=folder,
            base_model=base_model,
            max_nats=max_nats,
        )
        export = done.export
        run = f"a new run {done.run_id}, for its own is gone" if done.is_new_run else f"run {done.run_id}"
        registered = f", registered as {done.version.uri} (alias {CHALLENGER}) in {run}"
    else:
        from mlflow_finetune_plugin.logged_models.conversion import export_lora

        assert folder is not None
        export = export_lora(found.uri, folder, rank, base_model, max_nats=max_nats)
    place = f" in {folder}" if folder is not None else ""
    print(
        f"{found.uri} as LoRA of rank {export.rank}{place}{registered}: {export.layers} layers, {export.held_share:.1%} of their updates; "
        f"its log-probabilities differ from the adapter's by at most {export.max_nats:.2g} nats over {export.tokens} tokens "
        f"({export.mean_nats:.2g} in the mean)"
    )
    return 0


def _data(namespace: argparse.Namespace) -> int:
    from mlflow_finetune_plugin.cli.data import DataCommand, examine_data
    from mlflow_finetune_plugin.data.report.contents import UnusableDataError
    from mlflow_finetune_plugin.data.report.text import report_text

    parameters = run_parameters(namespace.param_list)
    command = DataCommand(namespace.source, namespace.entry_point, parameters, namespace.html, namespace.json)
    try:
        print(examine_data(command, Path.cwd()))
    except UnusableDataError as error:
        print(report_text(error.report))
        raise
    return 0


def _plan(namespace: argparse.Namespace) -> int:
    from mlflow_finetune_plugin.cli.plan import PlanCommand, foresee_run

    command = PlanCommand(namespace.project, namespace.entry_point, run_parameters(namespace.param_list))
    foreseen = foresee_run(command, Path.cwd())
    print(json.dumps(foreseen.to_json(), indent=1, ensure_ascii=False) if namespace.json else foreseen.text())
    return foreseen.exit_code


def _doctor(namespace: argparse.Namespace) -> int:
    from mlflow_finetune_plugin.jobs.doctor import examine

    healthy = True
    for finding in examine(reap=namespace.reap):
        healthy &= finding.is_good
        print(f"{'ok  ' if finding.is_good else 'FIX '} {finding.text}")
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())
