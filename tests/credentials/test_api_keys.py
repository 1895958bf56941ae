import hashlib
from datetime import UTC, date, datetime, timedelta

import pytest

from mlflow_finetune_plugin.cli.main import main
from mlflow_finetune_plugin.credentials.api_keys import Keys, add_key
from mlflow_finetune_plugin.errors import ConfigError


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


BROKEN = [
    "",
    "keys: []",
    "keys:\n  - name: a\n    sha256: 12\n",
    "- a",
    "keys: {",
    "keys:\n  - {name: a, password: b}\n",
    "keys:\n  - {name: a}\n",
    f"keys:\n{entry('a', 'b', expires='2027-01-31 10:00:00')}\n",
]


@pytest.mark.parametrize("content", BROKEN)
def test_a_file_that_is_none_is_refused_at_the_start_and_takes_no_key(tmp_path, content):
    file = tmp_path / "keys.yaml"
    file.write_text(content)
    for asked in (lambda: Keys(file), lambda: add_key(file, "b")):
        with pytest.raises(ConfigError, match=r"is no key file.*; fix: correct or take out what is wrong"):
            asked()
    assert file.read_text() == content


def test_a_file_that_cannot_be_reached_is_told_with_a_way_to_one_that_can(tmp_path):
    with pytest.raises(ConfigError, match=r"No such file or directory; fix: mlflow-finetune keys add .* NAME makes it"):
        Keys(tmp_path / "absent")
    with pytest.raises(ConfigError, match=f"fix: make {tmp_path / 'none'}, a folder"):
        add_key(tmp_path / "none" / "keys.yaml", "a")
    with pytest.raises(ConfigError, match="Is a directory; fix: a file that this user may read and write"):
        add_key(tmp_path, "a")
    (tmp_path / "latin").write_bytes(b"keys: \xff")
    with pytest.raises(ConfigError, match="is no key file"):
        add_key(tmp_path / "latin", "a")


@pytest.mark.parametrize(
    "before", [f"keys:\n- name: a\n  sha256: {'a' * 64}\n", f"keys:\n{entry('a', 'b')}\nothers:\n"]
)
def test_a_file_written_in_another_way_is_not_spoilt(tmp_path, before):
    file = tmp_path / "keys.yaml"
    file.write_text(before)
    with pytest.raises(ConfigError, match="fix: `keys` last in it, each entry indented by two spaces"):
        add_key(file, "b")
    assert file.read_text() == before


def test_any_name_is_found_again(tmp_path):
    name = 'Zoë "🦊": #1'
    key = add_key(tmp_path / "keys.yaml", name)
    assert Keys(tmp_path / "keys.yaml").find(key).name == name


def test_a_key_is_made_with_its_limits_by_the_command(tmp_path, capsys):
    file, last = tmp_path / "keys.yaml", datetime.now(UTC).date() + timedelta(days=1)
    limits = ["--requests-per-minute", "3", "--expires", str(last)]
    assert main(["keys", "add", str(file), "alice", *limits]) == 0
    key = Keys(file).find(capsys.readouterr().out.strip())
    assert (key.name, key.requests_per_minute, key.expires) == ("alice", 3.0, last)
    with pytest.raises(
        ConfigError, match=r"(?s)2 problems.*requests per minute 0; fix.*expires 2020-01-31: is past; fix"
    ):
        add_key(file, "bob", requests_per_minute=0, expires=date(2020, 1, 31))
    assert main(["keys", "add", str(tmp_path / "none" / "keys.yaml"), "alice"]) == 2
    said = capsys.readouterr().err
    assert f"fix: make {tmp_path / 'none'}, a folder" in said
    assert "Traceback" not in said


def test_a_fault_is_told_once_with_a_fix(tmp_path, caplog):
    file = tmp_path / "keys.yaml"
    first = add_key(file, "first")
    good = file.read_text()
    keys = Keys(file)
    for spoil, fix in ((file.unlink, "keys add"), (lambda: file.write_text("keys: 3"), "correct or take out")):
        caplog.clear()
        spoil()
        assert [keys.find(first).name for _ in range(3)] == ["first"] * 3, "what was good last still is"
        (told,) = [record.getMessage() for record in caplog.records]
        assert "keys_not_read" in told
        assert f"; fix: {fix}" in told or f"; fix: mlflow-finetune {fix}" in told
        file.write_text(good + "\n")
        keys.find(first)
        assert keys.fault is None
    caplog.clear()
    with pytest.raises(ConfigError):
        Keys(tmp_path / "absent")
    assert not caplog.records, "a refused start says it itself"
