"""The memory of the preparation does not grow with the rows."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from data_requests import jsonl, request

# A separate process: memory that earlier tests left in this one could be freed or taken at any time.
PREPARING = """
import json, sys
sys.path[:0] = sys.argv[1].split(":")
from test_preparation_memory import peaks
print(json.dumps(peaks(*sys.argv[2:])))
"""


def own_memory_mib():
    """Return the memory without the pages of mapped files, which the kernel can free; includes the children, shared pages once."""
    return sum(anonymous_kib(process.pid) for process in [psutil.Process(), *psutil.Process().children()]) / 1024


def anonymous_kib(pid):
    """Return 0 for a process that ended since it was listed."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss_Anon:"))


def peaks(folder, tokenizer, *counts):
    """Return the peak memory in MiB while each number of rows of about 480 tokens is prepared, one after the other."""
    from transformers import AutoTokenizer

    from mlflow_finetune_plugin.data import reader
    from mlflow_finetune_plugin.data.preparation import prepare
    from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer

    reader.BATCH_ROWS = 100
    renderer = ChatRenderer(AutoTokenizer.from_pretrained(tokenizer))
    maxima = []
    for count in map(int, counts):
        measured = []
        rows = ({"prompt": f"{i} " + "Why? " * 80, "completion": "yes " * 80} for i in range(count))
        data_request = request(jsonl(Path(folder) / f"{count}.jsonl", rows), max_eval_rows=10)
        prepared = prepare(
            data_request,
            renderer,
            Path(folder) / "out",
            lambda rows, measured=measured: measured.append(own_memory_mib()),
        )
        assert prepared.report.train.tokens > 470 * (count - 10)
        maxima.append(max(*measured, own_memory_mib()))
    return maxima


@pytest.mark.process
def test_memory_does_not_grow_with_the_rows(tmp_path, byte_tokenizer):
    """24 bytes of hashes a row are allowed, its tokens are not: 12,000 rows of 480 tokens take 46 MB as two int32."""
    byte_tokenizer.save_pretrained(tmp_path / "tokenizer")
    here = Path(__file__).resolve().parent
    command = [
        sys.executable,
        "-c",
        PREPARING,
        f"{here}:{here.parent / 'support'}:{here.parent}",
        tmp_path,
        tmp_path / "tokenizer",
        "500",
        "12000",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    few, many = json.loads(done.stdout.splitlines()[-1])
    assert many - few < 16
