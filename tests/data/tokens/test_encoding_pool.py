"""Real processes: order, faults, and nothing left behind."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from mlflow_finetune_plugin.data.tokens import encoding_pool
from mlflow_finetune_plugin.data.tokens.batch_encoder import BatchEncoder, to_frame
from mlflow_finetune_plugin.data.tokens.encoding_pool import EncodingPool
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.threads import ThreadChoice

forks = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are forked on Linux only")


@pytest.fixture
def encode(byte_tokenizer):
    return BatchEncoder(ChatRenderer(byte_tokenizer), 0)


@pytest.fixture(autouse=True)
def _two_processes(monkeypatch):
    """And none of them is left behind."""
    monkeypatch.setattr(encoding_pool, "idle_cores", lambda: ThreadChoice(2, ""))
    before = set(psutil.Process().children())
    yield
    assert set(psutil.Process().children()) <= before


def frames(count):
    return [
        to_frame([n], [({"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "yes " * (1 + n % 7)})])
        for n in range(count)
    ]


def collected(encode, frames):
    batches = []
    with EncodingPool(encode, lambda frame, batch: batches.append((frame, batch))) as pool:
        for frame in frames:
            pool.submit(frame)
        pool.drain()
    return batches


def batch_lists(batch):
    """Return everything in a batch as lists, including the hashes that must agree between processes."""
    fields = {**vars(batch), **vars(batch.tokens)}
    return {name: value.tolist() for name, value in fields.items() if isinstance(value, np.ndarray)} | {
        "faults": batch.faults,
        "odd": batch.odd,
    }


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("count", [1, 4, 5, 60])
def test_batches_come_back_in_order_as_encoded_here(encode, monkeypatch, count, cores):
    monkeypatch.setattr(encoding_pool, "idle_cores", lambda: ThreadChoice(cores, ""))
    submitted = frames(count)
    results = collected(encode, submitted)
    assert [frame for frame, _ in results] == submitted
    assert [batch_lists(batch) for _, batch in results] == [batch_lists(encode(frame)) for frame in submitted]


@forks
def test_many_batches_are_encoded_by_several_other_processes(encode, tmp_path):
    def noting(frame):
        (tmp_path / str(os.getpid())).touch()
        time.sleep(0.01)
        return encode(frame)

    collected(noting, frames(40))
    pids = {path.name for path in tmp_path.iterdir()}
    assert len(pids) == 2
    assert str(os.getpid()) not in pids


@forks
def test_callers_setting_for_the_tokenizer_stays(encode, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    collected(encode, frames(9))
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    collected(encode, frames(9))
    assert "TOKENIZERS_PARALLELISM" not in os.environ


@pytest.mark.parametrize("bad", [0, 30])
def test_an_error_reaches_who_reads_and_leaves_no_process(encode, bad):
    def failing(frame):
        if frame == frames(31)[bad]:
            raise ValueError("no such token")
        return encode(frame)

    with pytest.raises(ValueError, match="no such token"):
        collected(failing, frames(60))


@pytest.mark.fault
@forks
def test_a_killed_process_is_one_clear_error(encode):
    def killed(frame):
        if frame == frames(31)[30]:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(frame)

    with pytest.raises(DataError, match="was killed, probably because memory ran out; fix: free memory"):
        collected(killed, frames(60))


@pytest.mark.fault
@pytest.mark.process
@forks
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_children_end_with_their_parent(tmp_path, sent):
    """Also when it handles SIGTERM in its own way, as a worker does."""
    program = f"""
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
from mlflow_finetune_plugin.data.tokens import encoding_pool
from mlflow_finetune_plugin.threads import ThreadChoice
encoding_pool.idle_cores = lambda: ThreadChoice(2, "")
def encode(frame):
    open({str(tmp_path)!r} + f"/{{os.getpid()}}", "w").close()
    time.sleep(60)
with encoding_pool.EncodingPool(encode, print) as pool:
    for n in range(9):
        pool.submit(b"x")
    pool.drain()
"""
    parent = subprocess.Popen([sys.executable, "-c", program])
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        children = [psutil.Process(int(path.name)) for path in tmp_path.iterdir()]
        os.kill(parent.pid, sent)
        for child in children if sent == signal.SIGTERM else []:
            child.terminate()  # a supervisor signals the whole group
        gone, alive = psutil.wait_procs(children, timeout=20)
        assert not alive
        assert len(gone) == 2
        parent.wait(20)
    finally:
        parent.kill()


def test_numbers_of_a_batch_by_hand(encode):
    turns = [
        ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}),
        ({"role": "user", "content": "A "}, {"role": "assistant", "content": "c"}),
        ({"role": "user", "content": "x"}, {"role": "assistant", "content": "no <|endoftext|>"}),
    ]
    batch = encode(to_frame([3, 3, 4], turns))
    assert batch.lines.tolist() == [3, 3, 4]
    assert batch.row_hashes[0] == batch.row_hashes[1] == batch.own_hashes[0] != batch.own_hashes[1]
    assert batch.prompt_hashes[0] == batch.prompt_hashes[1]
    assert batch.counts.tolist() == [1, 1, 0]
    assert [(row, reason) for row, reason, _ in batch.faults] == [(2, "stop token inside the answer")]
    assert batch.longest.tolist() == [*batch.tokens.lengths, 0]
    assert batch.longest.dtype == np.int32
