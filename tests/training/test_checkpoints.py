"""A checkpoint counts when every byte is what was saved, and is passed over with its name when not."""

import pytest

from mlflow_finetune_plugin.training.checkpoints import (
    TornCheckpointError,
    in_folder,
    newest_whole,
    opened,
    remove_old,
    seal,
    step_of,
)


def sealed(root, step):
    draft = root / "draft"
    (draft / "best").mkdir(parents=True)
    (draft / "weights").write_bytes(b"w" * step)
    (draft / "best" / "weights").write_bytes(b"b")
    return seal(draft, root / "checkpoints" / f"checkpoint-{step}", step=step, fingerprint={"seed": 1})


def test_sealed_checkpoint_opens_with_its_step_and_fingerprint(tmp_path):
    folder = sealed(tmp_path, 7).folder
    assert not (tmp_path / "draft").exists()
    found = opened(folder)
    assert (found.folder, found.step, found.fingerprint) == (folder, 7, {"seed": 1})


@pytest.mark.fault
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "weights").write_bytes(b"other"), "weights has changed since it was saved"),
        (lambda folder: (folder / "weights").write_bytes(b"w" * 6), "weights has changed since it was saved"),
        (lambda folder: (folder / "best" / "weights").unlink(), "weights is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda folder: (folder / "manifest.json").write_text('{"step": 7, "fil'), "JSONDecodeError"),
    ],
)
def test_torn_checkpoint_is_passed_over_by_name(tmp_path, damage, said):
    older, newer = sealed(tmp_path, 3), sealed(tmp_path, 7)
    damage(newer.folder)
    with pytest.raises(TornCheckpointError, match=said):
        opened(newer.folder)
    told: list[str] = []
    found = newest_whole(in_folder(tmp_path / "checkpoints"), told.append)
    assert found is not None
    assert found.folder == older.folder
    assert len(told) == 1
    assert str(newer.folder) in told[0]


def test_nothing_whole_is_none(tmp_path):
    assert newest_whole(in_folder(tmp_path / "checkpoints"), pytest.fail) is None


def test_the_newest_stay(tmp_path):
    for step in (9, 10, 100):
        sealed(tmp_path, step)
    remove_old(tmp_path / "checkpoints", limit=2)
    assert sorted(map(step_of, in_folder(tmp_path / "checkpoints"))) == [10, 100]


def test_a_step_that_is_made_again_replaces_its_checkpoint(tmp_path):
    first = sealed(tmp_path, 4)
    (first.folder / "weights").write_bytes(b"")
    assert opened(sealed(tmp_path, 4).folder).step == 4
