"""Pictures are counted by side, and held-out ones that look like one to train on are a finding."""

import io

import pytest
from PIL import Image

from mlflow_finetune_plugin.data.report.contents import PictureReport
from mlflow_finetune_plugin.data.report.pictures import COPIED_PICTURES, PictureTally
from mlflow_finetune_plugin.images import Picture, PictureStore


@pytest.fixture
def store(tmp_path):
    return PictureStore(tmp_path / "pictures")


@pytest.fixture
def sizes():
    return {}


@pytest.fixture
def add(store, sizes):
    """Store a picture that is dark on one side, and return its name."""

    def added(dark, size=(40, 30), kind="PNG"):
        picture = Image.new("RGB", size, (230, 230, 230))
        width, height = size
        picture.paste((20, 20, 20), {"left": (0, 0, width // 2, height), "top": (0, 0, width, height // 2)}[dark])
        stream = io.BytesIO()
        picture.save(stream, kind)
        read = Picture.of(stream.getvalue())
        sizes[read.sha256] = (read.width, read.height)
        return store.add(read)

    return added


def test_nothing_is_reported_without_pictures(store, sizes):
    tally = PictureTally(store, sizes, 7)
    tally.note([], "a line 1", is_held_out=False)
    assert tally.report() is None
    assert tally.findings() == []


def test_rows_pictures_and_sizes_are_counted_by_hand(store, sizes, add):
    tally = PictureTally(store, sizes, 7)
    left, top = add("left"), add("top", (20, 60))
    tally.note([left, top], "a line 1", is_held_out=False)
    tally.note([left], "a line 2", is_held_out=False)
    tally.note([top], "b line 1", is_held_out=True)
    assert tally.report() == PictureReport(3, 4, 2, (20, 30), (40, 60), 0)
    assert str(PictureReport(1, 1, 1, (8, 8), (8, 8), 64)) == (
        "1 picture in 1 row, 1 distinct, 8 x 8 pixels, 64 tokens of pictures per row"
    )


def test_a_copy_in_another_size_and_format_leaks(store, sizes, add):
    tally = PictureTally(store, sizes, 7)
    left, copy, top = add("left"), add("left", (80, 60), "JPEG"), add("top")
    tally.note([left], "a line 5", is_held_out=False)
    tally.note([top, copy], "b line 2", is_held_out=True)
    tally.note([top], "b line 3", is_held_out=True)
    (leak,) = tally.findings()
    assert (leak.count, leak.places, leak.is_warning) == (1, ("b line 2",), True)
    assert leak.example == f"b line 2: picture 80 x 60, {copy[:12]} | a line 5: picture 40 x 30, {left[:12]}"
    assert str(leak).startswith("1 of 2 held-out rows with pictures shows a picture that looks like one to train on")


@pytest.mark.parametrize(("is_held_out", "checks"), [(True, []), (False, [COPIED_PICTURES])])
def test_copies_on_one_side_do_not_leak(store, sizes, add, is_held_out, checks):
    tally = PictureTally(store, sizes, 7)
    for position, name in (("a line 1", add("left")), ("a line 2", add("left", (80, 60)))):
        tally.note([name], position, is_held_out=is_held_out)
    assert [finding.check for finding in tally.findings()] == checks
