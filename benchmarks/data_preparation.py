"""Rows per second and peak memory of ``prepare`` beside a bare batched ``datasets.map`` that only tokenises.

    python benchmarks/data_preparation.py [--rows 100000] [--tokenizer FOLDER]

The rows are question and answer lines drawn from a small vocabulary with a fixed seed. The bare side renders with the
same template by string concatenation and tokenises the whole text: no mask, no checks, no report, no digest, no split.
Each side runs in a process of its own, so that the peak is its own (with its children's; shared pages count once). Without ``--tokenizer`` a byte-level BPE is trained
on the spot.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

WORDS = [
    "the",
    "card",
    "payment",
    "transfer",
    "account",
    "limit",
    "money",
    "bank",
    "fee",
    "charge",
    "why",
    "how",
    "when",
    "where",
    "is",
    "my",
    "was",
    "not",
    "yet",
    "arrived",
    "been",
    "declined",
    "pending",
    "top",
    "up",
    "cash",
    "machine",
    "exchange",
    "rate",
    "support",
    "please",
    "help",
    "still",
    "waiting",
    "number",
    "pin",
    "app",
    "phone",
    "lost",
]


def write_rows(path: Path, rows: int) -> None:
    dice = random.Random(0)
    with path.open("w") as file:
        for i in range(rows):
            prompt = " ".join(dice.choices(WORDS, k=dice.randint(8, 60)))
            completion = " ".join(dice.choices(WORDS, k=dice.randint(4, 60)))
            file.write(json.dumps({"prompt": f"{i} {prompt}?", "completion": completion}) + "\n")


def load_tokenizer(folder: str | None):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if folder:
        return AutoTokenizer.from_pretrained(folder)
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    dice = random.Random(1)
    tokenizer.train_from_iterator((" ".join(dice.choices(WORDS, k=50)) for _ in range(500)), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def run_prepare(path: Path, folder: Path, tokenizer) -> int:
    from mlflow_finetune_plugin.data import DataFile, DataRequest, prepare
    from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer

    request = DataRequest(
        train=(DataFile(path, "default"),),
        eval=None,
        layout="auto",
        columns={},
        overlength="error",
        max_length=4096,
        max_eval_rows=None,
        seed=0,
    )
    report = prepare(request, ChatRenderer(tokenizer), folder).report
    return report.train.tokens + report.eval.tokens


def run_bare_map(path: Path, folder: Path, tokenizer) -> int:
    import datasets

    datasets.disable_progress_bars()
    rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(folder))
    eos = tokenizer.eos_token

    def tokenize(batch):
        texts = [f"{p}\n{c}{eos}" for p, c in zip(batch["prompt"], batch["completion"], strict=True)]
        return {"input_ids": tokenizer(texts, add_special_tokens=False)["input_ids"]}

    mapped = rows.map(tokenize, batched=True, batch_size=1000, remove_columns=rows.column_names)
    return sum(len(ids) for batch in mapped.iter(1000) for ids in batch["input_ids"])


SIDES = {"prepare": run_prepare, "bare datasets.map": run_bare_map}


def measure(side: str, path: Path, tokenizer_folder: str | None) -> dict[str, float]:
    import datasets  # noqa: F401  the same imports on both sides, so that the peaks can be compared

    import mlflow_finetune_plugin.data.preparation  # noqa: F401

    tokenizer = load_tokenizer(tokenizer_folder)
    before_mib = memory_mib()[1]
    sampler = Sampler()
    sampler.start()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        cpu = cpu_seconds()
        tokens = SIDES[side](path, Path(folder), tokenizer)
        took_s = time.perf_counter() - start
        cpu_s = cpu_seconds() - cpu
    sampler.stop()
    figures = {"seconds": took_s, "cpu_s": cpu_s, "tokens": tokens, "peak_mib": sampler.all_mib}
    return {**figures, "own_mib": sampler.own_mib, "own_before_mib": before_mib}


def cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    return sum(os.times()[:4])


def memory_mib() -> tuple[float, float]:
    """(everything, without the pages of mapped files) of this process and its children; a shared page is counted once."""
    everything = private = 0
    for process in (psutil.Process(), *psutil.Process().children()):
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        kib = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
        everything, private = everything + kib["Pss"], private + kib["Pss_Anon"]
    return everything / 1024, private / 1024


class Sampler(threading.Thread):
    """The peaks of ``memory_mib``, looked at five times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        (self.all_mib, self.own_mib), self._done = memory_mib(), threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.2):
            self.look()

    def look(self) -> None:
        everything, private = memory_mib()
        self.all_mib, self.own_mib = max(self.all_mib, everything), max(self.own_mib, private)

    def stop(self) -> None:
        self._done.set()
        self.join()
        self.look()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--tokenizer", help="folder of a tokenizer; a byte-level BPE is trained without")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, Path(options.path), options.tokenizer)))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(
            f"{'side':<18} {'rows':>8} {'seconds':>8} {'CPU s':>7} {'rows/s':>8} {'tokens/s':>10} {'peak MiB':>9} {'own for data':>12}"
        )
        for rows in (options.rows // 10, options.rows):
            path = Path(folder) / f"{rows}.jsonl"
            write_rows(path, rows)
            for side in SIDES:
                command = [sys.executable, __file__, "--side", side, "--path", str(path)]
                command += ["--tokenizer", options.tokenizer] if options.tokenizer else []
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                got = json.loads(done.stdout.splitlines()[-1])
                grown = got["own_mib"] - got["own_before_mib"]
                print(
                    f"{side:<18} {rows:>8,} {got['seconds']:>8.1f} {got['cpu_s']:>7.1f} {rows / got['seconds']:>8,.0f} "
                    f"{got['tokens'] / got['seconds']:>10,.0f} {got['peak_mib']:>9,.0f} {grown:>12,.0f}"
                )


if __name__ == "__main__":
    main()
