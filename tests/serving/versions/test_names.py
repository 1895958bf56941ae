import pytest

from mlflow_finetune_plugin.serving.versions.names import header_value, http_address, parse, served_name
from mlflow_finetune_plugin.store.model_ref import ModelRef

MODELS = frozenset(("bot", "my bot", "a.b-c"))


@pytest.mark.parametrize(
    ("model_id", "asked"),
    [
        ("bot", ModelRef("bot")),
        ("bot@champion", ModelRef("bot", alias="champion")),
        ("my bot@v2 beta", ModelRef("my bot", alias="v2 beta")),
        ("a.b-c/7", ModelRef("a.b-c", version="7")),
    ],
)
def test_ids_that_mean_something(model_id, asked):
    assert parse(model_id, MODELS) == asked


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "model_id",
    [
        "",
        "other",
        "bot@",
        "@champion",
        "bot/",
        "bot/0",
        "bot/-1",
        "bot/1.5",
        "bot/99999999999",
        "bot/../other",
        "../bot",
        "bot/1/2",
        "bot@a/1",
        "BOT",
        "bot\n",
        "bot/1\n",
        "x" * 10000,
        "bot/١",
        "bot@x@y@",
    ],
)
def test_everything_else_means_nothing_or_an_alias_that_is_looked_up(model_id):
    found = parse(model_id, MODELS)
    assert found is None or (found.alias is not None and found.version is None)


def test_a_served_name_holds_the_digest():
    assert served_name("bot", "7", "ab" * 32) == "bot/7-abababababab"
    assert served_name("bot", "7", "ab" * 32) != served_name("bot", "7", "cd" * 32)


@pytest.mark.bad_input
@pytest.mark.parametrize("text", ["a\r\nset-cookie: x=1", "b\x00", "\u00fcml\u00e4ut \u65e5\u672c", "a\tb"])
def test_no_name_can_add_a_header(text):
    value = header_value(text)
    assert value.isascii()
    assert value.isprintable()
    assert header_value("my-bot@champion/7 (1)") == "my-bot@champion/7 (1)"


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"), ("0.0.0.0", "http://127.0.0.1:8000"), ("bots.example", "http://bots.example:8000"),
        ("::1", "http://[::1]:8000"), ("::", "http://[::1]:8000"),
    ],
)  # fmt: skip
def test_an_address_can_be_asked_as_it_is_written(host, address):
    assert http_address(host, 8000) == address
