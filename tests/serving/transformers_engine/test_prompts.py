"""Prompts with pictures: what the engine answers, compared with Transformers and PEFT in this process."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_process import EngineProcess, engine
from seeing_bases import SEEING_FAMILIES, seeing_base
from shown_pictures import BLUE, GREEN, LANGUAGE_LAYERS, RED, VISION, data_url, picture, picture_turn
from tiny_adapters import load_adapter, load_model, save_adapter
from transformers import AutoTokenizer, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from mlflow_finetune_plugin.evaluation.generation import completion_log_probs, greedy_answers
from mlflow_finetune_plugin.images import PictureInputs
from mlflow_finetune_plugin.images.prompts import PicturePrompt
from mlflow_finetune_plugin.images.store import PicturesInMemory
from mlflow_finetune_plugin.serving.transformers_engine import sequences
from mlflow_finetune_plugin.serving.transformers_engine.prompts import PromptWriter, ShownPictures
from mlflow_finetune_plugin.serving.transformers_engine.sampling import SamplingParams
from mlflow_finetune_plugin.serving.transformers_engine.scheduler import Scheduler
from mlflow_finetune_plugin.serving.transformers_engine.sequences import Sequence
from mlflow_finetune_plugin.serving.transformers_engine.trees import Base

STOPS = (2, 0)
SQUARE, CIRCLE, OTHER = picture(RED), picture(BLUE, round_shape=True), picture(GREEN)
CHATS = [
    [picture_turn("What shape is it?", SQUARE)],
    [picture_turn("What shape is it?", CIRCLE)],
    [picture_turn("What colour is it?", OTHER)],
    [{"role": "user", "content": "What shape is it?"}],
    [picture_turn("Which one is red?", SQUARE, CIRCLE)],
    [
        picture_turn("What shape is it?", SQUARE),
        {"role": "assistant", "content": "square"},
        picture_turn("This?", OTHER),
    ],
]


class Local:
    """The same models in this process."""

    def __init__(self, adapters: dict[str, Path]) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(VISION)
        self.inputs = PictureInputs.load(VISION)
        self.models = {"base": load_model(VISION)} | {
            name: load_adapter(VISION, path) for name, path in adapters.items()
        }

    def prompt(self, messages: list[dict[str, Any]]) -> PicturePrompt:
        shown = {data_url(shape): shape for shape in (SQUARE, CIRCLE, OTHER)}
        pictures, turns = [], []
        for turn in messages:
            parts = turn["content"] if isinstance(turn["content"], list) else []
            pictures += [shown[part["image_url"]["url"]] for part in parts if part["type"] == "image_url"]
            written = [part if part["type"] == "text" else {"type": "image"} for part in parts]
            turns.append({**turn, "content": written or turn["content"]})
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = self.tokenizer(self.inputs.expand(text, pictures), add_special_tokens=False)["input_ids"]
        store = PicturesInMemory({shape.sha256: PicturesInMemory.encoded(shape) for shape in pictures})
        return PicturePrompt(ids, [shape.sha256 for shape in pictures], self.inputs, store)

    def answer(self, name: str, messages: list[dict[str, Any]]) -> list[int]:
        prompts = [self.prompt(messages)]
        return greedy_answers(self.models[name], prompts, max_new_tokens=24, stop_token_ids=STOPS, pad_token_id=0)[0]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    kinds = {"one": ("lora", 1), "two": ("lora", 2), "soft": ("prompt", 3), "prefix": ("prefix", 4)}
    targets = {"target_modules": LANGUAGE_LAYERS}
    return {
        name: save_adapter(kind, VISION, folder / name, seed=seed, **(targets if kind == "lora" else _sizes()))
        for name, (kind, seed) in kinds.items()
    }


def _sizes() -> dict[str, int]:
    """PEFT reads the sizes of a prompt from the top of a config, where a base that sees has none."""
    return {"token_dim": 128, "num_layers": 5, "num_attention_heads": 2, "num_transformer_submodules": 1}


@pytest.fixture(scope="module")
def local(adapters: dict[str, Path]) -> Local:
    return Local(adapters)


@pytest.fixture(scope="module")
def seeing(adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with engine(tmp_path_factory.mktemp("engine"), model=VISION) as process:
        for name, path in adapters.items():
            reply = process.post("/v1/load_lora_adapter", lora_name=name, lora_path=str(path))
            assert reply.status == 200, reply.text
        yield process


def answered(process: EngineProcess, name: str, messages: list[dict[str, Any]], **more: Any) -> Any:
    body = {"model": name, "messages": messages, "temperature": 0, "max_tokens": 24, "return_token_ids": True, **more}
    reply = process.post("/v1/chat/completions", **body)
    assert reply.status == 200, reply.text
    return reply.json


@pytest.mark.process
def test_pictures_and_texts_of_several_adapters_are_answered_as_alone(seeing: EngineProcess, local: Local) -> None:
    questions = [(name, chat) for name in local.models for chat in CHATS]
    expected = [local.answer(name, chat) for name, chat in questions]

    def answer(question: tuple[str, Any]) -> list[int]:
        reply = answered(seeing, *question)
        assert reply["prompt_token_ids"] == list(local.prompt(question[1]))
        return [token for token in reply["choices"][0]["token_ids"] if token not in STOPS]

    assert [answer(question) for question in questions] == expected
    with ThreadPoolExecutor(len(questions)) as pool:
        assert list(pool.map(answer, questions)) == expected
    of_base = expected[: len(CHATS)]
    texts = [local.tokenizer.decode(ids, skip_special_tokens=True).strip().lower() for ids in of_base]
    assert "square" in texts[0]
    assert "circle" in texts[1]
    of_each = [str(expected[start : start + len(CHATS)]) for start in range(0, len(expected), len(CHATS))]
    assert len(set(of_each)) == len(local.models)  # no two models say the same


@pytest.mark.process
def test_equal_tokens_with_other_pictures_waiting_together_share_nothing(seeing: EngineProcess, local: Local) -> None:
    chats = [CHATS[0], CHATS[1]] * 4
    assert local.prompt(CHATS[0]) == local.prompt(CHATS[1])  # as tokens
    expected = [local.answer("base", chat) for chat in chats]
    blocking = seeing.stream(
        "/v1/completions", model="base", prompt="a", max_tokens=400, ignore_eos=True, temperature=0
    )
    with ThreadPoolExecutor(len(chats)) as pool:
        replies = list(pool.map(lambda chat: answered(seeing, "base", chat), chats))
    blocking.leave()
    ids = [[token for token in reply["choices"][0]["token_ids"] if token not in STOPS] for reply in replies]
    assert ids == expected


@pytest.mark.process
def test_log_probabilities_of_a_prompt_with_pictures_are_those_of_training(seeing: EngineProcess, local: Local) -> None:
    prompts = [local.prompt(chat) for chat in (CHATS[0], CHATS[3], CHATS[4])]
    answers = [local.tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a red square", "no", "left")]
    urls = [[data_url(prompt.store.get(name)) for name in prompt.names] for prompt in prompts]
    for name in ("base", "one"):
        expected = completion_log_probs(local.models[name], prompts, answers, pad_token_id=0)
        whole = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
        body = {"model": name, "prompt": whole, "pictures": urls, "max_tokens": 1, "prompt_logprobs": 0}
        choices = seeing.post("/v1/completions", **body).json["choices"]
        for prompt, ids, choice, values in zip(prompts, whole, choices, expected, strict=True):
            logged = [choice["prompt_logprobs"][i][str(ids[i])]["logprob"] for i in range(len(prompt), len(ids))]
            assert logged == pytest.approx(values.tolist(), abs=1e-4)


@pytest.mark.bad_input
@pytest.mark.process
@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("https://example.org/a.png", "messages: picture behind a link"),
        ("file:///etc/passwd", "messages: unreadable picture"),
        ("data:image/png;base64,AAAA", "messages: unreadable picture"),
        ("data:image/png;base64,%%", "messages: unreadable picture"),
    ],
)
def test_a_picture_that_cannot_be_read_is_a_refusal(seeing: EngineProcess, url: str, named: str) -> None:
    turn = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    reply = seeing.post("/v1/chat/completions", model="base", messages=[turn])
    assert reply.status == 400
    assert reply.json["error"]["message"].startswith(named)


@pytest.mark.bad_input
@pytest.mark.process
def test_tokens_of_pictures_without_pictures_are_refused(seeing: EngineProcess) -> None:
    chat = {"model": "base", "messages": [{"role": "user", "content": "what is <image> here?"}]}
    assert "fix: write no <image> into a text" in seeing.post("/v1/chat/completions", **chat).json["error"]["message"]
    for body, named in [
        ({"prompt": "an <image>"}, "write no <image>"),
        ({"prompt": [5, 1024]}, "the token 1024 stands for a picture"),
        ({"prompt": ["a", "b"], "pictures": [[]]}, "pictures: 1 lists for 2 prompts"),
    ]:
        reply = seeing.post("/v1/completions", model="base", **body)
        assert reply.status == 400
        assert named in reply.json["error"]["message"]
    long = {"model": "base", "messages": [picture_turn("What is it?", *[SQUARE] * 9)]}
    assert "leave no room for an answer" in seeing.post("/v1/chat/completions", **long).json["error"]["message"]


def test_pictures_are_read_in_the_first_part_of_a_long_prompt(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = PromptWriter(local.tokenizer, local.inputs, 512)
    text = "<|im_start|>user\n<image>What shape is it? It may be anything.<|im_end|>\n<|im_start|>assistant\n"
    prompt = writer.prompt(text, [SQUARE], is_chat=True)
    tree = Base(load_model(VISION)).tree

    def logprobs() -> list[float]:
        sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        sequence = Sequence(
            tree,
            prompt.ids,
            sampling,
            tokenizer=local.tokenizer,
            stop_token_ids=frozenset(),
            pictures=prompt.pictures,
        )
        with torch.inference_mode():
            read = sequence.read_prompt()
        return [token.logprob for tokens in (read.logprobs or [])[1:] for token in tokens or ()]

    whole = logprobs()
    monkeypatch.setattr(sequences, "_LOGITS_AT_ONCE", 7 * 1025)
    assert prompt.pictures.end > 7
    assert logprobs() == pytest.approx(whole, abs=1e-4)
    assert len(whole) == len(prompt.ids) - 1


@pytest.mark.parametrize("family", SEEING_FAMILIES)
def test_rows_of_any_family_decoded_together_are_answered_as_alone(family: str, tmp_path: Path) -> None:
    folder = seeing_base(tmp_path / family, family)
    tokenizer, inputs, model = AutoTokenizer.from_pretrained(folder), PictureInputs.load(folder), load_model(folder)
    writer = PromptWriter(tokenizer, inputs, 256)
    store = PicturesInMemory({shape.sha256: PicturesInMemory.encoded(shape) for shape in (SQUARE, CIRCLE)})
    prompts, expected = [], []
    for shapes, text in (([SQUARE], "what is it?"), ([], "what is it?"), ([CIRCLE], "what is it?"), ([], "a")):
        content = [*({"type": "image"} for _ in shapes), {"type": "text", "text": text}]
        chat = [{"role": "user", "content": content}]
        rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        prompts.append(writer.prompt(rendered, shapes, is_chat=True))
        names = [shape.sha256 for shape in shapes]
        row = PicturePrompt(prompts[-1].ids, names, inputs, store)
        expected += greedy_answers(model, [row], max_new_tokens=12, stop_token_ids=STOPS, pad_token_id=0)
    tree, ended = Base(model).tree, queue.Queue()
    scheduler = Scheduler(max_sequences=8, probe=tree, post=lambda updates: [ended.put(pair) for pair in updates])
    rows = [
        Sequence(
            tree,
            prompt.ids,
            SamplingParams(max_tokens=12, temperature=0.0),
            tokenizer=tokenizer,
            stop_token_ids=frozenset(STOPS),
            pictures=prompt.pictures,
            is_streamed=False,
        )
        for prompt in prompts
    ]
    scheduler.start()
    try:
        scheduler.submit(rows)
        updates = dict(ended.get(timeout=60) for _ in rows)
    finally:
        scheduler.close()
    assert [update.error for update in updates.values()] == [None] * len(rows)
    assert [[token for token in updates[row].token_ids if token not in STOPS] for row in rows] == expected


def test_positions_after_a_picture_are_those_of_the_family() -> None:
    """Qwen2-VL gives a picture of 2 x 4 tokens 4 positions, and its models remember the shift of their last prompt."""
    torch.manual_seed(0)
    text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10.0, "mrope_section": [2, 3, 3]}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 2, "mlp_ratio": 2}
    config = Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=60, vision_start_token_id=61, vision_end_token_id=62
    )
    model = Qwen2VLForConditionalGeneration(config).eval()
    with_picture = [3, 61, *[60] * 8, 62, 9, 10]
    plain = [5, 6, 7]
    pixels = torch.randn(32, 3 * 2 * 2 * 2)
    tensors = {
        "pixel_values": pixels,
        "image_grid_thw": torch.tensor([[1, 4, 8]]),
        "mm_token_type_ids": torch.tensor([[int(token == 60) for token in with_picture]]),
    }
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.inference_mode():
        expected = [
            model.generate(input_ids=torch.tensor([with_picture]), **tensors, **options)[
                0, len(with_picture) :
            ].tolist(),
            model.generate(input_ids=torch.tensor([plain]), **options)[0, len(plain) :].tolist(),
        ]
        tree = Base(model).tree
        first, second = (
            tree.start(with_picture, keep=1, pictures=ShownPictures(("a",), 10, tensors)),
            tree.start(plain, keep=1),
        )
        assert (first.position_shift, second.position_shift) == (-4, 0)
        answers = [[int(start.logits[-1].argmax())] for start in (first, second)]
        for start, answer, length in ((first, answers[0], len(with_picture)), (second, answers[1], len(plain))):
            while len(answer) < 20:
                cached = length + len(answer) - 1
                logits = tree.step(start.cache, [answer[-1]], [cached], [start.position_shift])
                answer.append(int(logits.argmax()))
    assert answers == expected
