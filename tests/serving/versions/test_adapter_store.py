"""The store on real files: whole or not at all, verified both ways, bounded, shared by processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

from mlflow_finetune_plugin.base_models.weights_digest import folder_digest
from mlflow_finetune_plugin.errors import StoreError
from mlflow_finetune_plugin.serving.versions.adapter_store import AdapterStore


@pytest.fixture
def adapter(tmp_path):
    """Makes an adapter folder of about ``size`` bytes; returns it with its digest."""

    def make(name, size=4000):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        save_file({name: np.full(size // 4, 1.5, dtype=np.float32)}, folder / "adapter_model.safetensors")
        return folder, folder_digest(folder)

    return make


@pytest.fixture
def store(tmp_path):
    return AdapterStore(tmp_path / "store")


def test_what_is_added_is_held_under_its_digest(store, adapter):
    folder, digest = adapter("a")
    assert store.hold(digest) is None
    with store.add(folder, digest) as held:
        assert held.folder == store.root / "adapters" / digest
        assert folder_digest(held.folder) == digest
    with store.add(folder, digest) as again, store.hold(digest) as other:
        assert again.folder == other.folder
    assert store.digests() == [digest]


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["../outside", "/etc", "", "A" * 64, "a" * 63, "a" * 64 + "\n", ".draft-x"])
def test_names_cannot_leave_the_store(store, adapter, name):
    folder, _ = adapter("a")
    for act in (lambda: store.hold(name), lambda: store.add(folder, name)):
        with pytest.raises(StoreError, match="not 64 hexadecimal digits"):
            act()


def pickled(folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def linked(folder):
    target = folder.parent / "target"
    (folder / "adapter_config.json").rename(target)
    (folder / "adapter_config.json").symlink_to(target)


def no_tensors(folder):
    (folder / "adapter_model.safetensors").write_bytes(b"\x80\x04cposix\nsystem\n")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("spoil", "said"),
    [(pickled, "adapter_model.bin"), (linked, "not a regular file"), (no_tensors, "not a valid safetensors file")],
)
def test_what_is_no_adapter_is_refused_and_leaves_nothing(store, adapter, spoil, said):
    folder, _ = adapter("a")
    spoil(folder)
    with pytest.raises(StoreError, match=said):
        store.add(folder, folder_digest(folder))
    assert store.digests() == []


def test_other_contents_than_promised_are_refused(store, adapter):
    folder, _ = adapter("a")
    with pytest.raises(StoreError, match="another digest"):
        store.add(folder, "0" * 64)


@pytest.mark.fault
def test_damage_on_the_disk_is_seen_and_the_adapter_can_come_again(store, adapter):
    folder, digest = adapter("a")
    store.add(folder, digest).release()
    weights = store.root / "adapters" / digest / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    assert store.hold(digest) is None
    assert store.digests() == []
    store.add(folder, digest).release()
    assert store.digests() == [digest]


def test_least_recently_held_is_evicted_and_never_one_that_is_held(tmp_path, adapter):
    store = AdapterStore(tmp_path / "store", max_bytes=13_500)
    (a, first), (b, second), (c, third), (d, fourth) = (adapter(name) for name in "abcd")
    held = store.add(a, first)
    for folder, digest in ((b, second), (c, third)):
        store.add(folder, digest).release()
        time.sleep(0.01)
    store.hold(second).release()
    store.add(d, fourth).release()
    assert set(store.digests()) == {first, second, fourth}
    assert store.size() <= 13_500
    held.release()


def test_store_full_of_what_is_served_says_so(tmp_path, adapter):
    store = AdapterStore(tmp_path / "store", max_bytes=5_000)
    (a, first), (b, second) = adapter("a"), adapter("b")
    with store.add(a, first), pytest.raises(StoreError, match=r"of 5,000 bytes are being served.* fix: "):
        store.add(b, second)
    assert store.digests() == [first]


HOLDER = """
import sys, time
from pathlib import Path
from mlflow_finetune_plugin.serving.versions.adapter_store import AdapterStore
held = AdapterStore(Path(sys.argv[1])).hold(sys.argv[2])
print("held", flush=True)
time.sleep(600)
"""


@pytest.mark.fault
@pytest.mark.process
def test_lock_of_a_killed_process_goes_with_it(tmp_path, adapter):
    (a, first), (b, second) = adapter("a"), adapter("b")
    AdapterStore(tmp_path / "store").add(a, first).release()
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "store"), first], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    small = AdapterStore(tmp_path / "store", max_bytes=5_000)
    with pytest.raises(StoreError, match="being served"):
        small.add(b, second)
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    small.add(b, second).release()
    assert small.digests() == [second]


def _add(arguments):
    root, folder, digest = arguments
    with AdapterStore(root).add(folder, digest) as held:
        return folder_digest(held.folder)


@pytest.mark.fault
def test_two_processes_that_add_the_same_at_once(tmp_path, adapter):
    folder, digest = adapter("a", size=2_000_000)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.map(_add, [(tmp_path / "store", folder, digest)] * 6) == [digest] * 6
    assert AdapterStore(tmp_path / "store").digests() == [digest]
    assert [path.name for path in (tmp_path / "store" / "adapters").iterdir()] == [digest]


@pytest.mark.fault
def test_draft_of_a_killed_process_is_swept(store, adapter):
    draft = store.root / "adapters" / ".draft-dead"
    draft.mkdir(parents=True)
    (draft / "adapter_model.safetensors").write_bytes(b"half")
    folder, digest = adapter("a")
    store.add(folder, digest).release()
    assert not draft.exists()


@pytest.mark.fault
@pytest.mark.process
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk, which takes root")
@pytest.mark.process
def test_full_disk_is_one_clear_error_and_keeps_what_was_there(tmp_path, adapter):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        store = AdapterStore(disk / "store")
        (small, first), (large, second) = adapter("a"), adapter("b", size=400_000)
        store.add(small, first).release()
        with pytest.raises(StoreError, match="the disk is full; fix: free space"):
            store.add(large, second)
        assert store.digests() == [first]
        store.hold(first).release()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
