import os
import stat

import pytest

from mlflow_finetune_plugin.credentials.users import PasswordHash, Users, add_user, read_users, remove_user
from mlflow_finetune_plugin.errors import ConfigError


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "users.yaml"
    add_user(path, "alice", "correct horse", may_promote=True)
    add_user(path, "Боб", "battery staple")
    return path


def test_a_login_needs_the_right_password(file):
    users = Users(file)
    assert users.with_password("alice", "correct horse").may_promote is True
    assert users.with_password("Боб", "battery staple").may_promote is False
    for name, password in (("alice", "battery staple"), ("alice", ""), ("carol", "correct horse"), ("", "")):
        assert users.with_password(name, password) is None


def test_the_file_holds_no_password_and_only_its_owner_may_read_it(file):
    text = file.read_text()
    assert "horse" not in text
    assert text.count("scrypt$32768$8$1$") == 2
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    first, second = (user.password.salt for user in read_users(file))
    assert first != second
    assert "horse" not in repr(read_users(file))


def test_a_removed_user_is_refused_at_the_next_request(file):
    users = Users(file)
    remove_user(file, "alice")
    assert users.find("alice") is None
    remove_user(file, "Боб")
    assert users.find("Боб") is None
    assert users.fault is None


def test_an_invalid_file_changes_nothing_and_is_logged_once(file, caplog):
    users = Users(file)
    file.write_text("users: [")
    assert users.find("alice") is not None
    assert users.find("alice") is not None
    assert "not a user file" in users.fault
    assert [record.message.partition(" ")[0] for record in caplog.records] == ["users_not_read"]
    os.chmod(file, 0o600)
    file.write_text("users: []")
    assert users.find("alice") is None
    assert users.fault is None


def test_a_file_that_others_may_read_is_refused(file):
    os.chmod(file, 0o644)
    with pytest.raises(ConfigError, match=r"0644.*fix: chmod 600"):
        Users(file)


def test_an_unknown_name_takes_as_long_as_a_known_one(file, monkeypatch):
    compared = []
    matches = PasswordHash.matches
    monkeypatch.setattr(
        PasswordHash, "matches", lambda self, password: compared.append(self.n) or matches(self, password)
    )
    Users(file).with_password("nobody", "correct horse")
    Users(file).with_password("alice", "wrong horse")
    assert compared == [32768, 32768]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "password", "message"),
    [
        ("", "long enough", "user name '': not valid; fix"),
        (" alice", "long enough", "user name ' alice': not valid; fix"),
        ("a\nb", "long enough", "fix: use 1 to 100 printable"),
        ("alice", "short", "a password of 5 characters; fix: use 8 to 1000"),
    ],
)
def test_invalid_names_and_passwords_are_refused(tmp_path, name, password, message):
    with pytest.raises(ConfigError) as refused:
        add_user(tmp_path / "users.yaml", name, password)
    assert message in str(refused.value)
    assert not (tmp_path / "users.yaml").exists()


def test_a_name_is_added_once_and_removed_once(file):
    with pytest.raises(ConfigError, match="has a user named 'alice'; fix: remove that user first"):
        add_user(file, "alice", "another one")
    with pytest.raises(ConfigError, match="has no user named 'carol'; fix: use one of its names: alice, Боб"):
        remove_user(file, "carol")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{name: a, password: secret}", "password of 'a' is not a hash"),
        ("{name: a, password: scrypt$2$8$1$" + "00" * 16 + "$" + "00" * 32 + "}", "n must be 2^14 to 2^18"),
        ("{name: a, password: scrypt$16384$8$1$00$" + "00" * 32 + "}", "salt and hash must be hexadecimal"),
        ("{name: 7, password: x}", "a name must be text, not 7"),
        ("{name: a, role: x}", "an entry may have name, password and may_promote"),
    ],
)
def test_an_invalid_entry_is_an_error_with_its_reason(tmp_path, entry, message):
    file = tmp_path / "users.yaml"
    file.write_text(f"users:\n  - {entry}\n")
    file.chmod(0o600)
    with pytest.raises(ConfigError) as refused:
        read_users(file)
    assert message in str(refused.value)
    assert "secret" not in str(refused.value)
