"""Conversations of several shapes are rendered for the certificate; those that a template refuses are left out."""

from transformers import AutoTokenizer

from mlflow_finetune_plugin.base_models.files import EMBEDDED_FOLDER
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.logged_models.prompt_shapes import SHAPES, render_shapes

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer_with(template):
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)
    tokenizer.chat_template = template
    return tokenizer


def test_shapes_have_the_token_ids_of_training():
    tokenizer = tokenizer_with(ChatRenderer(AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)).chat_template)
    shapes = {rendering["shape"]: rendering for rendering in render_shapes(tokenizer, 128)}
    messages = [*SHAPES["several turns"], {"role": "assistant", "content": "A plum."}]
    example = ChatRenderer(tokenizer).encode(messages)[-1]
    assert shapes["several turns"]["prompt_ids"] == list(example.input_ids[: example.last_turn()[0]])
    assert {"a system turn", "several turns", "unusual characters"} <= set(shapes)


def test_a_shape_that_the_template_refuses_is_left_out():
    guard = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    shapes = {rendering["shape"] for rendering in render_shapes(tokenizer_with(guard + CHATML), 128)}
    assert "a system turn" not in shapes
    assert "several turns" in shapes


def test_long_prompts_and_templates_with_a_date_are_left_out():
    assert render_shapes(tokenizer_with(CHATML), 5) == []
    assert render_shapes(tokenizer_with("{{ strftime_now('%d') }}" + CHATML), 128) == []
