import datetime
import gzip
import json
import subprocess
import sys
import zipfile

import pyarrow as pa
import pytest

from mlflow_finetune_plugin.data.sources.rows import peek, read_rows
from mlflow_finetune_plugin.errors import DataError, MissingExtraError


def zstd(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def fault(path):
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    return str(caught.value)


# what is read --------------------------------------------------------------------------------------------------------


def test_jsonl_rows_carry_their_line_and_blank_lines_are_no_rows(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"a": 1}\n\n  \r\n{"a": 2}\r\n{"a": 3}')
    assert list(read_rows(path)) == [(1, {"a": 1}), (4, {"a": 2}), (5, {"a": 3})]


def test_ndjson_is_jsonl(tmp_path):
    assert list(read_rows(write(tmp_path, "a.NDJSON", '{"a": 1}\n'))) == [(1, {"a": 1})]


def test_json_list_rows_carry_the_line_they_start_on(tmp_path):
    path = write(tmp_path, "a.json", '[\n  {"a": 1,\n   "b": 2},\n  {"a": 3}\n]\n')
    assert list(read_rows(path)) == [(2, {"a": 1, "b": 2}), (4, {"a": 3})]


def test_json_object_gives_the_rows_of_its_data_key(tmp_path):
    path = write(tmp_path, "a.json", '{"version": [1],\n "data": [{"a": 1}, {"a": 2}],\n "more": {"x": []}}')
    assert list(read_rows(path)) == [(2, {"a": 1}), (3, {"a": 2})]


def test_json_rows_on_one_line_have_different_numbers(tmp_path):
    path = write(tmp_path, "a.json", json.dumps([{"a": 1}, {"a": 2}, {"a": 3}]))
    assert list(read_rows(path)) == [(1, {"a": 1}), (2, {"a": 2}), (3, {"a": 3})]
    path = write(tmp_path, "b.json", '[\n{"a": 1}, {"a": 2}, {"a": 3},\n\n\n{"a": 4}]')
    assert [number for number, _ in read_rows(path)] == [2, 3, 4, 5]


def test_json_object_of_numbered_rows(tmp_path):
    path = write(tmp_path, "a.json", '{"metadata": {"n": 2},\n "examples": {\n  "1": {"a": 1},\n  "2": {"a": 2}}}')
    assert list(read_rows(path)) == [(3, {"a": 1}), (4, {"a": 2})]


def test_csv_fields_over_several_lines_keep_the_line_of_their_start(tmp_path):
    path = write(tmp_path, "a.csv", 'text,label\n"one\ntwo, ""three""",x\n\nfour,y\n')
    assert list(read_rows(path)) == [
        (2, {"text": 'one\ntwo, "three"', "label": "x"}),
        (5, {"text": "four", "label": "y"}),
    ]


def test_csv_field_longer_than_the_csv_modules_limit(tmp_path):
    path = write(tmp_path, "a.csv", "text,label\n" + "a" * 300_000 + ",x\n")
    assert len(next(read_rows(path))[1]["text"]) == 300_000


def test_csv_keeps_the_unnamed_index_column_of_pandas(tmp_path):
    assert peek(write(tmp_path, "a.csv", ",text\n0,hello\n")) == [(2, {"": "0", "text": "hello"})]


@pytest.mark.parametrize(
    ("content", "line", "note"),
    [
        ("text;label\na, b;x\n", 2, ["the columns are separated by semicolons"]),
        ("text\tlabel\na, b\tx\n", 2, ["the columns are separated by tabs"]),
        ("sep=;\ntext;label\na, b;x\n", 3, ["the columns are separated by semicolons"]),
        ('\ufeffsep=,\r\ntext,label\r\n"a, b",x\r\n', 3, []),
        ('text,label\n"a, b",x\n', 2, []),
    ],
)
def test_csv_separators_are_detected_and_noted(tmp_path, content, line, note):
    notes = []
    assert list(read_rows(write(tmp_path, "a.csv", content), notes.append)) == [(line, {"text": "a, b", "label": "x"})]
    assert notes == note


@pytest.mark.parametrize(
    ("encoding", "note"),
    [
        ("utf-8", []),
        ("utf-16", ["the encoding is UTF-16"]),
        ("utf-16-le", ["the encoding is UTF-16-LE without a byte order mark"]),
        ("utf-16-be", ["the encoding is UTF-16-BE without a byte order mark"]),
        ("cp1252", ["the encoding is Windows-1252, because line 3 is not UTF-8"]),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_encodings_are_detected_and_noted(tmp_path, name, encoding, note):
    notes, content = [], "text,label\nplain,x\ncafé – “naïve”,€\n".encode(encoding)
    path = write(tmp_path, name, gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
    assert list(read_rows(path, notes.append)) == [
        (2, {"text": "plain", "label": "x"}),
        (3, {"text": "café – “naïve”", "label": "€"}),
    ]
    assert notes == note


def test_json_lines_may_be_utf16(tmp_path):
    assert peek(write(tmp_path, "a.jsonl", '{"a": "é"}\n{"a": "ü"}\n'.encode("utf-16"))) == [
        (1, {"a": "é"}),
        (2, {"a": "ü"}),
    ]


def test_tsv_separates_by_tabs(tmp_path):
    path = write(tmp_path, "a.tsv", "text\tlabel\na, b\tx\n")
    assert list(read_rows(path)) == [(2, {"text": "a, b", "label": "x"})]


def test_parquet_rows_are_numbered(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    rows = [{"messages": [{"role": "user", "content": "hi"}]}, {"messages": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert list(read_rows(tmp_path / "a.parquet")) == [(1, rows[0]), (2, rows[1])]


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl.gz", '{"a": "é"}\n'), ("a.json.gz", '[{"a": "é"}]'), ("a.csv.gz", "a\né\n"), ("a.tsv.gz", "a\né\n")],
)
def test_text_formats_are_read_through_gzip(tmp_path, name, content):
    path = write(tmp_path, name, gzip.compress(content.encode(), mtime=0))
    assert [row for _, row in read_rows(path)] == [{"a": "é"}]


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.CSV.ZST", "a.tsv.zst", "a.txt.zst"])
def test_text_formats_are_read_through_zstd(tmp_path, name):
    content = {"jsonl": '{"text": "é"}\n', "txt": "é\n"}.get(name.lower().split(".")[1], "text\né\n").encode()
    half = len(content) // 2
    path = write(tmp_path, name, zstd(content[:half]) + zstd(content[half:]))  # frames may follow each other
    assert [row for _, row in read_rows(path)] == [{"text": "é"}]


def sheet(path, *sheets):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.remove(book.active)
    for number, rows in enumerate(sheets, start=1):
        page = book.create_sheet(f"page {number}")
        for row in rows:
            page.append(row)
    book.save(path)
    return path


def test_xlsx_rows_are_those_of_the_first_sheet(tmp_path):
    day = datetime.datetime(2026, 11, 23, 12)
    rows = [[], ["text", "label", "day"], ["one\ntwo", 3, day], [], ["three", None, None, None], ["four", True]]
    notes = []
    path = sheet(tmp_path / "a.xlsx", rows, [["other"], ["x"]])
    assert list(read_rows(path, notes.append)) == [
        (3, {"text": "one\ntwo", "label": 3, "day": "2026-11-23T12:00:00"}),
        (5, {"text": "three", "label": None, "day": None}),
        (6, {"text": "four", "label": True, "day": None}),
    ]
    assert notes == ["the sheet 'page 1' is read, and no other (page 2)"]


def test_xlsx_faults_name_the_row_of_the_sheet(tmp_path):
    wide = fault(sheet(tmp_path / "a.xlsx", [["text", "label"], ["a", "b"], ["a", "b", "c"]]))
    assert "line 3: the row has 3 cells and the header 2 (text, label)" in wide
    assert "not a valid" not in wide
    assert "has the column 'text' 2 times" in fault(sheet(tmp_path / "b.xlsx", [["text", "text"], ["a", "b"]]))
    assert "has no rows" in fault(sheet(tmp_path / "c.xlsx", [["text", "label"]]))


def sheet_of_xml(path, xml):
    """An Excel file whose first sheet is this."""
    source = sheet(path.with_name("whole.xlsx"), [["text"], ["a"]])
    with zipfile.ZipFile(source) as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as changed:
        for name in whole.namelist():
            changed.writestr(name, xml if name == "xl/worksheets/sheet1.xml" else whole.read(name))
    return path


MAIN = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'


@pytest.mark.bad_input
@pytest.mark.timeout(120)
def test_a_far_cell_costs_no_more_than_its_own_row(tmp_path):
    cell = '<row r="{0}"><c r="{1}{0}" t="inlineStr"><is><t>{2}</t></is></c></row>'
    rows = cell.format(1, "A", "text") + cell.format(2, "A", "a") + cell.format(100_000, "XFD", "far")
    xml = f'<worksheet {MAIN}><dimension ref="A1:XFD1048576"/><sheetData>{rows}</sheetData></worksheet>'
    path = sheet_of_xml(tmp_path / "far.xlsx", xml)
    assert next(read_rows(path)) == (2, {"text": "a"})
    assert "line 100000: the row has 16384 cells and the header 1" in fault(path)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "xml",
    [
        "<a><b></a>",
        "no xml",
        '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
        + "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9))
        + f']><worksheet {MAIN}><sheetData><row r="1"><c r="A1" t="inlineStr"><is><t>&j;</t></is></c></row></sheetData></worksheet>',
    ],
    ids=["not closed", "no xml", "entities"],
)
def test_a_sheet_that_is_no_sheet_is_one_error(tmp_path, xml):
    assert "not a valid .xlsx file" in fault(sheet_of_xml(tmp_path / "a.xlsx", xml))


@pytest.mark.bad_input
def test_files_that_unpack_to_gigabytes_are_not_read_to_their_end(tmp_path, monkeypatch):
    for module in ("text_lines", "rows", "delimited"):
        monkeypatch.setattr(f"mlflow_finetune_plugin.data.sources.{module}.LONGEST_ROW_BYTES", 2**20)
    for module in ("rows", "spreadsheet"):
        monkeypatch.setattr(f"mlflow_finetune_plugin.data.sources.{module}.LONGEST_DOCUMENT_BYTES", 2**21)
    long = b"a" * (3 * 2**20)
    assert "line 1: longer than 1 MiB; fix: " in fault(write(tmp_path, "a.jsonl.zst", zstd(long)))
    assert "line 2: longer than 1 MiB; fix: " in fault(write(tmp_path, "a.csv.gz", gzip.compress(b"text\n" + long)))
    assert "line 1: longer than 2 MiB; fix: " in fault(write(tmp_path, "a.txt.zst", zstd(long)))
    assert "line 1: longer than 2 MiB; fix: " in fault(write(tmp_path, "a.json", b"[" + long))
    assert "line 1: longer than 1 MiB; fix: " in fault(write(tmp_path, "b.jsonl", "a" * (2**20 + 1)))
    assert "line 1: longer than 1 MiB; fix: " in fault(write(tmp_path, "d.csv", long.decode().encode("utf-16")))
    cell = b'text\n"' + b"aaa\n" * 2**18 + b'b"\n'
    assert "line 2: a field is longer than 1 MiB; fix: " in fault(write(tmp_path, "e.csv", cell))
    assert "unpacks to 0.0 GiB; fix: export" in fault(sheet_of_xml(tmp_path / "a.xlsx", long.decode()))


def test_xlsx_without_its_library_names_the_extra(tmp_path, monkeypatch):
    path = sheet(tmp_path / "a.xlsx", [["text"], ["a"]])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mlflow-finetune\[excel\]'"):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", '{"a": "1"}'), ("a.csv", "a\n1\n"), ("a.json", '[{"a": "1"}]')]
)
def test_utf8_byte_order_mark_is_no_part_of_the_text(tmp_path, name, content):
    path = write(tmp_path, name, b"\xef\xbb\xbf" + content.encode())
    assert [row for _, row in read_rows(path)] == [{"a": "1"}]


def test_peek_stops_before_a_fault_further_down(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"a": 1}\n{"a": 2}\nbroken\n')
    assert peek(path, n=2) == [(1, {"a": 1}), (2, {"a": 2})]


def test_reading_streams(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"a": 1}\n' * 1000 + "broken\n{}\n")
    rows = read_rows(path)
    assert [next(rows)[0] for _ in range(1000)] == list(range(1, 1001))


# what is refused -----------------------------------------------------------------------------------------------------


def test_missing_file_suggests_the_nearest_name(tmp_path):
    write(tmp_path, "train.jsonl", "{}\n")
    with pytest.raises(DataError, match=r"trian\.jsonl: no such file; did you mean .*train\.jsonl\?"):
        read_rows(tmp_path / "trian.jsonl")


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"the folder .*nowhere does not exist"):
        read_rows(tmp_path / "nowhere" / "a.jsonl")


def test_directory_lists_the_files_in_it(tmp_path):
    (tmp_path / "d.jsonl").mkdir()
    write(tmp_path / "d.jsonl", "x.csv", "a\n1\n")
    with pytest.raises(DataError, match=r"is a directory.*x\.csv"):
        read_rows(tmp_path / "d.jsonl")


@pytest.mark.parametrize("name", ["a.md", "a", "a.gz", "a.parquet.gz", "a.xlsx.zst", "a.xls"])
def test_unknown_suffix_names_the_known_ones(tmp_path, name):
    with pytest.raises(DataError, match=r"unknown file format.*\.jsonl, \.ndjson, \.json, \.csv, \.tsv, \.parquet"):
        read_rows(write(tmp_path, name, "x"))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", "", "is empty"),
        ("a.jsonl", "\n \n", "the file has no rows"),
        ("a.json", " \n", "is empty"),
        ("a.json", "[]", "the file has no rows"),
        ("a.csv", "", "is empty"),
        ("a.csv", "text,label\n", "the file has no rows"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0), "is empty"),
        ("a.jsonl", '{"a": 1}\n{"a": 2}\n{"a": "hal', "line 3: the last line is incomplete"),
        ("a.jsonl", '{"a": 1}\n{"a": 2\n{"a": 3}\n', "line 2: invalid JSON: Expecting"),
        ("a.jsonl", '{"a": 1}\n[1, 2]\n', "line 2: the row is a list, not an object: '[1, 2]'"),
        ("a.jsonl", '{"a": 1}\n"text"\n', "line 2: the row is a string, not an object"),
        ("a.jsonl", '[\n{"a": 1}\n]\n', "fix: end its name with .json"),
        ("a.jsonl", '{\n"a": 1\n}\n', "a JSON object over several lines"),
        ("a.jsonl", '{"a": ' + "9" * 5000 + "}\n", "line 1: invalid JSON"),
        ("a.jsonl", "[" * 100_000 + "\n", "line 1: invalid JSON"),
        ("a.json", '[{"a": 1},\n {"a": 2', "line 2: the file may be cut off"),
        ("a.json", '[{"a": 1},\n {"a": "tw', "line 2: the file may be cut off"),
        ("a.json", '[{"a": 1}\n {"a": 2}]', "line 2: invalid JSON: expected ','"),
        ("a.json", '[{"a": 1},\n 7]', "line 2: the row is a number, not an object"),
        ("a.json", '[{"a": 1}] x', "extra data"),
        ("a.json", '{"data": [{"a": 1}]', "may be cut off"),
        ("a.json", '{"rows": [{"a": 1}]}', "a single object without rows (keys: rows)"),
        ("a.json", '{"a": 1}\n{"a": 2}\n', "fix: end its name with .jsonl"),
        ("a.json", "7", "not a list of objects"),
        ("a.csv", "text,label\na,b\nc,d,e\n", "line 3: the row has 3 fields and the header 2 (text, label): 'c, d, e'"),
        ("a.csv", 'text,label\n"a\nb",x\nc\n', "line 4: the row has 1 field and the header 2"),
        ("a.csv", "text,label,text\na,b,c\n", "the header has the column 'text' 2 times"),
        (
            "a.csv",
            "I have been waiting for my new card for more than two weeks now; where is it?,card_arrival\nHello,x\n",
            "the header is missing",
        ),
        ("a.csv", "12,hello\n13,you\n", "line 1: the header is missing"),
        ("a.csv", "text;label\na;b;c\n", "line 2: the row has 3 fields and the header 2"),
        ("a.csv", "sep=;\ntext;label\na;b\nc\n", "line 4: the row has 1 field and the header 2"),
        ("a.csv", 'text,label\na,b\n"c,d\n', "line 3: a quote that opens in this row is never closed"),
        ("a.csv", 'text,label\n"a" b,c\n', "line 2: "),
        ("a.jsonl", b'{"a": 1}\n{"a": "caf\xe9"}\n', "line 2: not UTF-8 at byte 19 (0xe9"),
        ("a.csv", "text,label\nПривет,x\n".encode("cp1251"), "line 2: not UTF-8 at byte 11 (0xcf"),
        ("a.csv", "text,label\nłódź,x\n".encode("cp1250"), "line 2: not UTF-8"),
        ("a.csv", "text,label\né,x\n".encode() + b"caf\xe9,x\n", "line 3: not UTF-8 at byte 19 (0xe9"),
        ("a.csv", b"text,label\ncaf\xe9,x\n" + "é,x\n".encode(), "line 3: earlier lines are in Windows-1252"),
        ("a.jsonl", '{"a": 1}\n'.encode("utf-32"), "the encoding is UTF-32, not UTF-8; fix: iconv -f UTF-32 -t UTF-8"),
        ("a.jsonl", '{"a": 1}\n'.encode("utf-16")[:-1], "not valid UTF-16"),
        ("a.csv", "text,label\na,b\n".encode("utf-16-le")[:-1], "not valid UTF-16"),
        ("a.jsonl.zst", b'{"a": 1}\n', "not a valid zstd file"),
        ("a.jsonl.zst", zstd(b'{"a": 1}\n' * 500)[:-5], "cut off (Truncated compressed stream)"),
        ("a.jsonl.zst", zstd(b""), "is empty"),
        ("a.jsonl", zstd(b'{"a": 1}\n'), "it is zstd data; fix: end its name with .zst"),
        ("a.xlsx", b"text,label\na,b\n", "not a valid .xlsx file"),
        ("a.csv", b"text,label\na\x00b,c\n", "line 2: a NUL byte at byte 12"),
        ("a.jsonl", bytes(range(256)) * 4, "not a text file"),
        (
            "a.jsonl",
            gzip.compress(b'{"a": 1}', mtime=0),
            "not a text file: it is gzip data; fix: end its name with .gz",
        ),
        ("a.csv", b"PAR1" + b"\x00" * 20, "it is a Parquet file; fix: end its name with .parquet"),
        ("a.csv", b"PK\x03\x04 etc", "a zip archive"),
        ("a.jsonl.gz", b'{"a": 1}\n', "not a valid gzip file"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"a": 1}\n' * 500, mtime=0)[:-9],
            "the gzip data ends too early, the file is cut off",
        ),
        ("a.parquet", b"PAR1 but not really", "not a valid Parquet file"),
    ],
)
def test_fault_says_where_and_how_to_fix_it(tmp_path, name, content, expected):
    message = fault(write(tmp_path, name, content))
    assert expected in message
    assert name in message
    assert "fix:" in message or "cut off" in message


def test_rows_before_a_fault_are_yielded_first(tmp_path):
    rows = read_rows(write(tmp_path, "a.jsonl", '{"a": 1}\nbroken\n{"a": 3}\n'))
    assert next(rows) == (1, {"a": 1})
    with pytest.raises(DataError, match="line 2"):
        next(rows)


def test_long_values_are_shortened_in_messages(tmp_path):
    message = fault(write(tmp_path, "a.jsonl", json.dumps(["x" * 10_000]) + "\n"))
    assert len(message) < len(str(tmp_path)) + 250


@pytest.mark.process
def test_light_modules_load_nothing_heavy():
    code = (
        "import sys, mlflow_finetune_plugin.data.sources.rows, mlflow_finetune_plugin.data.conversations.conversion; "
        "import mlflow_finetune_plugin.data.report.text, mlflow_finetune_plugin.evaluation.scale; "
        "print([m for m in ('torch', 'transformers', 'datasets', 'pandas', 'pyarrow', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "text", "encoding", "page"),
    [
        ("a.csv", "привет,мир", "cp1251", "CODEPAGE"),
        ("a.csv", "質問,答え", "shift_jis", "CODEPAGE"),
        ("a.csv", "café,crème", "mac_roman", "CODEPAGE"),
        ("a.jsonl", '{"a": "café"}', "cp1252", "WINDOWS-1252"),
    ],
)
def test_a_code_page_is_named_only_where_it_is_certain(tmp_path, name, text, encoding, page):
    path = tmp_path / name
    path.write_bytes((("prompt,completion\n" if name == "a.csv" else "") + text + "\n").encode(encoding))
    with pytest.raises(DataError, match=f"for example iconv -f {page} -t UTF-8 FILE > NEW"):
        list(read_rows(path))
