import hashlib
from datetime import UTC, datetime, timedelta

import pytest

from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.serving.keys import Keys, add_key


def test_a_key_is_found_by_itself_alone_and_never_written(tmp_path):
    file = tmp_path / "keys.yaml"
    alice, bob = add_key(file, "alice"), add_key(file, "bob")
    keys = Keys(file)
    assert [keys.find(key).name for key in (alice, bob)] == ["alice", "bob"]
    assert [keys.find(key) for key in (None, "", "x", alice + "x", alice[:-1], "\udcff")] == [None] * 6
    assert alice not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="has a key named 'alice'"):
        add_key(file, "alice")


def entry(name, key, **more):
    lines = [f"  - name: {name}", f"    sha256: {hashlib.sha256(key.encode()).hexdigest()}"]
    return "\n".join([*lines, *(f"    {field}: {value}" for field, value in more.items())])


def test_a_key_ends_with_its_last_day(tmp_path):
    today = datetime.now(UTC).date()
    file = tmp_path / "keys.yaml"
    yesterday = today - timedelta(days=1)
    file.write_text(f"keys:\n{entry('old', 'a', expires=yesterday)}\n{entry('new', 'b', expires=today)}\n")
    keys = Keys(file)
    assert keys.find("a") is None
    assert keys.find("b").name == "new"


def test_a_rate_is_kept(tmp_path):
    file = tmp_path / "keys.yaml"
    file.write_text(f"keys:\n{entry('slow', 'a', requests_per_minute=3)}\n{entry('free', 'b')}\n")
    keys = Keys(file)
    slow, free = keys.find("a"), keys.find("b")
    assert [keys.wait_s(slow) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert 15 < keys.wait_s(slow) <= 20
    assert not any(keys.wait_s(free) for _ in range(100))


def test_a_changed_file_counts_at_once_and_a_broken_one_changes_nothing(tmp_path):
    file = tmp_path / "keys.yaml"
    first = add_key(file, "first")
    keys = Keys(file)
    second = add_key(file, "second")
    assert keys.find(second).name == "second"
    file.write_text("keys: [not, a, key]\n")
    assert keys.find(first).name == "first"
    assert "is no key file" in keys.fault
    file.write_text(f"keys:\n{entry('third', 'c')}\n")
    assert keys.find(first) is None
    assert keys.find("c").name == "third"


@pytest.mark.parametrize(
    "content",
    ["", "keys: []", "keys:\n  - name: a\n    sha256: 12\n", "- a", "keys: {", "keys:\n  - {name: a, password: b}\n"],
)
def test_a_file_that_is_none_is_refused_at_the_start(tmp_path, content):
    file = tmp_path / "keys.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match="is no key file"):
        Keys(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys(tmp_path / "absent")
