"""Pictures in a folder and in memory, under the hash of their bytes."""

import pytest
from seeing_bases import drawn

from mlflow_finetune_plugin.images import PictureFault, PictureStore
from mlflow_finetune_plugin.images.store import PicturesInMemory


def test_a_picture_of_many_rows_is_one_file(tmp_path):
    store = PictureStore(tmp_path / "pictures")
    names = {store.add(drawn(1)), store.add(drawn(1)), store.add(drawn(2))}
    assert {path.name for path in store.folder.iterdir()} == names
    assert store.get(drawn(2).sha256) == drawn(2)


def test_memory_returns_the_same_picture():
    picture = drawn(3)
    store = PicturesInMemory({picture.sha256: PicturesInMemory.encoded(picture)})
    assert store.get(picture.sha256) == picture


@pytest.mark.bad_input
def test_a_file_that_became_no_picture_is_a_fault(tmp_path):
    store = PictureStore(tmp_path)
    name = store.add(drawn(1))
    (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(PictureFault):
        store.get(name)
