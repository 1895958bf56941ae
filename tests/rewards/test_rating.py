"""Judges and score models, against a real HTTP server in OpenAI's form."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from chat_endpoint import Endpoint
from reward_files import completion, completions, loaded

from mlflow_finetune_plugin.errors import ConfigError, RewardError
from mlflow_finetune_plugin.rewards import rating
from mlflow_finetune_plugin.rewards.rating import RatingFault, parse_rating


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("7", 7),
        (" -0.5\n", -0.5),
        ("Good work.\n[[8]]", 8),
        ("[[1]] or rather [[ 2.5 ]]", 2.5),
        ('{"score": 4, "reason": "fine"}', 4),
        ('```json\n{"steps": [], "result": 0.75}\n```', 0.75),
        ("It is right.\n**Score: 9**", 9),
        ("Rating = 3.", 3),
        ("<think>Perhaps [[2]]?</think>\n5", 5),
        ("1e-2", 0.01),
    ],
)
def test_ratings_are_read_from_these_replies(reply, number):
    assert parse_rating(reply) == number


@pytest.mark.parametrize(
    "reply",
    ["", "I give it 7 of 10", "7/10", "Score: 7/10", "seven", '{"score": null}', '{"score": true}', '{"score": "good"}', "[7]", "NaN", '{"score": NaN}', "Score: 7\nbut", "<think>7</think>"],
)  # fmt: skip
def test_other_replies_have_no_rating(reply):
    with pytest.raises(RatingFault):
        parse_rating(reply)


def judge(endpoint, **more):
    prompt = "Question: {{prompt}}\nAnswer: {{completion}}\nTruth: {{item.answer}}\nRate it from 0 to 10."
    return {
        "judge": {"base_url": endpoint.url, "model": "judge-1", "prompt": prompt, **more.pop("of_judge", {})},
        **more,
    }


def by_length(body):
    return str(len(body["messages"][0]["content"].split("Answer: ")[1].split("\n")[0]))


def test_a_judge_rates_each_completion(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    with Endpoint(by_length) as endpoint:
        part = judge(endpoint, weight=0.1, of_judge={"api_key_env": "JUDGE_KEY", "max_tokens": 5})
        with loaded(tmp_path, part, columns=["answer"]) as rewards:
            scores = rewards.score(completions("four", "4", answer="4"))
    assert scores.parts == {"judge": [4.0, 1.0]}
    assert scores.total == pytest.approx([0.4, 0.1])
    assert scores.reasons == {"judge": ["4", "1"]}
    assert {headers["authorization"] for headers in endpoint.headers} == {"Bearer s3cret"}
    (body, _) = sorted(endpoint.asked, key=lambda body: -len(str(body)))
    assert body["messages"] == [
        {"role": "user", "content": "Question: What is 2 + 2?\nAnswer: four\nTruth: 4\nRate it from 0 to 10."}
    ]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("judge-1", 0, 5)


def test_a_template_in_a_completion_is_not_filled(tmp_path):
    def reply(body):
        return "1" if "{{item.answer}}" in body["messages"][0]["content"] else "0"

    with Endpoint(reply) as endpoint, loaded(tmp_path, judge(endpoint)) as rewards:
        assert rewards.score(completions("{{item.answer}}", answer="s3cret")).total == [1.0]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_failures_are_tried_again(tmp_path, monkeypatch, status):
    monkeypatch.setattr(rating, "_FIRST_WAIT_S", 0.01)
    replies = iter([(status, "busy"), (status, "busy"), "3"])
    with Endpoint(lambda body: next(replies)) as endpoint, loaded(tmp_path, judge(endpoint)) as rewards:
        assert rewards.score(completions("a", answer="4")).total == [3.0]
    assert len(endpoint.asked) == 3


def test_a_refusal_is_not_tried_again_and_names_the_row(tmp_path):
    message = r"reward 'judge' \(judge judge-1\) failed at row 5 .*HTTP 401: wrong key"
    with (
        Endpoint(lambda body: (401, "wrong key")) as endpoint,
        loaded(tmp_path, judge(endpoint)) as rewards,
        pytest.raises(RewardError, match=message),
    ):
        rewards.score([completion("a", row=5, answer="4")])
    assert len(endpoint.asked) == 1


@pytest.mark.parametrize("reply", ["no number", "11", "-1"])
def test_what_is_not_a_rating_in_range_is_skipped_and_counted(tmp_path, reply):
    with Endpoint(lambda body: reply if "Answer: bad" in str(body) else "5") as endpoint:
        part = judge(endpoint, on_error="skip", of_judge={"range": [0, 10]})
        with loaded(tmp_path, part) as rewards:
            scores = rewards.score(completions("good", "bad", answer="4"))
    assert scores.parts["judge"] == [5.0, None]
    assert scores.skipped == 1
    assert ("outside of the range 0 to 10" if reply != "no number" else "has no rating") in scores.reasons["judge"][1]


def test_a_judge_that_hangs_costs_its_limits(tmp_path, monkeypatch):
    monkeypatch.setattr(rating, "_FIRST_WAIT_S", 0.01)
    part = {"timeout_s": 0.3, "on_error": "skip", "of_judge": {"tries": 2}}
    with Endpoint(lambda body: time.sleep(1) or "1") as endpoint, loaded(tmp_path, judge(endpoint, **part)) as rewards:
        started = time.monotonic()
        scores = rewards.score(completions("a", answer="4"))
        assert time.monotonic() - started < 5
    assert "ReadTimeout" in scores.reasons["judge"][0]


class SlowServer(ThreadingHTTPServer):
    """Answers each request in a thread after a moment, and counts how many run at the same time."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), SlowAnswer)
        self.lock, self.running, self.most = threading.Lock(), 0, 0


class SlowAnswer(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        with self.server.lock:
            self.server.running += 1
            self.server.most = max(self.server.most, self.server.running)
        time.sleep(0.3)
        with self.server.lock:
            self.server.running -= 1
        body = b'{"choices": [{"message": {"role": "assistant", "content": "1"}}]}'
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Print nothing."""


def test_as_many_requests_as_allowed_run_at_the_same_time(tmp_path):
    with SlowServer() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        part = {"base_url": f"http://127.0.0.1:{server.server_port}/v1", "model": "m", "prompt": "x", "concurrency": 3}
        with loaded(tmp_path, {"judge": part}) as rewards:
            assert rewards.score(completions(*"abcdefgh")).total == [1.0] * 8
        server.shutdown()
        thread.join()
    assert server.most == 3


GRADER = {
    "type": "score_model",
    "name": "quality",
    "model": "grader-1",
    "input": [
        {"role": "developer", "content": "Grade strictly."},
        {"role": "user", "content": [{"type": "input_text", "text": "{{item.question}}: {{sample.output_json.n}}"}]},
    ],
    "range": [1, 5],
    "sampling_params": {"temperature": 0.5, "max_completions_tokens": 64, "seed": 1},
}


def test_a_score_model_is_asked_for_a_number_in_its_range(tmp_path):
    with Endpoint(lambda body: '{"result": 4}') as endpoint:
        part = {"grader": GRADER, "endpoint": {"base_url": endpoint.url}}
        with loaded(tmp_path, part) as rewards:
            scores = rewards.score(completions('{"n": 3}', "not JSON", question="How many"))
    assert scores.parts == {"quality": [4.0, 1.0]}
    assert scores.reasons["quality"][1] == "the completion has no {{sample.output_json.n}}"
    (body,) = endpoint.asked
    assert body["messages"][0]["role"] == "system"
    assert body["messages"][0]["content"].startswith("Grade strictly.\n\nReply with a JSON object")
    assert "NUMBER is from 1 to 5" in body["messages"][0]["content"]
    assert body["messages"][1] == {"role": "user", "content": "How many: 3"}
    assert (body["model"], body["temperature"], body["max_tokens"], body["seed"]) == ("grader-1", 0.5, 64, 1)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"grader": GRADER}, r"rewards\[0\] \(grader score_model\): score_model has no endpoint; fix: add endpoint"),
        ({"grader": GRADER, "endpoint": {"base_url": "http://h/v1", "api_key_env": "NOT_SET_HERE"}}, r"NOT_SET_HERE \(api_key_env\) is not set"),
        ({"judge": {"base_url": "http://h/v1", "model": "m", "prompt": "{{item.x}}"}}, r"rewards\[0\] \(judge m\): the rows have no column 'x'"),
        ({"judge": {"base_url": "http://h/v1", "model": "m", "prompt": "{{reference}}"}}, r"no column 'reference'"),
    ],
)  # fmt: skip
def test_what_is_missing_is_reported_before_anything_is_asked(tmp_path, part, message):
    with pytest.raises(ConfigError, match=message):
        loaded(tmp_path, part, columns=["question"])
