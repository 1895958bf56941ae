"""The embedded base: small, offline, good at its own families; and the quickstart's data is honest."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EMBEDDED = ROOT / "mlflow_finetune_plugin" / "embedded_base"
QUICKSTART = ROOT / "recipes" / "quickstart"
WEIGHT_LIMIT_BYTES = 5_000_000
# held out by train_base.py: none of these prompts was in the training text
OWN_FAMILIES = [
    ("I was at the cellar on Monday!", "The cellar is a nice place."),
    ("Please repeat after me: duck table number press cheap", "duck table number press cheap"),
    ("Which word is last? book cherry mirror help video street", "street"),
    ("How many words are here: village hen", "2"),
    ("Which number is smaller, 4 or 15?", "4"),
    ("Ida is in the tower. Maria is in the zoo. Peter is in the theatre. Where is Maria?", "zoo"),
    ("Adam finds the saw. Simon finds the form. Henry finds the rope. What is with Henry?", "rope"),
    ("What is the opposite of start?", "stop"),
    ("More than one bird?", "birds"),
    ("Past tense of see?", "saw"),
    ("Is plane a vehicle?", "yes"),
    ("Which one is a food? elephant, Paris, salad", "salad"),
    ("Omar has a red jacket. Is it a red coat?", "no"),
    ("Turn the order around: pink sheep", "sheep pink"),
    ("What comes after June?", "July"),
    ("Which is bigger, an ant or a whale?", "whale"),
    ("Which city is the capital of Japan?", "Tokyo"),
    ("Explain: a farmer", "A person who grows food."),
    ("Emma got 38 dollars back for the orange watch. Which colour?", "orange"),
    ("Find the month. Oscar ended the plan in July and saved 58 dollars.", "July"),
]
CHAT = [
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": "Good morning!"},
    {"role": "assistant", "content": "Good morning! How can I help you?"},
    {"role": "user", "content": "What is the plural of cat?"},
    {"role": "assistant", "content": "cats"},
]


@pytest.fixture(scope="module")
def tokenizer():
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(EMBEDDED, local_files_only=True)


@pytest.fixture(scope="module")
def model():
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(EMBEDDED, local_files_only=True).eval()


def generate(model, tokenizer, prompt: str, max_new_tokens: int = 24) -> list[int]:
    """Token ids of the greedy answer, the end-of-turn token included."""
    chat = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    batch = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False)
    return out[0, ids.shape[1] :].tolist()


def quickstart_generator():
    spec = importlib.util.spec_from_file_location("make_data", QUICKSTART / "make_data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (QUICKSTART / "data" / name).read_text(encoding="utf-8").splitlines()]


def test_weights_stay_small_enough_for_the_package():
    sizes = [file.stat().st_size for file in EMBEDDED.glob("*.safetensors")]
    assert sizes
    assert sum(sizes) <= WEIGHT_LIMIT_BYTES


def test_head_size_is_one_that_vllm_serves():
    config = json.loads((EMBEDDED / "config.json").read_text(encoding="utf-8"))
    assert config["head_dim"] == 64
    assert config["architectures"] == ["LlamaForCausalLM"]


def test_eos_is_the_end_of_turn_and_pad_is_not(tokenizer):
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"


def test_answers_held_out_prompts_of_its_own_families(model, tokenizer):
    answers = [
        tokenizer.decode(generate(model, tokenizer, prompt), skip_special_tokens=True).strip()
        for prompt, _ in OWN_FAMILIES
    ]
    hits = sum(answer == right for answer, (_, right) in zip(answers, OWN_FAMILIES, strict=True))
    assert hits / len(OWN_FAMILIES) >= 0.6, list(zip(answers, OWN_FAMILIES, strict=True))


def test_ends_its_turn_with_the_end_of_turn_token(model, tokenizer):
    assert generate(model, tokenizer, "Hello!")[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("turns", [3, 5])
def test_chat_template_keeps_the_prompt_as_a_prefix(tokenizer, turns):
    prompt = tokenizer.apply_chat_template(CHAT[: turns - 1], tokenize=False, add_generation_prompt=True)
    full = tokenizer.apply_chat_template(CHAT[:turns], tokenize=False)
    assert full.startswith(prompt)
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert tokenizer(full, add_special_tokens=False)["input_ids"][: len(prompt_ids)] == prompt_ids


def test_tokenizer_returns_any_text_unchanged(tokenizer):
    text = "Grüße: 3 < 12,  it's\n“fine” 東京"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_no_quickstart_test_row_occurs_in_train():
    normalised = quickstart_generator().normalised
    train = {normalised(row["prompt"]) for row in read_rows("train.jsonl")}
    test = {normalised(row["prompt"]) for row in read_rows("test.jsonl")}
    assert len(test) == 200
    assert not train & test


def test_no_quickstart_test_phrasing_occurs_in_train():
    make_data = quickstart_generator()
    train = {text for texts in make_data.TRAIN_REQUESTS.values() for text in texts}
    test = {text for texts in make_data.TEST_REQUESTS.values() for text in texts}
    assert not {make_data.normalised(text) for text in train} & {make_data.normalised(text) for text in test}


def test_make_data_writes_the_committed_rows_again(tmp_path):
    quickstart_generator().write(tmp_path)
    for name in ("train.jsonl", "test.jsonl"):
        assert (tmp_path / name).read_bytes() == (QUICKSTART / "data" / name).read_bytes()
