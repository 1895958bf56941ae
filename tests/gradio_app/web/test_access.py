import pytest

from gradio_app.settings import PlaygroundSettings, check_settings
from gradio_app.web.access import Access, Visitor
from mlflow_finetune_plugin.credentials.users import add_user, remove_user
from mlflow_finetune_plugin.errors import ConfigError

ENDPOINT = ("http://127.0.0.1:8000/v1",)


def test_on_this_machine_one_visitor_may_do_all():
    access = Access(PlaygroundSettings(ENDPOINT))
    assert access.is_open
    assert access.visitor(None) == Visitor("local", may_promote=True)


def test_a_user_of_the_file_may_what_the_file_says_now(tmp_path):
    file = tmp_path / "users.yaml"
    add_user(file, "alice", "correct horse", may_promote=True)
    add_user(file, "bob", "battery staple")
    access = Access(PlaygroundSettings(ENDPOINT, auth_file=file))
    assert access.log_in("alice", "correct horse") == Visitor("alice", may_promote=True)
    assert access.log_in("bob", "battery staple") == Visitor("bob", may_promote=False)
    assert access.log_in("bob", "correct horse") is None
    assert (access.may_promote("alice"), access.may_promote("bob"), access.may_promote(None)) == (True, False, False)
    remove_user(file, "alice")
    assert access.visitor("alice") is None
    assert not access.may_promote("alice")


def test_a_header_counts_from_a_trusted_peer_alone():
    settings = PlaygroundSettings(ENDPOINT, user_header="X-Forwarded-User", promoters=("alice",))
    here = Access(settings)
    assert here.from_header(["alice"], "127.0.0.1") == Visitor("alice", may_promote=True)
    assert here.from_header(["bob"], "::1") == Visitor("bob", may_promote=False)
    assert here.from_header(["alice"], "::ffff:127.0.0.1") is not None
    for values, peer in [(["alice"], "10.0.0.7"), (["alice"], None), ([], "127.0.0.1"), (["a", "b"], "127.0.0.1")]:
        assert here.from_header(values, peer) is None
    assert here.from_header([" "], "127.0.0.1") is None


def test_proxies_that_are_named_replace_this_machine():
    settings = PlaygroundSettings(ENDPOINT, user_header="X-User", trusted_proxies=("10.1.0.0/16",))
    access = Access(settings)
    assert access.from_header(["alice"], "10.1.2.3") is not None
    assert access.from_header(["alice"], "127.0.0.1") is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"host": "0.0.0.0"}, "host 0.0.0.0: without a login only this machine may open the page; fix: --auth-file"),
        ({"host": "192.168.1.7"}, "host 192.168.1.7: without a login"),
        ({"user_header": "X-User", "auth_file": "f"}, "fix: keep the one that identifies users"),
        ({"user_header": "X User:"}, "is not a header name; fix: use a name such as"),
        ({"promoters": ("alice",)}, "--promoter needs --user-header"),
        (
            {"user_header": "X-User", "trusted_proxies": ("proxy.local",)},
            "--trusted-proxy 'proxy.local' is not an address; fix: use an IP",
        ),
        ({"endpoints": ()}, "no endpoint was given; fix: --endpoint"),
        ({"endpoints": ("http://me:secret@host/v1",)}, "--endpoint http://host/v1 is not a valid endpoint; fix"),
        ({"port": 70000}, "--port 70000 is not a valid port; fix: use a number from 0 to 65535"),
        ({"max_streams": 0}, "--max-streams 0 is too small; fix: use a number from 1"),
        ({"max_streams_per_session": 1}, "--max-streams-per-session 1 is too small; fix: use a number from 2"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_the_start(settings, said):
    with pytest.raises(ConfigError) as refused:
        check_settings(PlaygroundSettings(**{"endpoints": ENDPOINT, **settings}))
    assert said in str(refused.value)
    assert "secret" not in str(refused.value)


def test_settings_that_can_be_are_not_refused(tmp_path):
    check_settings(PlaygroundSettings(ENDPOINT))
    check_settings(PlaygroundSettings(ENDPOINT, host="localhost"))
    check_settings(PlaygroundSettings(ENDPOINT, host="::1"))
    check_settings(PlaygroundSettings(ENDPOINT, host="0.0.0.0", user_header="X-Forwarded-User"))
