"""Versions that must not serve: broken on purpose, each told in its own words, in the precision of training and in another."""

from __future__ import annotations

import shutil

import pytest
from serving_process import ask, serving, start_serving, wait_until

pytestmark = pytest.mark.process

ENGINE = ("--engine", "transformers", "--poll", "0.2")

SEEDED_FAULTS = {
    "corrupt": "not a valid safetensors file",
    "pickled": "are missing or do not belong there",
    "renamed": "20 weights are missing",
    "half": "it is not the adapter that was trained, or is incomplete",
    "swapped": "it is not the adapter that was trained, or is incomplete",
    "template": "the engine renders conversations differently",
    "system-turns": "the engine renders conversations differently: a system turn has other token ids",
    "unsigned": "tokenizer/chat_template.jinja was changed after the version was registered",
}


@pytest.mark.fault
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_seeded_faults_never_serve(tmp_path, registry, dtype):
    """Digests and card agree with the bad files, except one: it is the store or the certificate that has to see it."""
    model, both = f"faulty-{dtype}", {"precisions": ("float32", "bfloat16"), "max_gap": 10.0}
    good = registry.make(model, seed=1, **both)
    registry.client.set_registered_model_alias(model, "champion", good)
    registry.client.delete_registered_model_alias(model, "challenger")
    for fault in SEEDED_FAULTS:
        number = registry.make(model, seed=5, **both)
        _break(registry, number, fault, model=model, good=good)
        registry.client.set_registered_model_alias(model, fault, number)
    registry.client.delete_registered_model_alias(model, "challenger")
    service = start_serving(tmp_path, registry.uri, model, *ENGINE, "--dtype", dtype)

    def told():
        return {alias["alias"]: alias for alias in service.get("/readyz")[1]["aliases"]}

    try:
        service.wait_for("degraded")
        wait_until(lambda: all(told()[fault]["fault"] for fault in SEEDED_FAULTS))
        for fault, said in SEEDED_FAULTS.items():
            assert said in told()[fault]["fault"]
            assert told()[fault]["serves"] is None
            assert ask(service, f"{model}@{fault}").status_code == 503
        assert ask(service, f"{model}@champion").status_code == 200
    finally:
        service.end()


def test_a_precision_is_served_where_the_worker_has_told_of_it(tmp_path, registry):
    """In bfloat16: the version that was registered for it answers, one that was not is told, one that is off is refused."""
    (tmp_path / "again").mkdir()
    both = ("float32", "bfloat16")
    told = registry.make("half", seed=1, precisions=both, max_gap=10.0)
    untold = registry.make("half", seed=2)
    strict = registry.make("half", seed=3, precisions=both, max_gap=1e-6)
    registry.client.set_registered_model_alias("half", "champion", told)
    registry.client.delete_registered_model_alias("half", "challenger")
    with serving(tmp_path, registry.uri, "half", "--engine", "transformers", "--dtype", "bfloat16") as service:
        assert ask(service, "half@champion").status_code == 200
        registry.client.set_registered_model_alias("half", "untold", untold)
        registry.client.set_registered_model_alias("half", "challenger", strict)
        faults = lambda: {a["alias"]: a["fault"] for a in service.get("/readyz")[1]["aliases"]}  # noqa: E731
        said = wait_until(lambda: faults() if all(map(faults().get, ("untold", "challenger"))) else None)
        assert "its reference does not cover serving in bfloat16, but in float32" in said["untold"]
        assert "in bfloat16 the adapter differs too much from its training" in said["challenger"]
        assert ask(service, "half@challenger").status_code == 503
        tag = "finetune.certificate.transformers.bfloat16"
        found = wait_until(lambda: registry.client.get_model_version("half", told).tags.get(tag))
        assert found.startswith("passed (transformers, ")
    with serving(tmp_path / "again", registry.uri, "half", "--engine", "transformers") as service:
        assert ask(service, "half@challenger").status_code == 200, "in training's own precision nothing is off"


def _break(registry, number: str, fault: str, *, model: str, good: str) -> None:
    from safetensors.torch import load_file, save_file

    adapter = registry.artifacts(model, number) / "adapter"
    weights = adapter / "adapter_model.safetensors"
    tensors = load_file(weights)
    if fault == "corrupt":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif fault == "pickled":
        weights.rename(adapter / "adapter_model.bin")
    elif fault == "renamed":
        save_file({name.replace("layers.", "layerz."): tensor for name, tensor in tensors.items()}, weights)
    elif fault == "half":
        save_file({n: t * 0 if ".layers.1." in n or ".layers.2." in n else t for n, t in tensors.items()}, weights)
    elif fault in ("template", "unsigned"):
        template = registry.artifacts(model, number) / "tokenizer" / "chat_template.jinja"
        other = template.read_text().replace("message['role']", "message['role'] + ':'")
        assert other != template.read_text()
        template.write_text(other)
    elif fault == "system-turns":
        template = registry.artifacts(model, number) / "tokenizer" / "chat_template.jinja"
        template.write_text(template.read_text() + "{% if messages[0]['role'] == 'system' %}!{% endif %}")
    elif fault == "swapped":
        shutil.copy(registry.artifacts(model, good) / "adapter" / "adapter_model.safetensors", weights)
    if fault != "unsigned":
        registry.sign(model, number)
