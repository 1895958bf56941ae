"""Who meets by default."""

import pytest

from gradio_app.chat.client import Endpoint
from gradio_app.chat.endpoints import ServedModels, default_sides
from gradio_app.chat.session import Contender, SessionError

HERE = Endpoint("http://127.0.0.1:1/v1")


def served(*told, registered=("bot",)):
    """``told``: (name, root, parent) as an endpoint lists them."""
    return ServedModels(tuple(Contender(name, HERE, name, root, parent) for name, root, parent in told), registered, ())


def version(alias, number, base="small"):
    return f"bot@{alias}", f"bot/{number}", base


def names(found):
    return [side.name for side in found]


BASE = ("base", "small", None)
SMALL = ("small", None, None)


def test_challenger_meets_champion():
    found = served(SMALL, BASE, version("champion", 1), version("challenger", 2), ("bot/2", "bot/2", "small"))
    assert names(default_sides(found, "bot")) == ["bot@challenger", "bot@champion"]


def test_one_version_under_both_aliases_meets_its_base_and_never_itself():
    found = served(SMALL, BASE, version("champion", 2), version("challenger", 2), ("bot/2", "bot/2", "small"))
    assert names(default_sides(found, "bot")) == ["bot@challenger", "small"]


def test_without_a_champion_the_base_is_the_version_s_own():
    other = ("other@challenger", "other/1", "large")
    found = served(("large", None, None), SMALL, other, version("challenger", 1), registered=("other", "bot"))
    assert names(default_sides(found, "bot")) == ["bot@challenger", "small"]
    assert names(default_sides(found, "other")) == ["other@challenger", "large"]


def test_endpoints_that_list_names_alone_give_their_first_two():
    found = served(("gpt-a", None, None), ("gpt-b", None, None), ("gpt-c", None, None), registered=())
    assert names(default_sides(found, None)) == ["gpt-a", "gpt-b"]


def test_one_model_alone_meets_nobody():
    with pytest.raises(SessionError, match="no two models to compare yet"):
        default_sides(served(("gpt-a", None, None), registered=()), None)


def test_a_version_that_no_router_lists_can_be_added_once():
    listed = served(("bot@champion", "bot/1", "small"), ("small", None, None), registered=("bot",))
    more = listed.with_version("bot", "3")
    assert names(more.contenders) == ["bot@champion", "small", "bot/3"]
    assert (more.find("bot/3").parent, more.version("bot/3", "bot")) == ("small", "3")
    assert more.with_version("bot", "3") == more
    assert listed.with_version("other", "3") == listed
