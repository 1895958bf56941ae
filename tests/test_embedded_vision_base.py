"""The embedded base that sees: small, offline, right about shapes and colours, and ignorant of digits."""

import importlib.util
import random
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
EMBEDDED = ROOT / "mlflow_finetune_plugin" / "embedded_vision_base"
WEIGHT_LIMIT_BYTES = 6_000_000


@pytest.fixture(scope="module")
def drawn():
    """The recipe's module that draws pictures and asks about them."""
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "recipes" / "embedded_vision_base" / "pictures.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["pictures"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def answers():
    """A function that answers questions about pictures with stock Transformers, one at a time."""
    transformers = pytest.importorskip("transformers")
    processor = transformers.AutoProcessor.from_pretrained(EMBEDDED, local_files_only=True)
    model = transformers.AutoModelForImageTextToText.from_pretrained(EMBEDDED, local_files_only=True).eval()

    def answer(picture, question):
        parts = [{"type": "text", "text": question}]
        turn = {"role": "user", "content": [{"type": "image"}, *parts] if picture else parts}
        text = processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
        images = {"images": [picture]} if picture else {}
        inputs = processor(text=[text], **images, return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=24)
        return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    return answer


def test_it_is_small_and_complete():
    assert (EMBEDDED / "model.safetensors").stat().st_size < WEIGHT_LIMIT_BYTES
    assert (EMBEDDED / "MODEL_CARD.md").is_file()
    texts = [path.read_text(encoding="utf-8") for path in EMBEDDED.glob("*.json")]
    assert not any(str(ROOT) in text or "_name_or_path" in text for text in texts)


def test_it_names_shapes_colours_and_places(drawn, answers):
    rng = random.Random(7)
    questions = [drawn.question(rng) for _ in range(40)]
    right = [answers(drawing.picture, question) == answer for drawing, question, answer in questions]
    assert sum(right) >= 36


def test_it_knows_no_digits(drawn, answers):
    """So a recipe can teach them."""
    rng = random.Random(8)
    drawings = [drawn.draw(rng, drawn.DIGITS) for _ in range(20)]
    texts = [answers(drawing.picture, "Which number is it?") for drawing in drawings]
    known = [text in (d.kind, drawn.NUMBER_WORDS[int(d.kind)]) for text, d in zip(texts, drawings, strict=True)]
    assert sum(known) <= 4


def test_it_still_answers_without_a_picture(answers):
    assert answers(None, "What is the opposite of start?") == "stop"


def test_its_answer_follows_the_picture(drawn, answers):
    """The same question about two pictures that differ in colour alone."""
    for colour in ("red", "blue"):
        picture = drawn.Image.new("RGB", (drawn.SIZE, drawn.SIZE), (140, 140, 140))
        drawn.paint(drawn.ImageDraw.Draw(picture), "circle", (8, 8, 23, 23), drawn.COLOURS[colour])
        assert answers(picture, "What colour is it?") == colour
