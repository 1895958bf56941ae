"""The champion that is watched, and the policy and counts that come with it."""

import pytest
from proven_versions import register_proven, rows

from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.store.names import CHAMPION, GATE_FOLDER
from mlflow_finetune_plugin.watch.state import FILE, WatchState, last_state
from mlflow_finetune_plugin.watch.target import find_watched

pytestmark = pytest.mark.store

POLICY = GatePolicy.model_validate({"gain": {"metric": "exact_match"}})


@pytest.fixture
def client(desk):
    client = desk.client()
    number = register_proven(client, "bot", rows(20), right=15, policy=POLICY)
    client.set_registered_model_alias("bot", CHAMPION, number)
    return client


def run_id_of(client):
    return client.get_model_version_by_alias("bot", CHAMPION).run_id


def test_a_policy_that_is_readable_or_absent_is_not_noted(client):
    assert find_watched(client, "bot").notes == ()
    number = register_proven(client, "bot", rows(20), right=15)
    client.set_registered_model_alias("bot", CHAMPION, number)
    assert find_watched(client, "bot").notes == ()


def test_a_policy_that_was_changed_after_the_run_is_noted(client):
    client.log_text(run_id_of(client), "{}", f"{GATE_FOLDER}/policy.json")
    (note,) = find_watched(client, "bot").notes
    assert note.startswith("its policy cannot be read: ")


@pytest.mark.parametrize(
    ("text", "is_noted"), [(WatchState().to_json(), False), ("{", True), ("[]", True), (None, True)]
)
def test_counts_that_cannot_be_read_are_noted_and_start_again(client, text, is_noted):
    experiment = client.create_experiment("bot.promotions")
    run = client.create_run(experiment, tags={"finetune.watch.outcome": "keep"})
    if text is not None:
        client.log_text(run.info.run_id, text, FILE)
    notes: list[str] = []
    assert last_state(client, experiment, notes) == WatchState()
    assert [note.partition(",")[0] for note in notes] == (["the counts of the last check"] if is_noted else [])


def test_without_an_earlier_check_nothing_is_noted(client):
    notes: list[str] = []
    assert last_state(client, client.create_experiment("bot.promotions"), notes) == WatchState()
    assert notes == []
