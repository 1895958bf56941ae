"""Memory that is really refused: a process with a limit on its address space, and a batch that does not fit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_bases import tiny_base
from training.trained import adapted, rows_of, run

from mlflow_finetune_plugin.training.memory import is_out_of_memory

TESTS = Path(__file__).resolve().parent.parent
LENGTHS = [(20, 60), (30, 40), (10, 90), (5, 75)] * 6
PROGRAM = """
import json, resource, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/support"]
from training.trained import adapted, rows_of, run
from training.test_memory import LENGTHS
base, folder, headroom = Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
model, rows = adapted(base), rows_of(LENGTHS)
run(base, folder / "warm", rows=rows.select(range(2)), model=adapted(base))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + headroom, resource.RLIM_INFINITY))
result, _ = run(base, folder, rows=rows, model=model, max_batch_tokens=10_000, num_train_epochs=2.0)
print(json.dumps(result.losses))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A vocabulary whose logits fill a few hundred megabytes."""
    return tiny_base(tmp_path_factory.mktemp("base"), vocab_size=20_000)


def limited(base: Path, folder: Path, headroom_mb: int) -> subprocess.CompletedProcess[str]:
    folder.mkdir()
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(TESTS), str(base), str(folder), str(headroom_mb * 2**20)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "PYTHONPATH": str(TESTS.parent)},
    )


@pytest.mark.fault
@pytest.mark.process
def test_a_step_that_does_not_fit_is_made_in_smaller_parts(base, tmp_path):
    short = limited(base, tmp_path / "short", 250)  # the whole step's logits alone take 130 MB, with gradients 400
    assert short.returncode == 0, short.stderr[-3000:]
    expected, _ = run(
        base,
        tmp_path / "ample",
        rows=rows_of(LENGTHS),
        model=adapted(base),
        max_batch_tokens=10_000,
        num_train_epochs=2.0,
    )
    losses = json.loads(short.stdout.splitlines()[-1])
    assert [loss for _, loss in losses] == pytest.approx([loss for _, loss in expected.losses], abs=1e-5)
    events = [json.loads(line) for line in (tmp_path / "short" / "report.jsonl").read_text().splitlines()]
    notes = [event["text"] for event in events if event["event"] == "note"]
    assert notes
    assert all("out of memory: the step is repeated with micro-batches of" in note for note in notes)
    tags = [event["values"] for event in events if event["event"] == "tags"]
    assert tags[-1]["finetune.micro_batch"].endswith(" tokens")
    metrics = [event["values"] for event in events if event["event"] == "metrics"]
    assert max(value["train/halvings"] for value in metrics) == len(notes)


@pytest.mark.fault
@pytest.mark.process
def test_a_single_row_that_does_not_fit_ends_the_training(base, tmp_path):
    short = limited(base, tmp_path / "short", 12)
    assert short.returncode != 0
    assert "out of memory with a single row of 100 tokens at a time; fix: lower training.max_length" in short.stderr


def test_refusals_are_told_from_other_failures():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as other:
        torch.zeros(2) @ torch.zeros(3)
    assert not is_out_of_memory(other.value)
