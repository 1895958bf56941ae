"""The logged adapter as an MLflow model. This file travels inside the model and needs nothing of mlflow-finetune.

    model = mlflow.pyfunc.load_model("models:/my-bot@challenger")
    model.predict(["How do I reset my password?"])
    model.predict([{"messages": [{"role": "user", "content": "..."}]}], params={"max_new_tokens": 64})

A reward model (``kind`` in its card) answers nothing: ``predict`` returns one score for each row, higher for a better answer.

    model.predict([{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}])
    model.predict([{"prompt": "...", "completion": "..."}])

The base model is found, in this order: ``model_config={"base_model": FOLDER_OR_HUB_NAME}``, the folder used in training,
the hub name and revision. Its content digest must be that of training (``model_config={"verify_base": False}`` skips
reading the weights twice), and it is quantised as in training.
"""

import importlib
import json
import logging
from pathlib import Path
from typing import Any

import mlflow
from mlflow.pyfunc import PythonModel


class FinetunedModel(PythonModel):
    """Base, adapter, tokenizer and chat template as they were trained together. ``model`` is a PeftModel."""

    def load_context(self, context: Any) -> None:
        """Loads everything. Raises FileNotFoundError for a base that cannot be found, ValueError for another base."""
        from peft import PeftModel
        from transformers import AutoTokenizer

        settings = context.model_config or {}
        self.card = json.loads(Path(context.artifacts["card"]).read_text(encoding="utf-8"))
        override = settings.get("base_model")
        base = _base_folder(self.card["base_model"], None if override == self.card["base_model"]["name"] else override)
        if settings.get("verify_base", True):
            _verify(base, self.card["base_model"]["digest"])
        for name in self.card.get("imports", []):  # files beside this one that teach PEFT the adapter's method
            importlib.import_module(name)
        self.tokenizer = AutoTokenizer.from_pretrained(context.artifacts["tokenizer"])
        self.processor = None
        if self.card.get("sees"):
            from transformers import AutoProcessor

            self.processor = AutoProcessor.from_pretrained(context.artifacts["tokenizer"])
        model = _load_base(base, self.card["base_model"], scores=self._scores, sees=bool(self.card.get("sees")))
        self.model = PeftModel.from_pretrained(model, context.artifacts["adapter"])
        if not self._scores:
            self.model.get_base_model().generation_config = _no_generation_config()
        self.model.eval()

    @property
    def _virtual_token_ids(self) -> list[int]:
        """What an adapter of virtual tokens reads in front of every prompt."""
        return list(getattr(self.model.get_input_embeddings(), "virtual_token_ids", ()))

    @property
    def _scores(self) -> bool:
        return bool(self.card.get("kind") == "reward")

    def predict(
        self, context, model_input, params=None
    ):  # no type hints: MLflow would check them instead of the signature
        """Answers, one per row. Rows are texts, ``{"prompt": text}`` or ``{"messages": [...]}``; a DataFrame works too.

        The content of a user turn may be a list of parts, as in OpenAI's API: ``{"type": "text", "text": ...}``, and of a model whose base
        sees also ``{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}``. Nothing is fetched from the network.

        Beside ``messages``, a row may have ``tools`` (a list of functions) and ``chat_template_kwargs`` (a dict).

        ``params``: max_new_tokens, temperature (0 = the likeliest token, the default), top_p, batch_size.

        A reward model returns a score for each row instead: of the last of its ``messages``, or of its ``completion``.
        """
        if self._scores:
            return self._rewards(model_input, int((params or {}).get("batch_size", 16)))
        options = {
            "max_new_tokens": self.card["max_new_tokens"],
            "temperature": 0.0,
            "top_p": 1.0,
            "batch_size": 16,
            **(params or {}),
        }
        conversations = _conversations(model_input)
        if self.processor is not None:
            return self._answers_about_pictures(conversations, options)
        prompts = [self._prompt_ids(*conversation) for conversation in conversations]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        answers = [""] * len(prompts)
        for start in range(0, len(order), int(options["batch_size"])):
            rows = order[start : start + int(options["batch_size"])]
            for row, answer in zip(rows, self._generate([prompts[row] for row in rows], options), strict=True):
                answers[row] = answer
        return answers

    def _answers_about_pictures(
        self, conversations: list[tuple[list[dict[str, Any]], dict[str, Any]]], options: dict[str, Any]
    ) -> list[str]:
        """Answers of a base that sees; rows with and without pictures may be mixed."""
        texts, pictures, answers = [], [], []
        for messages, fields in conversations:
            turns, shown = _with_pictures(messages)
            texts.append(self._render(turns, fields, add_generation_prompt=True))
            pictures.append(shown)
        for start in range(0, len(texts), int(options["batch_size"])):
            rows = slice(start, start + int(options["batch_size"]))
            shown = [row for row in pictures[rows] if row]
            inputs = self.processor(
                text=texts[rows],
                images=shown or None,
                return_tensors="pt",
                padding=True,
                padding_side="left",
                add_special_tokens=False,
            )
            inputs = inputs.to(self.model.device, dtype=next(self.model.parameters()).dtype)
            answers += self._generated(inputs, options)
        return answers

    def _prompt_ids(self, messages: list[dict[str, Any]], fields: dict[str, Any]) -> list[int]:
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **fields)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _rewards(self, model_input: Any, batch_size: int) -> list[float]:
        import torch

        rows = [self._scored_ids(number, *row) for number, row in enumerate(_scored_conversations(model_input))]
        model, rewards = self.model.get_base_model(), [0.0] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            lengths = [len(rows[i]) for i in chosen]
            width = max(lengths)
            # Padded on the right, which no token reads. The model's own forward pass finds the last token by its id, which is
            # another one where the end-of-turn token also pads.
            ids = torch.tensor([rows[i] + [0] * (width - len(rows[i])) for i in chosen], device=self.model.device)
            mask = torch.tensor(
                [[1] * n + [0] * (width - n) for n in lengths], device=self.model.device
            )  # (batch, seq)
            with torch.inference_mode():
                backbone = getattr(model, model.base_model_prefix)
                hidden = backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
                last = hidden[torch.arange(len(chosen), device=ids.device), mask.sum(1) - 1]  # (batch, hidden)
                scores = model.score(last.float())[:, 0].float().tolist()
            for i, score in zip(chosen, scores, strict=True):
                rewards[i] = score
        return rewards

    def _scored_ids(self, number: int, messages: list[dict[str, Any]], fields: dict[str, Any]) -> list[int]:
        """The tokens of a conversation up to the end of its last turn, as in training."""
        prompt = self._render(messages[:-1], fields, add_generation_prompt=True)
        whole = self._render(messages, fields, add_generation_prompt=False)
        if not whole.startswith(prompt):  # the template changes the prompt when it writes the answer
            content = messages[-1]["content"].strip()
            whole = prompt + whole[whole.rfind(content) :] if content in whole else whole
        start, ids = self._ids(prompt), self._ids(whole)
        if ids[: len(start)] != start:  # one token covers the border
            ids = start + self._answer_ids(start, whole[len(prompt) :], self._decoded(ids))
        ids = _through_stop(ids, self.card["stop_token_ids"], after=len(start))
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and len(self._virtual_token_ids) + len(ids) > limit:
            raise ValueError(f"row {number} has {len(ids)} tokens, more than the base's {limit}; fix: shorten it")
        return [*self._virtual_token_ids, *ids]

    def _answer_ids(self, start: list[int], rest: str, whole: str) -> list[int]:
        """The tokens of a text after ``start``, so that both decode to ``whole``, as training tokenized them.

        Sentencepiece-like tokenizers put a blank before every text. So the text is also tokenized after a leading character that is
        then removed, unless that character became one token with the text after it.
        """
        for lead in ("", "\n", "0", "a"):
            before, both = self._ids(lead), self._ids(lead + rest)
            answer = both[len(before) :]
            if both[: len(before)] == before and self._decoded(start + answer) == whole:
                return answer
        return self._ids(rest)

    def _decoded(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _render(self, messages: list[dict[str, Any]], fields: dict[str, Any], **options: Any) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **options, **fields))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _generate(self, prompts: list[list[int]], options: dict[str, Any]) -> list[str]:
        import torch

        prompts = [[*self._virtual_token_ids, *prompt] for prompt in prompts]
        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        device = self.model.device
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)  # (batch, seq)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)  # (batch, seq)
        return self._generated({"input_ids": ids, "attention_mask": mask}, options)

    def _generated(self, inputs: Any, options: dict[str, Any]) -> list[str]:
        """Answers to prompts that are padded on the left; (batch, seq)."""
        import torch
        from transformers import GenerationConfig

        sampled = float(options["temperature"]) > 0
        settings = GenerationConfig(
            max_new_tokens=int(options["max_new_tokens"]),
            do_sample=sampled,
            eos_token_id=self.card["stop_token_ids"],
            pad_token_id=self.tokenizer.pad_token_id,
            **(
                {"temperature": float(options["temperature"]), "top_p": float(options["top_p"]), "top_k": 0}
                if sampled
                else {}
            ),
        )
        with torch.inference_mode():
            output = self.model.generate(**inputs, generation_config=settings)
        return [self._text(row) for row in output[:, inputs["input_ids"].shape[1] :].tolist()]

    def _text(self, tokens: list[int]) -> str:
        """An answer without its stop token and without what the chat template writes before every answer."""
        from answer_text import decoded_answer

        return decoded_answer(
            self.tokenizer, _until_stop(tokens, self.card["stop_token_ids"]), self.card["answer_prefix"]
        )


def _no_generation_config() -> Any:
    """What the base's own config asks for (sampling, penalties) would fill whatever a call leaves open."""
    from transformers import GenerationConfig

    return GenerationConfig()


def _until_stop(tokens: list[int], stops: list[int]) -> list[int]:
    return tokens[: next((i for i, token in enumerate(tokens) if token in stops), len(tokens))]


def _through_stop(ids: list[int], stops: list[int], *, after: int) -> list[int]:
    """The ids up to the first end-of-turn token of the answer; it is added where the template writes none."""
    end = next((i for i in range(after, len(ids)) if ids[i] == stops[0]), None)
    return [*ids, stops[0]] if end is None else ids[: end + 1]


def _scored_conversations(model_input: Any) -> list[tuple[list[dict[str, Any]], dict[str, Any]]]:
    """The turns of each row, of which the last is scored, and what else its chat template takes."""
    rows = model_input.to_dict("records") if hasattr(model_input, "columns") else model_input
    conversations = []
    for number, row in enumerate([rows] if isinstance(rows, (str, dict)) else rows):
        if not isinstance(row, dict):
            raise ValueError(
                f"row {number} is a {type(row).__name__}; fix: a dict with messages, or with prompt and completion"
            )
        turns = _turns(row.get("messages"), "user")
        if row.get("messages") is None or isinstance(row.get("messages"), float):
            turns = [*_turns(row.get("prompt"), "user"), *_turns(row.get("completion"), "assistant")]
        if len(turns) < 2 or turns[-1].get("role") != "assistant":
            raise ValueError(
                f"row {number} has no answer to score; fix: messages that end with an assistant turn, or prompt and completion"
            )
        conversations.append((turns, _template_fields(row)))
    return conversations


def _turns(value: Any, role: str) -> list[dict[str, Any]]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return [_turn(message) for message in value] if isinstance(value, (list, tuple)) or hasattr(value, "tolist") else []


def _conversations(model_input: Any) -> list[tuple[list[dict[str, Any]], dict[str, Any]]]:
    """The turns of each row, and what else its chat template takes."""
    rows = model_input.to_dict("records") if hasattr(model_input, "columns") else model_input
    conversations = []
    for row in [rows] if isinstance(rows, (str, dict)) else rows:
        if isinstance(row, str):
            conversations.append(([{"role": "user", "content": row}], {}))
        elif not isinstance(row, dict):
            raise ValueError(f"a row is a text, or a dict with `prompt` or `messages`; got {type(row).__name__}")
        elif isinstance(row.get("messages"), (list, tuple)) or hasattr(row.get("messages"), "tolist"):
            conversations.append(([_turn(message) for message in row["messages"]], _template_fields(row)))
        elif isinstance(row.get("prompt"), str):
            conversations.append(([{"role": "user", "content": row["prompt"]}], _template_fields(row)))
        else:
            raise ValueError(f"a row needs `prompt` (text) or `messages` (list of role and content); got {sorted(row)}")
    return conversations


def _with_pictures(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Any]]:
    """The turns as chat templates read them, and their pictures, decoded as in training."""
    turns, pictures = [], []
    for turn in messages:
        content = turn.get("content")
        if hasattr(content, "tolist"):  # a list of parts in a DataFrame
            content = content.tolist()
        if not isinstance(content, list):
            turns.append(turn)
            continue
        parts = []
        for part in content:
            if part.get("type") == "image_url":
                pictures.append(_picture(part["image_url"]))
                parts.append({"type": "image"})
            elif part.get("type") == "text":
                parts.append({"type": "text", "text": part["text"]})
            else:
                raise ValueError(f"a part of type {part.get('type')!r}; fix: text or image_url")
        turns.append({**turn, "content": parts})
    return turns, pictures


def _picture(image_url: Any) -> Any:
    import base64

    from picture import Picture

    url = image_url["url"] if isinstance(image_url, dict) else image_url
    head, _, content = str(url).partition(";base64,")
    if not head.startswith("data:image/") or not content:
        raise ValueError(
            f"{str(url)[:60]} is not a data URL of a picture; fix: data:image/png;base64,... (nothing is fetched from the network)"
        )
    return Picture.of(base64.b64decode(content)).pixels()


def _template_fields(row: dict[str, Any]) -> dict[str, Any]:
    """Tools and settings of a chat template. A DataFrame holds NaN or None where a row has none."""
    tools = row.get("tools")
    tools = tools.tolist() if hasattr(tools, "tolist") else tools
    settings = row.get("chat_template_kwargs")
    fields = dict(settings) if isinstance(settings, dict) else {}
    return (
        {**fields, "tools": [_tool(tool) for tool in tools]} if isinstance(tools, (list, tuple)) and tools else fields
    )


def _tool(tool: Any) -> dict[str, Any]:
    """A tool as servers hand it to a chat template: in this order, and with null for what is missing."""
    function = dict(tool)["function"]
    parts = {key: function.get(key) for key in ("name", "description", "parameters")}
    strict = {"strict": function["strict"]} if function.get("strict") is not None else {}
    return {"type": "function", "function": {**parts, **strict}}


def _turn(message: Any) -> dict[str, Any]:
    """A turn as templates expect it: the arguments of a tool call are an object, also where they came as JSON text."""
    turn = dict(message)
    if not turn.get("tool_calls"):
        return turn
    calls = [{**call, "function": dict(call["function"])} for call in turn["tool_calls"]]
    for call in calls:
        arguments = call["function"].get("arguments")
        call["function"]["arguments"] = json.loads(arguments) if isinstance(arguments, str) else arguments
    return {**turn, "content": turn.get("content") or "", "tool_calls": calls}


def _base_folder(base: dict[str, Any], override: str | None) -> Path:
    name = override or base["name"]
    for candidate in [override] if override else [base["folder"], base["name"]]:
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    if name in ("embedded", "embedded_vision") or name.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"the base model {name!r} is not here; fix: mlflow.pyfunc.load_model(uri, model_config={{'base_model': FOLDER}})"
        )
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, revision=None if override else base["revision"]))


def _verify(folder: Path, expected: str) -> None:
    from weights_digest import base_digest

    digest = base_digest(folder)
    if digest != expected:
        raise ValueError(
            f"{folder} is another base model: its digest is {digest[:12]}, the adapter was trained on {expected[:12]}; fix: give that base as model_config={{'base_model': FOLDER}}"
        )


def _attention(folder: Path, trained_with: str | None, device: str) -> str | None:
    """The kernel of training; where it is a flash kernel and not here, the one that computes the same without it."""
    from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

    checks = {"flash_attention_2": is_flash_attn_2_available, "flash_attention_3": is_flash_attn_3_available}
    if trained_with not in checks or (device == "cuda" and checks[trained_with]()):
        return trained_with
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return "eager" if config.get("attn_logit_softcapping") else "sdpa"


def _load_base(folder: Path, base: dict[str, Any], *, scores: bool, sees: bool = False) -> Any:
    """The base; with ``scores`` with a head of random values, which the adapter's file replaces; ``sees``: it reads pictures."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForSequenceClassification,
        BitsAndBytesConfig,
    )

    model_class: Any = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    if scores:
        model_class = AutoModelForSequenceClassification
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments: dict[str, Any] = {
        "dtype": getattr(torch, base["dtype"]),
        "trust_remote_code": base["trust_remote_code"],
        "use_safetensors": True,
        "attn_implementation": _attention(folder, base.get("attn_implementation"), device),
        **(_score_arguments(folder) if scores else {}),
    }
    if base["quantization"] == "nf4":
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=arguments["dtype"],
        )
    elif base["quantization"] == "int8":
        arguments["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    if base["quantization"]:
        model = _quietly(model_class.from_pretrained, scores, folder, device_map={"": device}, **arguments)
        for module in model.modules():  # as in training: bitsandbytes would repack, and round, at the first inference
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    else:
        model = _quietly(model_class.from_pretrained, scores, folder, **arguments).to(device)
    if scores:
        model.score.float()  # as in training, where bfloat16 would round a reward to three digits
    return model


def _score_arguments(folder: Path) -> dict[str, Any]:
    from weights_digest import score_model_arguments

    return {"num_labels": 1, **score_model_arguments(folder)}


def _quietly(load: Any, is_quiet: bool, *arguments: Any, **options: Any) -> Any:
    """Load a model; without transformers' warning that the score head is random, as the adapter's file has the trained one."""
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR if is_quiet else level)
    try:
        return load(*arguments, **options)
    finally:
        logger.setLevel(level)


mlflow.models.set_model(FinetunedModel())
