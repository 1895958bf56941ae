from mlflow_finetune_plugin.data.tokens.token_report import token_report


def test_token_report_by_hand():
    report = token_report({10: 3, 40: 1, 200_000: 1}, 15)
    assert (report.examples, report.tokens, report.loss_tokens) == (5, 200_070, 15)
    assert report.length_histogram == ((0, 32, 3), (32, 64, 1), (131072, 200_001, 1))
    assert report.length_quantiles == {"min": 10, "p10": 10, "p50": 10, "p90": 200_000, "p99": 200_000, "max": 200_000}


def test_token_report_of_nothing():
    report = token_report({}, 0)
    assert (report.tokens, report.length_histogram, report.length_quantiles["max"]) == (0, (), 0)
