"""Real tokenizers for the tests of data: two trained here in a moment, two from real models where they are at hand."""

import json
from pathlib import Path

import pytest
from real_templates import control_tokens, template_text

from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer

SHARED_DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"

CORPUS = [
    "The quick brown fox jumps over the lazy dog.\n\nHello there! How are you?\n\nI am fine, thank you.",
    "Name a fruit. A pear is a fruit.\n\nYes: yes, no: no. Because of that, the answer is 42.\n\n",
    "user assistant system model positive negative   several   blanks\n\n\n\nlines",
] * 20


LLAMA3_CUT = (  # how Llama 3 and Qwen cut a text before merging: line breaks stay together whatever follows
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(cut):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=control_tokens(), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<bos>")


@pytest.fixture(scope="session")
def byte_tokenizer():
    """Byte-level BPE as in Llama 3, with every control token of the templates; adds nothing to a text by itself."""
    from tokenizers import Regex, pre_tokenizers

    parts = [
        pre_tokenizers.Split(Regex(LLAMA3_CUT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return _byte_level(pre_tokenizers.Sequence(parts))


@pytest.fixture(scope="session")
def gpt2_tokenizer():
    """Byte-level BPE as in GPT-2, whose cut of blanks depends on what follows them."""
    from tokenizers import pre_tokenizers

    return _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))


@pytest.fixture(scope="session")
def llama2_tokenizer():
    """As Llama 2: a blank before every text, bytes for what it does not know, and <s> before every sequence."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # only while training, so merges stay short
    named = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=named, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(model["vocab"], merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])  # the bytes are plain entries of the vocabulary
    tokenizer.normalizer = trained.normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _real_tokenizer(name: str):
    folder = SHARED_DATA / "models" / name
    if not folder.is_dir():
        pytest.skip(f"the model folder {name} is not at hand")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def stories_tokenizer():
    return _real_tokenizer("stories260k-hd64")


@pytest.fixture(scope="session")
def tinystories_tokenizer():
    return _real_tokenizer("tinystories-656k-hd64")


@pytest.fixture(scope="session", params=["stories260k-hd64", "tinystories-656k-hd64"])
def real_tokenizer(request):
    return _real_tokenizer(request.param)


@pytest.fixture(scope="session")
def dataset_folder():
    folder = SHARED_DATA / "datasets"
    if not folder.is_dir():
        pytest.skip("the data sets are not at hand")
    return folder


@pytest.fixture(scope="session")
def chat_template():
    """The text of a chat template that trl ships, by name."""
    return template_text


@pytest.fixture
def renderer(byte_tokenizer):
    return ChatRenderer(byte_tokenizer)
