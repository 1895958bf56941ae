"""Alarms: figures that must raise one, and figures of trainings that went well, which must not."""

import itertools
from types import SimpleNamespace

import pytest
from training.trained import events, logged

from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.methods import TrainerContext, load_method
from mlflow_finetune_plugin.training.alarms.settings import AlarmSettings
from mlflow_finetune_plugin.training.alarms.watch import ALARM_LIST, AlarmWatch
from mlflow_finetune_plugin.training.rollouts.repetition import repeated_share

LEARNS = {
    "reward": [0.06, 0.08, 0.10, 0.11, 0.14, 0.15, 0.16, 0.21, 0.22, 0.23, 0.27, 0.25, 0.31, 0.27, 0.36, 0.44],
    "reward_std": [0.24, 0.27, 0.30, 0.30, 0.35, 0.35, 0.37, 0.41, 0.41, 0.42, 0.44, 0.43, 0.46, 0.44, 0.48, 0.49],
    "entropy": [0.99, 1.04, 1.05, 1.00, 0.92, 0.87, 0.87, 0.86, 0.81, 0.78, 0.69, 0.69, 0.61, 0.61, 0.54, 0.55],
    "kl": [0.0, 0.03, 0.09, 0.12, 0.12, 0.20, 0.21, 0.30, 0.30, 0.26, 0.32, 0.40, 0.49, 0.42, 0.49, 0.64],
    "frac_reward_zero_std": [
        0.63,
        0.59,
        0.44,
        0.47,
        0.41,
        0.33,
        0.25,
        0.28,
        0.33,
        0.34,
        0.22,
        0.23,
        0.28,
        0.31,
        0.25,
        0.25,
    ],
    "completions/mean_length": [2.5, 2.5, 2.5, 2.5, 2.7, 2.5, 2.7, 2.4, 2.5, 2.5, 2.5, 2.5, 2.5, 2.5, 2.5, 2.5],
    "repeated_text": [0.0] * 16,
}
"""The log of grpo on sums with an exact-match reward: it learned (docs/guides/reinforcement.md)."""
LEARNS_HELD_OUT = [0.14, 0.26, 0.40, 0.51]


def flat(value, number=16):
    return [value] * number


def rising(start, end, number=16):
    return [start + (end - start) * i / (number - 1) for i in range(number)]


def replay(folder, series, held_out=(), settings=None, history=()):
    """Feed a log to the callback, with an evaluation after every fourth part; return the alarms that were noted."""
    folder.mkdir(parents=True, exist_ok=True)
    watch = AlarmWatch(settings or AlarmSettings(), Report(folder / "report.jsonl"))
    state = SimpleNamespace(log_history=list(history), global_step=0)
    watch.on_train_begin(None, state, None)
    length = max(map(len, series.values()), default=0)
    every = length // len(held_out) if held_out else length + 1
    evaluations = iter(held_out)
    for index in range(length):
        state.global_step = index + 1
        state.log_history.append({name: values[index] for name, values in series.items()})
        watch.on_log(None, state, None)
        if held_out and (index + 1) % every == 0 and (value := next(evaluations, None)) is not None:
            state.log_history.append({"eval_reward": value})
            watch.on_log(None, state, None)
    return [event["text"] for event in events(folder, "note")]


RAISED = {
    "reward_gap": (
        {"reward": rising(0.1, 0.9), "reward_std": flat(0.3)},
        [0.1, 0.1, 0.12, 0.11],
        "reward hacking: the reward",
    ),
    "length_ratio": ({"completions/mean_length": rising(20, 90)}, [], "times as long as at the start"),
    "kl": ({"kl": rising(0, 3)}, [], "far from its start"),
    "entropy_ratio": ({"entropy": [1.06, 1.0, 1.0, 1.0, 1.0, 0.4, 0.1, 0.02, *flat(0.0, 8)]}, [], "entropy collapsed"),
    "flat_groups": ({"frac_reward_zero_std": [0.5, 0.6, 0.8, *flat(1.0, 13)]}, [], "teach nothing"),
    "repeated_text": ({"repeated_text": rising(0.01, 0.8)}, [], "repeat earlier ones"),
    "chosen_fall": ({"logps/chosen": rising(-19.9, -46)}, [], "the better answers have become less likely"),
}

SILENT = {
    "learns": (LEARNS, LEARNS_HELD_OUT),
    "both rise": ({"reward": rising(0.1, 0.9), "reward_std": flat(0.3)}, [0.12, 0.4, 0.7, 0.88]),
    "both flat": ({"reward": flat(0.2), "reward_std": flat(0.4)}, [0.2, 0.22, 0.19, 0.2]),
    "no evaluations": ({"reward": rising(0.1, 0.9), "reward_std": flat(0.3)}, []),
    "a single reward": ({"reward": rising(0.1, 0.9), "reward_std": flat(0.0)}, [0.1, 0.1, 0.1, 0.1]),
    "short answers, a little longer": ({"completions/mean_length": rising(2, 6)}, []),
    "longer by half": ({"completions/mean_length": rising(60, 90)}, []),
    "one peak": ({"kl": [*flat(0.1, 8), 4.0, *flat(0.1, 7)]}, []),
    "entropy falls to a third": ({"entropy": rising(1.0, 0.35)}, []),
    "repeats from the start": ({"repeated_text": flat(0.5)}, []),
    "chosen rises": ({"logps/chosen": rising(-19.9, -2)}, []),
    "chosen falls a little": ({"logps/chosen": rising(-20, -23)}, []),
    "nothing but missing numbers": ({"kl": flat(float("nan")), "entropy": flat(None)}, []),
    "too short to tell": (
        {name: values[:9] for name, (more, *_) in RAISED.items() for name, values in more.items()},
        [],
    ),
}


def test_every_alarm_has_a_threshold_and_a_series_that_raises_it():
    names = [alarm.name for alarm in ALARM_LIST]
    assert names == list(AlarmSettings.model_fields) == list(RAISED)


@pytest.mark.parametrize("name", RAISED)
def test_a_failure_is_noted_once_and_recorded_as_a_metric(tmp_path, name):
    series, held_out, words = RAISED[name]
    (note,) = replay(tmp_path, series, held_out)
    assert words in note
    assert note.startswith("step ")
    values = [value for _, value in logged(tmp_path, f"alarms/{name}")]
    limit = getattr(AlarmSettings(), name)
    assert (min(values) < limit) if name == "entropy_ratio" else (max(values) > limit)


@pytest.mark.parametrize("name", SILENT)
def test_a_training_that_goes_well_is_not_noted(tmp_path, name):
    assert replay(tmp_path, *SILENT[name]) == []


@pytest.mark.parametrize("name", RAISED)
def test_an_alarm_can_be_switched_off_and_its_threshold_moved(tmp_path, name):
    series, held_out, _ = RAISED[name]
    assert replay(tmp_path / "off", series, held_out, AlarmSettings(**{name: None})) == []
    looser = {"entropy_ratio": 1e-9, "flat_groups": 1.0, "repeated_text": 1.0}.get(name, 100.0)
    if name != "entropy_ratio":  # it falls to zero
        assert replay(tmp_path / "looser", series, held_out, AlarmSettings(**{name: looser})) == []


def test_a_resumed_training_does_not_note_an_alarm_again(tmp_path):
    series, _, _ = RAISED["kl"]
    history = [{"kl": value} for value in series["kl"]]
    assert replay(tmp_path, {"kl": flat(3.0, 4)}, history=history) == []


def test_repeated_share_counts_sequences_of_three_words():
    assert repeated_share("") == repeated_share("one two three") == repeated_share("a b c d e f") == 0
    assert repeated_share("a b c a b c") == pytest.approx(1 / 4)
    assert repeated_share(" ".join(itertools.repeat("no", 12))) == pytest.approx(0.9)


@pytest.mark.parametrize("objective", ["dpo", "orpo", "kto"])
def test_preferences_have_the_alarm_that_fits_to_their_figures(tmp_path, objective):
    module = load_method("objective", objective)
    report = Report(tmp_path / "report.jsonl")
    context = TrainerContext(None, tmp_path, report)
    with module.trainer_arguments(module.Options(), context) as arguments:
        (watch,) = arguments["callbacks"]
    state = SimpleNamespace(log_history=[], global_step=0)
    for kl, log_prob in zip(rising(0, 30), rising(-19.9, -46), strict=True):  # nats of whole answers, as kto logs them
        state.log_history.append({"kl": kl, "logps/chosen": log_prob})
        watch.on_log(None, state, None)
    (note,) = [event["text"] for event in events(tmp_path, "note")]
    assert "the better answers have become less likely" in note
    assert not logged(tmp_path, "alarms/kl")
