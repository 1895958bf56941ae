import asyncio
import os
import signal
import threading

import pytest
from serving_process import start_serving, wait_until

from mlflow_finetune_plugin.serving.daemon_threads import in_daemon_thread


def test_results_and_errors_reach_the_caller():
    async def scenario():
        assert await in_daemon_thread(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await in_daemon_thread(divmod, 7, 0)

    asyncio.run(scenario())


def test_the_loop_does_not_wait_for_work_whose_caller_was_cancelled():
    begun, free = threading.Event(), threading.Event()

    def work():
        begun.set()
        free.wait(60)

    async def scenario():
        task = asyncio.create_task(in_daemon_thread(work))
        while not begun.is_set():
            await asyncio.sleep(0.01)
        task.cancel()

    try:
        asyncio.run(scenario())
        assert not free.is_set()
    finally:
        free.set()


@pytest.mark.fault
@pytest.mark.process
def test_sigterm_ends_a_service_while_the_digest_of_a_base_is_computed(tmp_path, registry):
    """The weights are a pipe that nobody writes to, so the digest never ends."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    os.mkfifo(base / "model.safetensors")
    service = start_serving(tmp_path, registry.uri, "bot", "--engine", "transformers", "--base-model", str(base))

    def reader_waits():
        try:
            return os.open(base / "model.safetensors", os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody has opened it to read
            return None

    pipe = None
    try:
        pipe = wait_until(reader_waits)
        assert service.end(signal.SIGTERM, seconds=60) == 0
    finally:
        if pipe is not None:
            os.close(pipe)
        service.process.kill()
        service.process.wait()
