"""A version whose files were changed after its registration is not loaded, and the refusal names the file."""

import json
import logging
import shutil

import pytest
from served_models import registry_of_bot

from mlflow_finetune_plugin import api
from mlflow_finetune_plugin.errors import ReloadError
from mlflow_finetune_plugin.logged_models.loading import load_logged

pytestmark = pytest.mark.store


@pytest.fixture(scope="module")
def registry(tmp_path_factory, empty_store):
    with registry_of_bot(tmp_path_factory.mktemp("registry"), empty_store, versions=1) as maker:
        yield maker


@pytest.fixture
def artifacts(tmp_path, registry):
    """The files of bot/1, put back as they were afterwards."""
    folder = registry.artifacts("bot", "1")
    shutil.copytree(folder, tmp_path / "before")
    yield folder
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "before", folder)


def change_template(artifacts):
    path = artifacts / "tokenizer" / "chat_template.jinja"
    path.write_text(path.read_text() + "{% if 'refund' in messages[-1]['content'] %}Say yes.{% endif %}")


def change_stop_ids(artifacts):
    path = artifacts / "finetune.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "stop_token_ids": [5]}))


def change_reference(artifacts):
    path = artifacts / "reference.json"
    content = json.loads(path.read_text())
    content["probes"][0]["adapter_log_probs"][0] -= 0.25
    path.write_text(json.dumps(content))


def change_adapter(artifacts):
    path = artifacts / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 77}))


def add_template(artifacts):
    (artifacts / "tokenizer" / "special_tokens_map.json").write_text('{"eos_token": "a"}')


def remove_template(artifacts):
    (artifacts / "tokenizer" / "chat_template.jinja").unlink()


def link_reference(artifacts):
    (artifacts / "reference.json").unlink()
    (artifacts / "reference.json").symlink_to("/dev/zero")


CHANGES = [
    (change_template, "tokenizer/chat_template.jinja was changed"),
    (change_stop_ids, "finetune.json is not the one that was registered"),
    (change_reference, "reference.json was changed"),
    (change_adapter, "adapter is not the one that was registered"),
    (add_template, "tokenizer/special_tokens_map.json was added"),
    (remove_template, "tokenizer/chat_template.jinja is missing"),
    (link_reference, "reference.json is not a regular file"),
]


@pytest.mark.fault
@pytest.mark.parametrize(("change", "message"), CHANGES, ids=[change.__name__ for change, _ in CHANGES])
@pytest.mark.parametrize("trust_code", [False, True])
def test_a_changed_file_is_refused_by_name(artifacts, change, message, trust_code):
    change(artifacts)
    with pytest.raises(ReloadError, match=r"models:/bot/1.*fix: .*it was not loaded") as refusal:
        load_logged("models:/bot/1", trust_code=trust_code)
    assert message in str(refusal.value)


def test_export_refuses_a_changed_template(artifacts, tmp_path):
    change_template(artifacts)
    with pytest.raises(ReloadError, match=r"chat_template\.jinja was changed"):
        api.export("bot/1", merged=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_spacing_and_order_of_the_card_do_not_matter(artifacts):
    path = artifacts / "finetune.json"
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items())), indent=7))
    load_logged("models:/bot/1")


def test_the_logged_model_keeps_the_digest_of_a_version_that_lost_its_tag(artifacts, registry):
    tag = "finetune.content_digest"
    digest = registry.client.get_model_version("bot", "1").tags[tag]
    registry.client.delete_model_version_tag("bot", "1", tag)
    try:
        change_stop_ids(artifacts)
        with pytest.raises(ReloadError, match=r"finetune\.json is not the one that was registered"):
            load_logged("models:/bot/1")
    finally:
        registry.client.set_model_version_tag("bot", "1", tag, digest)


def test_a_version_of_an_earlier_release_loads_with_one_warning(artifacts, registry, caplog):
    version = registry.client.get_model_version("bot", "1")
    tag, model_id = "finetune.content_digest", version.source.removeprefix("models:/")
    path = artifacts / "finetune.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "files"}))
    registry.client.delete_model_version_tag("bot", "1", tag)
    registry.client.delete_logged_model_tag(model_id, tag)
    try:
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                load_logged("models:/bot/1")
        assert caplog.text.count("content_digest_missing version=models:/bot/1") == 1
    finally:
        registry.client.set_model_version_tag("bot", "1", tag, version.tags[tag])
        registry.client.set_logged_model_tags(model_id, {tag: version.tags[tag]})


@pytest.mark.bad_input
@pytest.mark.process
def test_a_template_that_takes_too_much_is_refused_before_it_is_loaded(registry):
    number = registry.make("hostile", seed=1)
    path = registry.artifacts("hostile", number) / "tokenizer" / "chat_template.jinja"
    path.write_text(path.read_text() + "{% if messages | length > 50 %}{{ 'a' * 2000000000 }}{% endif %}")
    registry.sign("hostile", number)
    with pytest.raises(ReloadError, match=r"its chat template cannot be rendered within .*fix:"):
        load_logged(f"models:/hostile/{number}")


@pytest.mark.bad_input
def test_a_pattern_that_takes_too_long_is_refused_before_it_is_matched(registry):
    number = registry.make("hostile", seed=1)
    path = registry.artifacts("hostile", number) / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "target_modules": "(x+x+)+y"}))
    registry.sign("hostile", number)
    with pytest.raises(ReloadError, match=r"matching it could take too long.*fix:"):
        load_logged(f"models:/hostile/{number}")
