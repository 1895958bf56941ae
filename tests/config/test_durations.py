import pytest

from mlflow_finetune_plugin.config.durations import seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), (" 1.5 h ", 5400), ("2d", 172_800)]
)
def test_durations_as_people_write_them(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "0s", "-1m", "10 minutes", "1h30m", "nan", "inf"])
def test_what_is_none_is_told(text):
    with pytest.raises(ValueError, match="fix: a number with s, m, h or d"):
        seconds_of(text)
