"""A project trained by `mlflow-finetune run`, and by plain TRL and PEFT at the same budget: tokens, rows, batch, rate, steps.

    python benchmarks/real_input.py PROJECT -e qlora [-P NAME=VALUE ...]

Ours runs as a user would start it. Plain TRL's SFTTrainer then gets the run's resolved settings and the same token ids and
labels, with PEFT's LoRA of the same rank (IA3 where the run's adaptation is ia3; LoRA also beside bottleneck adapters, which
PEFT does not have) on a base loaded by transformers in the same precision. Base and both adapters are measured by one naive
function on the run's held-out rows; both adapters also answer them. Prints a Markdown row.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mlflow
import torch
from held_out import held_out_loss
from mlflow import MlflowClient
from peft import IA3Config, LoraConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

from mlflow_finetune_plugin.config.run_config import RunConfig
from mlflow_finetune_plugin.data.preparation import PreparedData, prepare
from mlflow_finetune_plugin.evaluation.generation import greedy_answers
from mlflow_finetune_plugin.planning import plan

HEAD = (
    "| project | entry point | base | held-out nats per token: base | ours | plain TRL/PEFT | exact match: ours | plain |"
    " train s: ours | plain |\n|---|---|---|---|---|---|---|---|---|---|"
)


def ours(arguments: argparse.Namespace, folder: Path) -> tuple[Any, RunConfig]:
    """The MLflow run, and its resolved config."""
    os.environ |= {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "MLFLOW_FINETUNE_HOME": str(folder / "home"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "mlflow_finetune_plugin.cli", "run", str(arguments.project), "-e"]
    command += [arguments.entry_point, *(f"-P{parameter}" for parameter in arguments.P)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise SystemExit(result.stdout + result.stderr)
    sys.stderr.write(result.stdout)
    client = MlflowClient()
    run = client.search_runs(
        [experiment.experiment_id for experiment in client.search_experiments()],
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )[0]
    config = json.loads(
        Path(client.download_artifacts(run.info.run_id, "finetune/config.json", str(folder))).read_text()
    )
    config.pop("reasons")
    return run, RunConfig.model_validate(config)


def base_of(config: RunConfig, folder: Path) -> Any:
    keywords: dict[str, Any] = {"dtype": config.base_model.dtype}
    if config.base_model.quantization == "nf4":
        keywords["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, str(config.base_model.dtype)),
        )
    return AutoModelForCausalLM.from_pretrained(folder, **keywords)


def plain(config: RunConfig, decided: plan.Plan, data: PreparedData, folder: Path) -> tuple[Any, float]:
    """The model that plain TRL trained, and its seconds."""
    training, options = config.training, config.options
    low_rank = LoraConfig(
        r=int(options.get("rank") or 16),
        lora_alpha=int(options.get("alpha") or 32),
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    trainer = SFTTrainer(
        model=base_of(config, decided.base.folder),
        args=SFTConfig(
            output_dir=str(folder / "trl"),
            num_train_epochs=float(training.num_train_epochs),
            max_steps=training.max_steps or -1,
            learning_rate=float(training.learning_rate),
            per_device_train_batch_size=int(training.per_device_train_batch_size),
            gradient_accumulation_steps=int(training.gradient_accumulation_steps),
            warmup_steps=float(training.warmup_steps),
            seed=training.seed,
            data_seed=training.seed,
            use_cpu=not torch.cuda.is_available(),
            bf16=bool(training.bf16),
            gradient_checkpointing=bool(training.gradient_checkpointing),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=data.train.select_columns(["input_ids", "labels"]),
        processing_class=decided.renderer.tokenizer,
        peft_config=IA3Config(task_type="CAUSAL_LM") if config.adaptation == "ia3" else low_rank,
    )
    started = time.monotonic()
    trainer.train()
    return trainer.model, time.monotonic() - started


def exact_match(model: Any, decided: plan.Plan, config: RunConfig, data: PreparedData) -> float:
    renderer = decided.renderer
    answers = greedy_answers(
        model.eval(),
        [list(row.prompt_ids) for row in data.eval_rows],
        max_new_tokens=int(config.eval.max_new_tokens),
        stop_token_ids=renderer.stop_token_ids,
        pad_token_id=renderer.tokenizer.pad_token_id or 0,
    )
    texts = [renderer.tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in answers]
    return sum(text == row.reference.strip() for text, row in zip(texts, data.eval_rows, strict=True)) / len(texts)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("project", type=lambda text: Path(text).resolve())
    parser.add_argument("-e", "--entry-point", required=True)
    parser.add_argument("-P", action="append", default=[])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run, config = ours(arguments, folder)
        os.chdir(arguments.project)
        decided = plan.make_plan(config)
        data = prepare(plan.data_request(decided), decided.renderer, folder / "data")
        if data.digest != run.data.tags["finetune.data_digest"]:
            raise SystemExit("the two sides would not train on the same tokens")
        mixture = plan.mix_tasks(decided, data)
        rows = data.train.select(mixture.indices)
        (version,) = MlflowClient().search_logged_models(
            [run.info.experiment_id], filter_string=f"source_run_id = '{run.info.run_id}'"
        )[:1]
        mine = mlflow.pyfunc.load_model(version.model_uri).unwrap_python_model().model
        losses = {"ours": held_out_loss(mine, data.validation)}
        with mine.disable_adapter():
            losses["base"] = held_out_loss(mine, data.validation)
        matches = {"ours": exact_match(mine, decided, config, data)}
        theirs, seconds = plain(config, decided, PreparedData(**{**vars(data), "train": rows}), folder)
        losses["plain"] = held_out_loss(theirs, data.validation)
        matches["plain"] = exact_match(theirs, decided, config, data)
    took = run.data.metrics["train/seconds"]
    print(HEAD)
    print(
        f"| {arguments.project.name} | {arguments.entry_point} ({config.adaptation}) | {Path(config.base_model.name).name} | "
        f"{losses['base']:.3f} | {losses['ours']:.3f} | {losses['plain']:.3f} | {matches['ours']:.3f} | {matches['plain']:.3f} | "
        f"{took:.0f} | {seconds:.0f} |"
    )


if __name__ == "__main__":
    main()
