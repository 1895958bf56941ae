import subprocess
import sys

import pytest

from mlflow_finetune_plugin.errors import FinetuneError
from mlflow_finetune_plugin.evaluation.metric_modules import PACKAGED, check_metric_name, load_metric

USER_METRIC = """
import datasets
import evaluate

class Mine(evaluate.Metric):
    higher_is_better = False

    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="", citation="", features=datasets.Features({"predictions": text, "references": text})
        )

    def _compute(self, predictions, references):
        surplus = sum(len(p) - len(r) for p, r in zip(predictions, references))
        return RESULT
"""


@pytest.fixture
def user_metric(tmp_path):
    def write(result, name="surplus.py"):
        path = tmp_path / name
        path.write_text(USER_METRIC.replace("RESULT", result))
        return str(path)

    return write


def test_packaged_metrics_are_the_files_of_the_folder():
    assert PACKAGED == (
        "accuracy",
        "bleu",
        "chrf",
        "exact_match",
        "f1",
        "perplexity",
        "preference_accuracy",
        "rougeL",
        "token_f1",
    )


@pytest.mark.process
def test_checking_a_name_imports_nothing_heavy():
    program = (
        "import sys; from mlflow_finetune_plugin.evaluation.metric_modules import check_metric_name; "
        "check_metric_name('bleu'); "
        "print(*{'torch', 'evaluate', 'transformers', 'numpy', 'datasets'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_unknown_name_lists_the_choices_and_the_nearest():
    with pytest.raises(FinetuneError) as error:
        check_metric_name("exactmatch")
    assert str(error.value) == (
        "'exactmatch' is not a known metric (did you mean 'exact_match'?); fix: pick one of: accuracy, bleu, chrf, exact_match, f1, "
        "perplexity, preference_accuracy, rougeL, token_f1, or a path to a metric file"
    )


def test_missing_metric_file_is_named(tmp_path):
    with pytest.raises(FinetuneError, match=r"the metric file 'nowhere/mine.py' does not exist"):
        check_metric_name("nowhere/mine.py")
    with pytest.raises(FinetuneError, match="'' is not a known metric"):
        check_metric_name("")


@pytest.mark.parametrize(
    "result",
    ['{"surplus": surplus, "rows": len(references)}', '{"total": surplus, "details": "text"}', '{"a": surplus}'],
)
def test_users_file_gives_its_value_under_its_stem_or_as_the_only_number(user_metric, result):
    metric = load_metric(user_metric(result))
    assert (metric.name, metric.higher_is_better, metric.has_row_statistics) == ("surplus", False, False)
    assert metric.compute(["aaa", "bb"], ["a", "b"]) == 3.0


@pytest.mark.parametrize(
    ("result", "message"), [('{"a": 1, "b": 2}', r"returned 2 numbers \(a, b\)"), ('{"a": "x"}', r"0 numbers \(none\)")]
)
def test_users_file_with_several_numbers_must_name_one(user_metric, result, message):
    with pytest.raises(FinetuneError, match=message):
        load_metric(user_metric(result)).compute(["a"], ["a"])


def test_users_row_statistics_are_used_and_checked(tmp_path, user_metric):
    path = user_metric('{"surplus": surplus}')
    methods = "    def row_statistics(self, predictions, references):\n        return [[1.0, 2.0]]\n"
    with open(path, "a") as file:
        file.write(methods)
    with pytest.raises(FinetuneError, match=r"has row_statistics but no score"):
        load_metric(path)
    with open(path, "a") as file:
        file.write("    def score(self, sums):\n        return sums[..., 0] / sums[..., 1]\n")
    metric = load_metric(path)
    assert metric.score(metric.row_statistics(["a"], ["b"])).tolist() == [0.5]
    with pytest.raises(FinetuneError, match=r"returned shape \(1, 2\) for 2 rows"):
        metric.row_statistics(["a", "b"], ["a", "b"])


def test_users_file_that_cannot_be_imported_is_named(tmp_path):
    path = tmp_path / "needy.py"
    path.write_text("import a_package_that_nobody_has\n" + USER_METRIC.replace("RESULT", "{}"))
    with pytest.raises(FinetuneError, match=r"needy.py' cannot be imported: .*a_package_that_nobody_has"):
        load_metric(str(path))
