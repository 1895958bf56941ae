"""Arrow and Parquet as datasets writes them, saved folders, and the hub's cache, all with the real library, offline."""

import datasets
import pytest

from mlflow_finetune_plugin.data.conversations.layouts import detect_layout
from mlflow_finetune_plugin.data.sources.arrow_files import hub_rows
from mlflow_finetune_plugin.data.sources.locations import hub_dataset
from mlflow_finetune_plugin.data.sources.rows import peek, read_rows
from mlflow_finetune_plugin.errors import DataError

ROWS = [{"text": f"text {i}", "label": i % 2} for i in range(2500)]


@pytest.fixture
def labelled():
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    return datasets.Dataset.from_list(ROWS, features=features)


def check(path):
    rows = list(read_rows(path))
    assert len(rows) == 2500
    assert rows[0] == (1, {"text": "text 0", "label": "no"})
    assert rows[2499] == (2500, {"text": "text 2499", "label": "yes"})
    assert str(detect_layout([row for _, row in peek(path)])) == "label: text -> label"


def test_saved_folder_and_the_arrow_file_in_it(tmp_path, labelled):
    labelled.save_to_disk(tmp_path / "saved", num_shards=2)
    check(tmp_path / "saved")
    first = next((tmp_path / "saved").glob("*-00000-of-00002.arrow"))
    assert len(list(read_rows(first))) == 1250


def test_parquet_that_datasets_wrote_keeps_its_label_names(tmp_path, labelled):
    labelled.to_parquet(tmp_path / "a.parquet")
    check(tmp_path / "a.parquet")


def test_arrow_file_with_footer(tmp_path):
    import pyarrow as pa

    table = pa.Table.from_pylist([{"a": 1}, {"a": None}])
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert list(read_rows(tmp_path / "a.arrow")) == [(1, {"a": 1}), (2, {"a": None})]


def test_missing_label_is_no_label(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    datasets.Dataset.from_list([{"text": "t", "label": -1}], features=features).save_to_disk(tmp_path / "saved")
    assert list(read_rows(tmp_path / "saved")) == [(1, {"text": "t", "label": None})]


def test_folder_of_several_splits_names_each(tmp_path, labelled):
    datasets.DatasetDict({"train": labelled, "test": labelled}).save_to_disk(tmp_path / "both")
    with pytest.raises(DataError, match=r"holds 2 saved splits; fix: name one of them: .*both/train, .*both/test"):
        read_rows(tmp_path / "both")
    check(tmp_path / "both" / "train")


def test_damaged_files_raise_with_the_fix(tmp_path, labelled):
    labelled.save_to_disk(tmp_path / "saved")
    (shard,) = (tmp_path / "saved").glob("*.arrow")
    shard.write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(DataError, match="not a valid Arrow file"):
        list(read_rows(tmp_path / "saved"))
    shard.unlink()
    with pytest.raises(DataError, match=r"files are missing: .*; fix: copy the whole folder again"):
        read_rows(tmp_path / "saved")


@pytest.fixture
def cache(tmp_path, monkeypatch, labelled):
    """The cache of datasets as a download of ours/labels leaves it, with the hub out of reach."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    folder = tmp_path / "ours___labels" / "default" / "0.0.0" / "0123456789abcdef"
    folder.mkdir(parents=True)
    with datasets.arrow_writer.ArrowWriter(
        features=labelled.features, path=str(folder / "labels-train.arrow")
    ) as writer:
        for row in labelled:
            writer.write(row)
        writer.finalize()
    info = datasets.DatasetInfo(
        features=labelled.features, builder_name="labels", dataset_name="labels", config_name="default"
    )
    info.version = datasets.Version("0.0.0")
    info.splits = datasets.SplitDict()
    info.splits.add(datasets.SplitInfo("train", num_bytes=1, num_examples=len(labelled), dataset_name="labels"))
    info.write_to_directory(str(folder))
    return folder


def test_data_set_of_the_hub_is_read_from_the_cache_when_offline(cache):
    check("hf:ours/labels:train")
    assert len(list(read_rows("hf:ours/labels:train[:10]"))) == 10


def test_missing_split_or_name_raises_with_the_fix(cache):
    with pytest.raises(
        DataError, match=r"hf:ours/labels: cannot load split 'test' \(offline mode, HF_HUB_OFFLINE .* fix: check name"
    ):
        list(hub_rows(hub_dataset("hf:ours/labels:test")))
    with pytest.raises(DataError, match=r"hf:ours/nothing: cannot load split 'train' .* keep its cache"):
        list(read_rows("hf:ours/nothing"))
