"""The tokens of a prompt with pictures, which carry what the model needs to see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from mlflow_finetune_plugin.images.model_inputs import PictureInputs
from mlflow_finetune_plugin.images.store import Pictures


class PicturePrompt(tuple[int, ...]):
    """A prompt's token ids; ``names`` are its pictures in ``store``, and ``inputs`` is the processor of the base.

    Generation and scoring take prompts as sequences of ids, so a prompt with pictures goes wherever a prompt goes.
    """

    names: tuple[str, ...]
    inputs: PictureInputs
    store: Pictures

    def __new__(cls, ids: Sequence[int], names: Sequence[str], inputs: PictureInputs, store: Pictures) -> Self:
        prompt = super().__new__(cls, ids)
        prompt.names, prompt.inputs, prompt.store = tuple(names), inputs, store
        return prompt


def picture_tensors(prompts: Sequence[Sequence[int]], ids: Any) -> dict[str, Any]:
    """Return the model's inputs beside the tokens (``PictureInputs.tensors``); empty if no prompt has a picture.

    Args:
        prompts: The prompts of a batch.
        ids: The batch's tokens, (prompts, tokens).
    """
    with_pictures = [prompt for prompt in prompts if isinstance(prompt, PicturePrompt)]
    if not with_pictures:
        return {}
    shown = [
        [prompt.store.get(name) for name in prompt.names] if isinstance(prompt, PicturePrompt) else []
        for prompt in prompts
    ]
    return with_pictures[0].inputs.tensors(shown, ids)
