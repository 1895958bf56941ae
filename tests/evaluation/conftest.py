"""Tiny causal models: two architectures with random weights, and a trained one where its folder is present."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

STORIES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "models" / "stories260k-hd64"


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Matrices this small gain nothing from a second thread, and on a busy machine its waiting costs a lot."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.4,  # wide enough that answers differ between prompts
    )
    return LlamaForCausalLM(config).eval()


def random_gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.4)
    return GPT2LMHeadModel(config).eval()


def trained_stories():
    if not STORIES.is_dir():
        pytest.skip(f"no model at {STORIES.name} beside the repository")
    return AutoModelForCausalLM.from_pretrained(STORIES, dtype=torch.float32).eval()


@pytest.fixture(params=[random_llama, random_gpt2, trained_stories], ids=lambda build: build.__name__)
def model(request):
    return request.param()


@pytest.fixture(scope="session")
def build_llama():
    """For tests that need the same weights twice."""
    return random_llama


@pytest.fixture
def llama():
    return random_llama()


@pytest.fixture
def stories():
    model = trained_stories()
    return model, AutoTokenizer.from_pretrained(STORIES)
