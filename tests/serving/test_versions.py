"""What the registry says of a version is believed for a while, and asked again after it."""

import pytest

from mlflow_finetune_plugin.errors import ServingError
from mlflow_finetune_plugin.serving.store import AdapterStore
from mlflow_finetune_plugin.serving.versions import Fetcher


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
