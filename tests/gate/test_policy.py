import math

import pytest
import yaml
from pydantic import ValidationError

from mlflow_finetune_plugin.gate.policy import GatePolicy, VotesPolicy

WHOLE = """
gain:       {metric: exact_match, over: champion, at_least: 0.0}
forgetting: {at_most: 0.05}
votes:      {alpha: 0.05, unit: voter, minimum: 10, required: false}
latency:    {p95_ms: 800, over_champion: 1.2}
regressions: [{data: must-pass.jsonl, metric: exact_match, at_least: 1.0}]
"""


def policy(text):
    return GatePolicy.model_validate(yaml.safe_load(text))


def test_whole_policy_is_read():
    whole = policy(WHOLE)
    assert whole.votes.per_voter == 5
    assert whole.latency.p95_ms == 800.0
    assert whole.regressions[0].data == "must-pass.jsonl"


def test_no_policy_is_gain_alone():
    default = GatePolicy()
    assert (default.gain.metric, default.gain.over, default.gain.at_least) == (None, "champion", 0.0)
    assert (default.forgetting, default.votes, default.latency, default.regressions) == (None, VotesPolicy(), None, [])


def test_every_key_is_optional():
    short = policy("{gain: {}, forgetting: {}, votes: {}, regressions: [{data: a.jsonl, metric: exact_match}]}")
    assert short.forgetting.at_most == 0.05
    assert (short.votes.alpha, short.votes.unit, short.votes.minimum, short.votes.required) == (
        0.05,
        "voter",
        10,
        False,
    )
    assert short.regressions[0].at_least == 1.0


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("{gian: {}}", "gian", "Extra inputs"),
        ("{gain: {atleast: 0}}", "gain.atleast", "Extra inputs"),
        ("{gain: {at_least: '0'}}", "gain.at_least", "valid number"),
        ("{gain: {at_least: .nan}}", "gain.at_least", "finite number"),
        ("{gain: {over: yesterday}}", "gain.over", "'champion' or 'base'"),
        ("{gain: {metric: exact_match, at_least: 1.0}}", "gain", "no candidate can pass: the lower end of a gain in"),
        (
            "{regressions: [{data: a, metric: exact_match, at_least: 1.01}]}",
            "regressions.0",
            "exact_match is at most 1",
        ),
        ("{regressions: [{data: a, metric: m}, {data: a, metric: m}]}", "", "names m on a twice"),
        ("{votes: {alpha: 0}}", "votes.alpha", "greater than or equal"),
        ("{votes: {alpha: 0.5}}", "votes.alpha", "less than"),
        ("{votes: {minimum: 0}}", "votes.minimum", "greater than or equal"),
        ("{votes: {per_voter: 0}}", "votes.per_voter", "greater than or equal"),
        ("{latency: {}}", "latency", "asks nothing; fix: give p95_ms"),
        ("{latency: {p95_ms: 0}}", "latency.p95_ms", "greater than 0"),
        ("{latency: {over_champion: -1}}", "latency.over_champion", "greater than 0"),
        ("{gain: null}", "", "asks nothing that a candidate must show"),
        ("{gain: null, votes: {}}", "", "asks nothing that a candidate must show"),
    ],
)
def test_policies_that_cannot_decide_are_refused(text, where, message):
    with pytest.raises(ValidationError) as caught:
        policy(text)
    (fault,) = caught.value.errors()
    assert ".".join(map(str, fault["loc"])) == where
    assert message in fault["msg"]


@pytest.mark.parametrize(
    "text",
    [
        "{gain: null, votes: {required: true}}",
        "{gain: null, forgetting: {at_most: -0.01}}",
        "{gain: {metric: perplexity, at_least: 3.0}}",
        "{regressions: [{data: a, metric: bleu, at_least: 40}, {data: b, metric: bleu, at_least: 40}]}",
    ],
)
def test_policies_that_can_pass_are_taken(text):
    policy(text)


def test_digest_is_of_the_meaning():
    reordered = (
        "\n".join(reversed(WHOLE.strip().splitlines())).replace("800", "800.0").replace("at_least: 0.0", "at_least: 0")
    )
    assert policy(WHOLE).digest() == policy(reordered).digest()
    assert GatePolicy().digest() == policy("{gain: {at_least: 0}}").digest()
    assert len(GatePolicy().digest()) == 64
    changed = [
        WHOLE.replace(a, b) for a, b in (("800", "801"), ("false", "true"), ("voter,", "vote,"), ("0.05}", "0.06}"))
    ]
    assert len({policy(text).digest() for text in (WHOLE, *changed)}) == 5


def test_digest_of_no_policy_stays():
    # a change here changes the digest of every policy ever logged: raise RULES and say so in the changelog
    assert GatePolicy().digest() == "4b00a9d5d933ca6a117a4e1e75489802e8a67278994b70186d53185d990688e9"


def test_policy_is_frozen_and_its_numbers_finite():
    with pytest.raises(ValidationError, match="frozen"):
        GatePolicy().gain = None
    with pytest.raises(ValidationError):
        GatePolicy.model_validate({"forgetting": {"at_most": math.inf}})


def test_every_key_is_described():
    def undescribed(model):
        for name, field in model.model_fields.items():
            if not field.description:
                yield f"{model.__name__}.{name}"

    import mlflow_finetune_plugin.gate.policy as module

    models = [m for m in vars(module).values() if isinstance(m, type) and issubclass(m, module.Section)]
    assert [name for model in models for name in undescribed(model)] == []
