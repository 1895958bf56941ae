"""Rows with pictures become training examples and held-out rows of a base that sees."""

import base64
import io
import json
import random
import re
import struct
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_requests import jsonl, request
from PIL import Image, ImageDraw

import mlflow_finetune_plugin
from mlflow_finetune_plugin.data import DataFile, DataReport, prepare
from mlflow_finetune_plugin.data.report import UnusableDataError, report_page, report_text
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.images import Picture, PictureInputs, PictureStore

BASE = Path(mlflow_finetune_plugin.__file__).parent / "embedded_vision_base"
TOKENS = 64
MARK = "\ufffc"


def drawn(number, size=(48, 40), kind="PNG", **options):
    """Draw a picture that looks like no other, and return the bytes of its file."""
    rng = random.Random(number)
    picture = Image.new("RGB", size, (140, 140, 140))
    brush = ImageDraw.Draw(picture)
    for _ in range(6):
        left, top = rng.randrange(size[0]), rng.randrange(size[1])
        colour = tuple(rng.randrange(256) for _ in range(3))
        brush.rectangle((left, top, left + rng.randrange(4, size[0]), top + rng.randrange(4, size[1])), fill=colour)
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def data_url(content):
    return "data:image/png;base64," + base64.b64encode(content).decode()


@pytest.fixture(scope="module")
def seeing():
    """The renderer of the embedded base that sees."""
    inputs = PictureInputs.load(BASE)
    return ChatRenderer(inputs.processor.tokenizer, weights=BASE, pictures=inputs)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(12):
        (tmp_path / "images" / f"{number}.png").write_bytes(drawn(number))
    return tmp_path


def rows(count, start=0):
    return [
        {"image": f"images/{number}.png", "prompt": "What colour is it?", "completion": "red" if number % 2 else "blue"}
        for number in range(start, start + count)
    ]


def prepared(folder, train, renderer, held_out=None, **options):
    path = train if isinstance(train, Path) else jsonl(folder / "train.jsonl", train)
    held_out = held_out or [{"prompt": "Say blue.", "completion": "blue"}]
    files = (DataFile(jsonl(folder / "eval.jsonl", held_out), "task"),)
    return prepare(request(path, files, **options), renderer, folder / "out")


def test_rows_with_pictures_become_tokens_and_held_out_prompts(folder, seeing):
    text = [{"prompt": "Say red.", "completion": "red"}]
    result = prepared(folder, [*rows(3), *text], seeing, rows(2, start=8))
    token = seeing.pictures.image_token_id
    assert [ids.count(token) for ids in result.train["input_ids"]] == [TOKENS, TOKENS, TOKENS, 0]
    names = [Picture.of(drawn(number)).sha256 for number in (0, 1, 2, 8, 9)]
    assert result.train["pictures"] == [[names[0]], [names[1]], [names[2]], []]
    assert result.eval_rows[0].messages == (
        {"role": "user", "content": f"{MARK}What colour is it?", "pictures": [names[3]]},
    )
    assert result.eval_rows[1].prompt_ids.names == (names[4],)
    assert sorted(path.name for path in (folder / "out" / "pictures").iterdir()) == sorted(names)
    assert PictureStore(folder / "out" / "pictures").get(names[0]).content == drawn(0)


def test_the_report_counts_pictures_and_embeds_none(folder, seeing):
    (folder / "images" / "tall.jpg").write_bytes(drawn(99, (30, 90), "JPEG"))
    two = {"images": ["images/0.png", "images/tall.jpg"], "prompt": "Which colour?", "completion": "red"}
    report = prepared(folder, [*rows(3), two], seeing, rows(1, start=8)).report
    counts = "6 pictures in 5 rows, 5 distinct, 30 x 40 to 48 x 90 pixels, 77 tokens of pictures per row"
    assert str(report.pictures) == counts
    assert f"images {counts}" in report_text(report)
    page = report_page(report)
    assert counts in page
    first = f"[picture 48 x 40, {Picture.of(drawn(0)).sha256[:12]}]"
    for shown in (report_text(report), page):
        assert first in shown
        assert "<image>" not in shown
        assert "&lt;image&gt;" not in shown
        assert "data:image" not in shown
    assert DataReport.from_json(json.dumps(report.to_json())).pictures == report.pictures
    assert prepared(folder, [{"prompt": "a", "completion": "b"}], seeing).report.pictures is None


def test_a_held_out_picture_that_looks_like_one_to_train_on_is_a_warning(folder, seeing):
    small = Image.open(io.BytesIO(drawn(1))).resize((36, 30))
    small.save(folder / "images" / "small.jpg", quality=90)
    held_out = [{**rows(1)[0], "image": "images/small.jpg", "prompt": "Where?"}, rows(1, start=9)[0]]
    report = prepared(folder, rows(3), seeing, held_out).report
    (leak,) = [finding for finding in report.findings if finding.check == "eval pictures in train"]
    assert (leak.count, leak.places) == (1, ("eval.jsonl line 1",))
    name = Picture.of((folder / "images" / "small.jpg").read_bytes()).sha256[:12]
    assert leak.example == (
        f"eval.jsonl line 1: picture 36 x 30, {name} | train.jsonl line 2: picture 48 x 40, "
        f"{Picture.of(drawn(1)).sha256[:12]}"
    )
    assert "1 of 2 held-out rows with pictures shows a picture that looks like one to train on" in report_text(report)
    assert not [f for f in prepared(folder, rows(3), seeing, rows(2, start=8)).report.findings if "picture" in f.check]


def test_pictures_to_train_on_that_look_alike_in_other_files_are_a_warning(folder, seeing):
    small = Image.open(io.BytesIO(drawn(1))).resize((36, 30))
    small.save(folder / "images" / "small.jpg", quality=90)
    copied = [*rows(3), rows(1)[0], {**rows(1)[0], "image": "images/small.jpg"}]
    report = prepared(folder, copied, seeing, rows(2, start=8)).report
    (copy,) = [finding for finding in report.findings if finding.check == "pictures in train twice"]
    assert (copy.count, copy.places) == (1, ("train.jsonl line 5",))
    name = Picture.of((folder / "images" / "small.jpg").read_bytes()).sha256[:12]
    assert copy.example.startswith(f"train.jsonl line 5: picture 36 x 30, {name} | train.jsonl line 2: picture 48 x 40")
    assert "1 of 4 pictures to train on looks like an earlier one in another file" in report_text(report)


def test_equal_questions_differ_by_their_pictures(folder, seeing):
    other = {**rows(1)[0], "completion": "red"}
    report = prepared(folder, [*rows(3), rows(1)[0], other], seeing, [rows(2)[1]]).report
    assert (report.duplicates, report.contradictions, report.leaked_rows, report.leaked_prompts) == (1, 1, 1, 1)


def test_rows_of_equal_pictures_are_held_out_together(folder, seeing):
    twice = [row for row in rows(10) for _ in range(2)]
    result = prepare(request(jsonl(folder / "train.jsonl", twice), 0.2), seeing, folder / "out")
    held_out = {row.messages[0]["pictures"][0] for row in result.eval_rows}
    assert held_out
    assert not held_out & {name for names in result.train["pictures"] for name in names}


@pytest.mark.parametrize("kind", ["path", "data URL", "struct"])
def test_the_rows_of_a_picture_stay_on_one_side_if_it_is_their_group(folder, seeing, kind):
    images = {
        "path": [f"images/{number}.png" for number in range(6)],
        "data URL": [data_url(drawn(number)) for number in range(6)],
        "struct": [{"bytes": drawn(number), "path": None} for number in range(6)],
    }[kind]
    questions = [(image, question) for image in images for question in ("Which?", "Where?", "What?")]
    table = {
        "image": [image for image, _ in questions],
        "prompt": [question for _, question in questions],
        "completion": ["red"] * len(questions),
    }
    pq.write_table(pa.table(table), folder / "train.parquet")
    result = prepare(request(folder / "train.parquet", 0.34, group="image"), seeing, folder / "out")
    assert result.report.eval_rows == 6
    assert "eval pictures in train" not in [finding.check for finding in result.report.findings]
    assert max(len(row.group) for row in result.eval_rows) < 100


def test_the_mark_of_a_picture_is_not_an_odd_character(folder, seeing):
    report = prepared(folder, rows(3), seeing, rows(1, start=8)).report
    assert not {finding.check for finding in report.findings} & {
        "replacement character",
        "unknown characters",
        "mojibake",
    }


def test_a_camera_that_was_turned_gives_the_upright_size(folder, seeing):
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "images" / "0.png").write_bytes(drawn(0, kind="JPEG", exif=exif))
    report = prepared(folder, rows(1), seeing).report
    assert (report.pictures.smallest, report.pictures.largest) == ((40, 48), (40, 48))


@pytest.mark.parametrize("kind", ["csv", "metadata", "parquet", "urls"])
def test_each_kind_of_file_gives_the_same_pictures(folder, seeing, kind):
    if kind == "csv":
        path = folder / "train.csv"
        path.write_text("image_path,text,label\nimages/3.png,Which?,red\nimages/4.png,Which?,blue\n")
    elif kind == "metadata":  # as the imagefolder of datasets has it
        path = folder / "images" / "metadata.csv"
        path.write_text("file_name,prompt,completion\n3.png,Which?,red\n4.png,Which?,blue\n")
    elif kind == "parquet":
        path = folder / "train.parquet"
        images = [{"bytes": drawn(3), "path": "x.png"}, {"bytes": None, "path": "images/4.png"}]
        pq.write_table(pa.table({"image": images, "prompt": ["Which?"] * 2, "completion": ["red", "blue"]}), path)
    else:
        parts = [
            [{"type": "image_url", "image_url": {"url": data_url(drawn(n))}}, {"type": "text", "text": "?"}]
            for n in (3, 4)
        ]
        turns = [[{"role": "user", "content": part}, {"role": "assistant", "content": "red"}] for part in parts]
        path = jsonl(folder / "train.jsonl", [{"messages": messages} for messages in turns])
    names = [[Picture.of(drawn(number)).sha256] for number in (3, 4)]
    assert prepared(folder, path, seeing).train["pictures"] == names


# what cannot be used -------------------------------------------------------------------------------------------------


def bomb():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("image", "reason", "detail"),
    [
        ("images/none.png", "missing picture", "images/none.png: no such file"),
        ("https://example.com/a.png", "picture behind a link", "allow its host in data.picture_hosts"),
        (data_url(bomb()), "picture too large", "40,000,000 pixels; at most"),
        ("data:image/png;base64,%%%", "unreadable picture", "its base64 text is not valid"),
        (data_url(drawn(3)[:100]), "unreadable picture", "Error: "),
        (data_url(b"<svg/>"), "unreadable picture", "not a picture in one of the formats"),
        (["images/0.png"] * 17, "too many pictures", "17 pictures; at most 16 of a row are read"),
        ([None, "images/0.png"], "missing picture", "NoneType is not a path"),
        (7, "missing picture", "int is not a path"),
    ],
)
def test_a_row_with_a_picture_that_cannot_be_used_is_left_out(folder, seeing, image, reason, detail):
    report = prepared(folder, [*rows(2), {**rows(1)[0], "image": image}], seeing).report
    (skip,) = report.files[0].skipped
    assert (skip.reason, skip.rows, skip.lines) == (reason, 1, (3,))
    assert detail in skip.detail
    assert (report.train_rows, report.pictures.rows) == (2, 2)
    assert f"1 {reason}" in report_text(report)
    assert not re.search(r"base64,[A-Za-z0-9+/%]", skip.example)


@pytest.mark.bad_input
def test_a_base_that_takes_no_pictures_leaves_such_rows_out_and_names_both_fixes(folder, renderer):
    text = [{"prompt": "Say red.", "completion": "red"}]
    report = prepared(folder, [*rows(2), *text], renderer).report
    (skip,) = report.files[0].skipped
    assert (skip.reason, skip.rows) == ("unsupported field", 2)
    assert skip.detail == (
        "pictures, and this base takes none; fix: use a base that does, or data.ignore: [images] trains without them"
    )
    assert not (folder / "out" / "pictures").exists()
    with pytest.raises(UnusableDataError, match="no usable row to train on"):
        prepared(folder, rows(2), renderer)
    assert prepared(folder, rows(2), renderer, ignore=("images",)).report.train_rows == 2


@pytest.mark.bad_input
def test_votes_name_no_files(folder, seeing):
    copy = jsonl(folder / "votes.jsonl", [*rows(1), {**rows(1)[0], "image": data_url(drawn(0))}])
    file = DataFile(Path("votes:judge"), "task", copy=copy)
    held_out = (DataFile(jsonl(folder / "eval.jsonl", rows(1, start=8)), "task"),)
    report = prepare(request((file,), held_out), seeing, folder / "out").report
    (skip,) = report.files[0].skipped
    assert (skip.reason, skip.lines) == ("unreadable picture", (1,))
    assert report.train_rows == 1
