"""The real command, as a user types it: no run, no weights, exit code 0 or 2."""

import json

import pytest

from mlflow_finetune_plugin.cli.main import main


@pytest.fixture
def rows(workplace):
    path = workplace.path / "rows.jsonl"
    said = [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(30)]
    path.write_text("\n".join(map(json.dumps, [*said, {"prompt": "Why?", "completion": ""}])) + "\n")
    return path


@pytest.mark.process
def test_file_is_reported_as_text_page_and_json(workplace, rows, monkeypatch, capsys):
    done = workplace.cli("data", "rows.jsonl", "--html", "page.html", "-P", "data.eval=0.2")
    assert done.returncode == 0, done.stdout
    assert "train  rows.jsonl: prompt_completion: prompt -> completion; 31 rows, 30 kept" in done.stdout
    assert "1 empty completion (completion), line 31" in done.stdout
    assert "<script" not in (workplace.path / "page.html").read_text()
    monkeypatch.chdir(rows.parent)
    assert main(["data", "rows.jsonl", "--json", "-P", "data.eval=0.2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["usable"]
    assert (report["kept"], report["skipped"], report["eval_rows"]) == (30, 1, 6)
    assert sorted(path.name for path in workplace.path.iterdir() if path.suffix in (".html", ".json", ".jsonl")) == [
        *("page.html", "rows.jsonl"),
    ]
    jobs = workplace.home / "jobs"
    assert not jobs.is_dir() or not list(jobs.iterdir())


def test_unusable_data_ends_with_2_and_shows_the_report_all_the_same(rows, monkeypatch, capsys):
    monkeypatch.chdir(rows.parent)
    assert main(["data", "rows.jsonl", "-P", "max_length=8", "--html", "page.html"]) == 2
    said = capsys.readouterr()
    assert "30 rows are longer than max_length (8 tokens): rows.jsonl line 1" in said.err
    assert "30 over length" in said.out
    assert "1 empty completion (completion), line 31" in said.out
    assert "empty completion" in (rows.parent / "page.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing.jsonl"], "no such file"),
        (["empty"], "a folder without finetune.yaml and data files; fix: name data, or a project"),
        (["rows.jsonl", "-P", "colums=x"], "did you mean columns?"),
        (["rows.jsonl", "--html", "no/such/page.html"], "its folder does not exist"),
        (["hf:a:b:c:d"], "not a valid data set name"),
        (["runs:/abc"], "not a valid artifact URI; fix: use runs:/RUN_ID/PATH"),
    ],
)
def test_wrong_arguments_end_with_2(rows, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(rows.parent)
    (rows.parent / "empty").mkdir()
    assert main(["data", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_project_is_read_as_a_run_reads_it(rows, monkeypatch, capsys):
    (rows.parent / "finetune.yaml").write_text("data: {train: rows.jsonl, eval: 0.1}\n")
    monkeypatch.chdir(rows.parent.parent)
    assert main(["data", rows.parent.name, "-P", "eval_data=0.2"]) == 0
    assert "split  0.2 of the training rows: 6 of 30 rows" in capsys.readouterr().out
