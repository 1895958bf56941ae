"""What the registry says of a version is believed for a while, and asked again after it."""

import json
import re

import pytest

from mlflow_finetune_plugin.errors import ServingError
from mlflow_finetune_plugin.serving.versions.adapter_store import AdapterStore
from mlflow_finetune_plugin.serving.versions.fetching import Fetcher

pytestmark = pytest.mark.store


def test_a_deleted_version_is_noticed_after_a_while(tmp_path, registry):
    number = registry.make("gone", seed=7)
    store = AdapterStore(tmp_path / "store")
    patient, eager = Fetcher(registry.client, store), Fetcher(registry.client, store, fresh_s=0.0)
    for fetcher in (patient, eager):
        fetcher.fetch("gone", number).adapter.release()
    registry.client.delete_model_version("gone", number)
    patient.fetch("gone", number).adapter.release()
    with pytest.raises(ServingError, match="the registry has no such version"):
        eager.fetch("gone", number)


def test_a_broken_record_is_fetched_again(tmp_path, registry):
    store = AdapterStore(tmp_path / "store")
    fetcher = Fetcher(registry.client, store)
    with fetcher.fetch("bot", "1").adapter:
        (record,) = (tmp_path / "store" / "versions").glob("*.json")
    good = record.read_text()
    card = json.loads(good)["card"]
    for broken in ("{", "[]", "{}", json.dumps({**json.loads(good), "card": {**card, "adapter_digest": "../../etc"}})):
        record.write_text(broken)
        with fetcher.fetch("bot", "1").adapter:
            assert json.loads(record.read_text()) == json.loads(good)


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("finetune.json", {"base_model": "llama"}, "finetune.json: base_model"),
        ("finetune.json", {"stop_token_ids": ["</s>"]}, "finetune.json: stop_token_ids.0"),
        ("finetune.json", {"stop_token_ids": [1] * 65}, "finetune.json: stop_token_ids"),
        ("finetune.json", {"adapter_digest": "../../etc"}, "finetune.json: adapter_digest"),
        ("finetune.json", {"max_length": None}, "finetune.json: max_length"),
        ("reference.json", {"probes": []}, "reference.json: probes"),
        ("reference.json", {"probes": [{"prompt_ids": [1], "completion_ids": ["a"]}]}, "reference.json: probes.0"),
        ("reference.json", {"served_as": {"float32": {}}}, "reference.json: served_as.float32"),
        (
            "reference.json",
            {"probes": [{"prompt_ids": [1], "completion_ids": [1]}]},
            "does not have a log-probability for every token",
        ),
    ],
)
def test_what_others_wrote_into_a_version_is_refused_in_one_message(tmp_path, registry, file, change, said):
    number = registry.make("broken", seed=1)
    path = registry.artifacts("broken", number) / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ServingError, match=f"^broken/{number}: .*{re.escape(said)}.*fix:"):
        Fetcher(registry.client, AdapterStore(tmp_path / "store")).fetch("broken", number)


def test_noise_in_a_reference_is_a_finite_number(tmp_path, registry):
    number = registry.make("noisy", seed=1)
    path = registry.artifacts("noisy", number) / "reference.json"
    reference = json.loads(path.read_text())
    for noise in (float("inf"), float("nan"), -1.0):
        reference["served_as"]["float32"]["noise"] = noise
        path.write_text(json.dumps(reference))
        with pytest.raises(ServingError, match=r"reference\.json: served_as\.float32\.noise: .*fix:"):
            Fetcher(registry.client, AdapterStore(tmp_path / "store")).fetch("noisy", number)


@pytest.mark.parametrize("file", ["finetune.json", "reference.json", "tokenizer/tokenizer_config.json"])
def test_deeply_nested_json_is_a_refusal(tmp_path, registry, file):
    number = registry.make("nested", seed=1)
    path = registry.artifacts("nested", number) / file
    path.write_text('{"a": ' + "[" * 200_000 + "]" * 200_000 + "}")
    with pytest.raises(ServingError, match=f"^nested/{number}: {re.escape(path.name)} cannot be read: .*fix:"):
        Fetcher(registry.client, AdapterStore(tmp_path / "store")).fetch("nested", number)
