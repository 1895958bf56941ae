import gzip

import pytest

from mlflow_finetune_plugin.data.sources.rows import read_rows
from mlflow_finetune_plugin.errors import DataError


def documents(folder, content, name="a.txt"):
    path = folder / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    return [(line, row["text"]) for line, row in read_rows(path)]


def test_blank_lines_end_documents(tmp_path):
    assert documents(tmp_path, "\none\ntwo\n\n \n three\n") == [(2, "one\ntwo"), (6, "three")]


def test_end_of_text_lines_win_over_blank_lines(tmp_path):
    text = "one\n\ntwo\n<|endoftext|>\n\nthree\n<|endoftext|>\n"
    assert documents(tmp_path, text) == [(1, "one\n\ntwo"), (6, "three")]


def test_file_without_either_has_a_document_per_line(tmp_path):
    assert documents(tmp_path, "one\ntwo", "a.txt.gz") == [(1, "one"), (2, "two")]


def test_separator_is_looked_for_in_the_first_mebibyte(tmp_path):
    text = ("x" * 1023 + "\n") * 1100 + "\n" + "end\n"
    assert len(documents(tmp_path, text)) == 1101


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_file_without_text_is_refused(tmp_path, content):
    with pytest.raises(DataError, match=r"a\.txt: the file (is empty|has no rows)"):
        documents(tmp_path, content)
