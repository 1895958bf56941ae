"""The engine of a caller without an event loop, as a real process: faults are final, and it ends with its caller."""

import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from engine_process import EMBEDDED

from mlflow_finetune_plugin.errors import EngineError, ServingError
from mlflow_finetune_plugin.serving.engines import BlockingEngine, EngineSpec
from mlflow_finetune_plugin.serving.settings import TRANSFORMERS, EngineLimits
from mlflow_finetune_plugin.serving.versions.fetching import EngineKey
from mlflow_finetune_plugin.serving.versions.tokenizer_store import tokenizer_digest

pytestmark = pytest.mark.process

CALLER = """
import pickle, sys, time
from pathlib import Path
from mlflow_finetune_plugin.serving.engines import BlockingEngine
engine = BlockingEngine(pickle.load(sys.stdin.buffer), Path(sys.argv[1]), what="sampling completions")
engine.start()
print(engine.pid, flush=True)
time.sleep(60)
"""


def spec_of(folder: Path) -> EngineSpec:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(EMBEDDED).save_pretrained(folder / "tokenizer")
    tokenizer = (folder / "tokenizer").rename(folder / tokenizer_digest(folder / "tokenizer"))
    return EngineSpec(
        kind=TRANSFORMERS,
        key=EngineKey("", "float32", None, tokenizer.name),
        base_name="base",
        base=EMBEDDED,
        tokenizer=tokenizer,
        attn_implementation="sdpa",
        trust_remote_code=False,
        max_rank=0,
        target_modules=(),
        limits=EngineLimits(max_model_len=256, max_num_seqs=4),
        threads=1,
    )


def blocking_engine(folder: Path, **more) -> BlockingEngine:
    return BlockingEngine(spec_of(folder), folder, what="sampling completions", **more)


def request(prompt, **more):
    return {"model": "base", "prompt": prompt, "max_tokens": 8, "return_token_ids": True, "ignore_eos": True, **more}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    engine = blocking_engine(tmp_path_factory.mktemp("engine"))
    engine.start()
    yield engine
    engine.close(drain_s=10)
    assert engine.pid is None


def ids(answer):
    return [choice["token_ids"] for choice in answer["choices"]]


def test_each_answer_of_a_request_has_a_seed_of_its_own_and_repeats(engine):
    prompts = [[5, 6, 7]] * 4
    first, again = engine.complete([request(prompts, seed=3), request(prompts, seed=3)], timeout_s=60)
    assert ids(first) == ids(again)
    assert len({tuple(tokens) for tokens in ids(first)}) == 4
    (third,) = engine.complete([request([5, 6, 7], seed=5)], timeout_s=60)
    assert ids(third) == [ids(first)[2]]


@pytest.mark.bad_input
def test_a_refusal_names_its_reason_and_the_engine_answers_on(engine):
    with pytest.raises(ServingError, match=r"fails sampling completions: 400 .*prompt: empty"):
        engine.complete([request([])], timeout_s=60)
    assert len(engine.complete([request([5])], timeout_s=60)) == 1


@pytest.mark.fault
def test_an_engine_that_hangs_is_ended_with_one_error(tmp_path):
    engine = blocking_engine(tmp_path, idle_s=1.0)
    engine.start()
    process = psutil.Process(engine.pid)

    def complete_until_it_fails():
        while True:
            engine.complete([request([5, 6], max_tokens=200)], timeout_s=60)

    threading.Timer(0.5, process.send_signal, [signal.SIGSTOP]).start()
    with pytest.raises(
        EngineError, match=r"ended while sampling completions: it did not answer a health check for 1 s"
    ):
        complete_until_it_fails()
    engine.close()
    assert not process.is_running()


@pytest.mark.fault
def test_no_engine_outlives_a_caller_that_is_killed(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", CALLER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as caller:
        pickle.dump(spec_of(tmp_path), caller.stdin)
        caller.stdin.close()
        engine = psutil.Process(int(caller.stdout.readline()))
        caller.kill()
    end = time.monotonic() + 10
    while engine.is_running() and engine.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.05)
