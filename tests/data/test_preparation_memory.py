"""What preparing costs does not grow with the rows."""

from pathlib import Path

import psutil
from data_requests import jsonl, request

from mlflow_finetune_plugin.data import reading
from mlflow_finetune_plugin.data.preparation import prepare


def own_memory_mib():
    """Without the pages of mapped files, which the kernel takes back; with the children's, shared pages once."""
    return sum(anonymous_kib(process.pid) for process in [psutil.Process(), *psutil.Process().children()]) / 1024


def anonymous_kib(pid):
    """0 for a process that has ended since it was listed."""
    try:
        said = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) for line in said.splitlines() if line.startswith("Pss_Anon:"))


def test_memory_does_not_grow_with_the_rows(tmp_path, renderer, monkeypatch):
    """24 bytes of hashes a row are allowed, its tokens are not: 12,000 rows of 480 tokens take 46 MB as two int32."""
    monkeypatch.setattr(reading, "BATCH_ROWS", 100)

    def peak_mib(name, count):
        seen = []
        rows = ({"prompt": f"{i} " + "Why? " * 80, "completion": "yes " * 80} for i in range(count))
        asked = request(jsonl(tmp_path / name, rows), max_eval_rows=10)
        prepared = prepare(asked, renderer, tmp_path / "out", lambda rows: seen.append(own_memory_mib()))
        assert prepared.report.train.tokens > 470 * (count - 10)
        return max(*seen, own_memory_mib())

    before = peak_mib("small.jsonl", 500)
    assert peak_mib("large.jsonl", 12_000) - before < 16
