import hashlib
from datetime import UTC, date, datetime, timedelta

import pytest

from mlflow_finetune_plugin.cli.main import main
from mlflow_finetune_plugin.credentials.api_keys import Keys, add_key
from mlflow_finetune_plugin.errors import ConfigError


def test_only_the_exact_key_matches_and_only_its_hash_is_stored(tmp_path):
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


def test_a_key_expires_after_its_last_day(tmp_path):
    today = datetime.now(UTC).date()
    file = tmp_path / "keys.yaml"
    yesterday = today - timedelta(days=1)
    file.write_text(f"keys:\n{entry('old', 'a', expires=yesterday)}\n{entry('new', 'b', expires=today)}\n")
    keys = Keys(file)
    assert keys.find("a") is None
    assert keys.find("b").name == "new"


def test_rate_limits_hold(tmp_path):
    file = tmp_path / "keys.yaml"
    file.write_text(f"keys:\n{entry('slow', 'a', requests_per_minute=3)}\n{entry('free', 'b')}\n")
    keys = Keys(file)
    slow, free = keys.find("a"), keys.find("b")
    assert [keys.wait_s(slow) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert 15 < keys.wait_s(slow) <= 20
    assert not any(keys.wait_s(free) for _ in range(100))


def test_a_changed_file_counts_at_once_and_an_invalid_one_changes_nothing(tmp_path):
    file = tmp_path / "keys.yaml"
    first = add_key(file, "first")
    keys = Keys(file)
    second = add_key(file, "second")
    assert keys.find(second).name == "second"
    file.write_text("keys: [not, a, key]\n")
    assert keys.find(first).name == "first"
    assert "not an API key file" in keys.fault
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


@pytest.mark.bad_input
@pytest.mark.parametrize("content", BROKEN)
def test_an_invalid_file_is_refused_at_the_start_and_not_changed(tmp_path, content):
    file = tmp_path / "keys.yaml"
    file.write_text(content)
    for call in (lambda: Keys(file), lambda: add_key(file, "b")):
        with pytest.raises(ConfigError, match=r"not an API key file.*; fix: correct or remove what is wrong"):
            call()
    assert file.read_text() == content


def test_an_unreachable_file_is_an_error_with_a_fix(tmp_path):
    with pytest.raises(
        ConfigError, match=r"No such file or directory; fix: create it with mlflow-finetune keys add .* NAME"
    ):
        Keys(tmp_path / "absent")
    with pytest.raises(ConfigError, match=f"fix: create the folder {tmp_path / 'none'}"):
        add_key(tmp_path / "none" / "keys.yaml", "a")
    with pytest.raises(ConfigError, match="Is a directory; fix: use a file that this user may read and write"):
        add_key(tmp_path, "a")
    (tmp_path / "latin").write_bytes(b"keys: \xff")
    with pytest.raises(ConfigError, match="not an API key file"):
        add_key(tmp_path / "latin", "a")


@pytest.mark.parametrize(
    "before", [f"keys:\n- name: a\n  sha256: {'a' * 64}\n", f"keys:\n{entry('a', 'b')}\nothers:\n"]
)
def test_a_file_with_another_layout_is_not_changed(tmp_path, before):
    file = tmp_path / "keys.yaml"
    file.write_text(before)
    with pytest.raises(ConfigError, match="fix: put `keys` last in the file, each entry indented by two spaces"):
        add_key(file, "b")
    assert file.read_text() == before


def test_any_name_survives_the_file(tmp_path):
    name = 'Zoë "🦊": #1'
    key = add_key(tmp_path / "keys.yaml", name)
    assert Keys(tmp_path / "keys.yaml").find(key).name == name


def test_the_command_adds_a_key_with_its_limits(tmp_path, capsys):
    file, last = tmp_path / "keys.yaml", datetime.now(UTC).date() + timedelta(days=1)
    limits = ["--requests-per-minute", "3", "--expires", str(last)]
    assert main(["keys", "add", str(file), "alice", *limits]) == 0
    key = Keys(file).find(capsys.readouterr().out.strip())
    assert (key.name, key.requests_per_minute, key.expires) == ("alice", 3.0, last)
    with pytest.raises(
        ConfigError,
        match=r"(?s)2 problems.*requests per minute 0: too small; fix.*expires 2020-01-31: in the past; fix",
    ):
        add_key(file, "bob", requests_per_minute=0, expires=date(2020, 1, 31))
    assert main(["keys", "add", str(tmp_path / "none" / "keys.yaml"), "alice"]) == 2
    message = capsys.readouterr().err
    assert f"fix: create the folder {tmp_path / 'none'}" in message
    assert "Traceback" not in message


def test_a_fault_is_logged_once_with_a_fix(tmp_path, caplog):
    file = tmp_path / "keys.yaml"
    first = add_key(file, "first")
    good = file.read_text()
    keys = Keys(file)
    for spoil, fix in ((file.unlink, "create it with"), (lambda: file.write_text("keys: 3"), "correct or remove")):
        caplog.clear()
        spoil()
        assert [keys.find(first).name for _ in range(3)] == ["first"] * 3, "the last valid keys stay"
        (message,) = [record.getMessage() for record in caplog.records]
        assert "keys_not_read" in message
        assert f"; fix: {fix}" in message
        file.write_text(good + "\n")
        keys.find(first)
        assert keys.fault is None
    caplog.clear()
    with pytest.raises(ConfigError):
        Keys(tmp_path / "absent")
    assert not caplog.records, "the error of a refused start is not logged as well"


@pytest.mark.bad_input
def test_the_digest_of_an_empty_key_is_refused(tmp_path):
    file = tmp_path / "keys.yaml"
    file.write_text(f"keys:\n  - name: anybody\n    sha256: {hashlib.sha256(b'').hexdigest()}\n")
    with pytest.raises(ConfigError, match=r"sha256 of 'anybody' is that of an empty key"):
        Keys(file)


def test_a_rate_below_one_lets_the_first_request_pass(tmp_path):
    file = tmp_path / "keys.yaml"
    api_key = add_key(file, "slow")
    file.write_text(file.read_text() + "    requests_per_minute: 0.5\n")
    keys = Keys(file)
    key = keys.find(api_key)
    assert keys.wait_s(key) == 0.0
    assert 110 < keys.wait_s(key) <= 120


def test_only_keys_that_are_valid_now_are_several(tmp_path):
    file, yesterday = tmp_path / "keys.yaml", datetime.now(UTC).date() - timedelta(days=1)
    file.write_text(f"keys:\n{entry('old', 'a', expires=yesterday)}\n{entry('new', 'b')}\n")
    assert not Keys(file).has_several
    file.write_text(f"keys:\n{entry('old', 'a')}\n{entry('new', 'b')}\n")
    assert Keys(file).has_several
