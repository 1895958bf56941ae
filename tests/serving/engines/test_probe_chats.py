"""Probes of a version as an engine is asked about them."""

import base64

from shown_pictures import BLUE, RED, picture

from mlflow_finetune_plugin.images import Picture
from mlflow_finetune_plugin.images.store import PicturesInMemory
from mlflow_finetune_plugin.images.turns import MARK
from mlflow_finetune_plugin.serving.engines.probe_chats import ProbeChats


def test_a_probe_has_the_pixels_of_its_pictures_in_their_places():
    shapes = [picture(RED), picture(BLUE, kind="JPEG")]
    pictures = {shape.sha256: PicturesInMemory.encoded(shape) for shape in shapes}
    probe = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"A{MARK}b{MARK}", "pictures": [shape.sha256 for shape in shapes]},
        ]
    }
    chats = ProbeChats({"probes": [probe], "pictures": pictures})
    system, user = chats.messages(probe)
    assert system == {"role": "system", "content": "Be brief."}
    assert [part["type"] for part in user["content"]] == ["text", "image_url", "text", "image_url"]
    urls = [part["image_url"]["url"] for part in user["content"] if part["type"] == "image_url"]
    for url, shape in zip(urls, shapes, strict=True):
        sent = Picture.of(base64.b64decode(url.removeprefix("data:image/png;base64,")))
        assert sent.pixels().tobytes() == shape.pixels().tobytes()
    assert chats.pictures([probe, {"prompt_ids": [1]}]) == {"pictures": [urls, []]}


def test_a_reference_without_pictures_asks_as_before():
    probe = {"messages": [{"role": "user", "content": "a"}]}
    chats = ProbeChats({"probes": [probe]})
    assert chats.messages(probe) == probe["messages"]
    assert chats.pictures([probe]) == {}
