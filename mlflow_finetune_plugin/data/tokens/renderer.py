"""Convert conversations to token ids and loss masks, so that training sees exactly what inference will see.

For an assistant turn, inference shows the model ``ids(P)``: the tokens of P, the conversation before that turn rendered
with the generation prompt. The model then has to write the rest, R, of the rendering F of the conversation up to and
including the turn, until its end-of-turn token. So an example is ``ids(P)`` without loss, then the tokens of R with
loss up to and including the end-of-turn token, then what the template puts behind it (a line break, say) without loss.

*What the template puts between the generation prompt and the answer* (Qwen3 writes an empty think block there) is part
of R and carries loss: a server renders P without it, so the model has to write it itself. ``answer_prefix`` holds it, so
that it can be removed from generated text before a comparison with a reference.

*Several turns* are one example when that changes nothing, that is when P and F of every turn are prefixes of the whole
rendering, as text and as tokens. Otherwise (Qwen3 strips think blocks from earlier turns) the conversation is unrolled:
one example per assistant turn, each with loss on its last turn only. An assistant turn that the file excludes from learning
(``turns/chat.py``) is part of the prompt of the turns after it.

*Tokens at the border.* F is tokenized as one text. If its tokens do not start with ``ids(P)`` (one token covers the border,
or P's trailing blanks are tokenized differently at the end of a text), P and R are tokenized apart, provided that the
joined tokens still decode to the same text; otherwise the row is a fault.

*A document* (a single assistant turn) is used without the template: its tokens and the end-of-sequence token carry loss, except
the first token, which nothing predicts. That is the beginning-of-sequence token if the tokenizer writes one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.base_models.files import generation_ends
from mlflow_finetune_plugin.data.conversations.conversion import is_document
from mlflow_finetune_plugin.data.conversations.row_faults import RowFault
from mlflow_finetune_plugin.data.conversations.templates import Template, TemplateSettings, prepends_bos
from mlflow_finetune_plugin.data.conversations.texts import REASONING_FIELDS
from mlflow_finetune_plugin.data.conversations.turns.chat import is_learnt, unmarked
from mlflow_finetune_plugin.data.conversations.turns.rendered import (
    NO_PICTURES,
    STOP_INSIDE,
    RenderedTurn,
    checked_turns,
    default_turns,
)
from mlflow_finetune_plugin.data.tokens.answer_tokens import AnswerFinder, AnswerSpan, Piece
from mlflow_finetune_plugin.data.tokens.trained_tokens import untrained_reason
from mlflow_finetune_plugin.errors import BaseModelError
from mlflow_finetune_plugin.evaluation.answer_text import decoded_answer
from mlflow_finetune_plugin.evaluation.results import Message
from mlflow_finetune_plugin.images import PictureInputs, PictureStore
from mlflow_finetune_plugin.images.store import Pictures
from mlflow_finetune_plugin.images.turns import pictures_of

STRADDLES = "tokens straddle the answer's start"
NO_END_OF_TURN = "no end-of-turn token"

_PROBE_ANSWER = "pear"
_PROBE_REASONING = "It grows on a tree"
_PROBE_SYSTEM: Message = {"role": "system", "content": "Be brief."}
_DATED = {(True, True): "", (True, False): " without a system turn", (False, True): " with a system turn"}
"""Which prompts have the current date, by whether those without and with a system turn have it."""
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "pick",
        "description": "Pick a fruit",
        "parameters": {"type": "object", "properties": {"fruit": {"type": "string"}}, "required": ["fruit"]},
    },
}
# Mistral's templates take ids of nine characters only.
_PROBE_CALL = {
    "type": "function",
    "id": "picking00",
    "function": {"name": "pick", "arguments": {"fruit": _PROBE_ANSWER}},
}
_PROBE: list[Message] = [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": _PROBE_ANSWER}]


@dataclass(frozen=True, slots=True)
class Example:
    """One training sequence.

    Attributes:
        input_ids: The token ids.
        loss_mask: 1 for each token that carries loss, else 0.
        is_boundary_split: Whether prompt and answer were tokenized apart.
    """

    input_ids: list[int]
    loss_mask: list[int]
    is_boundary_split: bool = False
    pictures: tuple[str, ...] = ()

    def last_turn(self) -> tuple[int, int]:
        """Return where the last assistant turn starts and ends in ``input_ids``, including its end-of-turn token."""
        end = len(self.loss_mask)
        while end and not self.loss_mask[end - 1]:
            end -= 1
        start = end
        while start and self.loss_mask[start - 1]:
            start -= 1
        return start, end


class ChatRenderer:
    """Renders and tokenizes conversations with one tokenizer and one fixed chat template."""

    def __init__(
        self,
        tokenizer: Any,
        chat_template: str | None = None,
        *,
        weights: Path | None = None,
        template_settings: TemplateSettings | None = None,
        pictures: PictureInputs | None = None,
    ) -> None:
        """Create a renderer.

        Args:
            tokenizer: A fast Hugging Face tokenizer with an eos_token.
            chat_template: A Jinja template; None means the tokenizer's own, or the packaged one.
            weights: The base's folder. Its output embedding shows which tokens the base was trained on, and its generation config
                may name further tokens that end an answer.
            template_settings: Values of the template's variables, such as ``enable_thinking``.
            pictures: The processor of a base that sees; None of another.

        Raises:
            BaseModelError: the tokenizer or the template cannot be used.
        """
        self.weights = weights
        self.pictures = pictures
        self.picture_store: Pictures = PictureStore(Path("pictures"))
        """Holds the pictures that conversations name; ``data.preparation`` replaces it by that of its folder."""
        if not getattr(tokenizer, "is_fast", False):
            raise BaseModelError(
                f"the tokenizer {type(tokenizer).__name__} is a slow tokenizer, which cannot map tokens to characters; "
                "fix: use a base model that has a tokenizer.json"
            )
        if tokenizer.eos_token_id is None:
            raise BaseModelError(
                "the tokenizer has no eos_token, so an answer could not end; fix: set tokenizer.eos_token"
            )
        self.tokenizer = tokenizer
        self._template = Template(tokenizer, chat_template, template_settings)
        self.chat_template, self.template_source = self._template.text, self._template.source
        self._document_start = [tokenizer.bos_token_id] if prepends_bos(tokenizer) else []
        self._template_settings = dict(template_settings or {})
        self._finder = AnswerFinder(tokenizer)
        self._probe()
        self._turn_ends = {self.end_of_turn_token_id, *self._end_of_call()}
        ends = (self.end_of_turn_token_id, tokenizer.eos_token_id, *sorted(self._turn_ends))
        # Engines also end an answer at the end tokens of the base's generation config, so the proof and pyfunc have to.
        self.stop_token_ids: tuple[int, ...] = tuple(dict.fromkeys((*ends, *generation_ends(weights))))
        self.untrained_end_of_turn = untrained_reason(weights, self.end_of_turn_token_id) if weights else None
        self._stop_texts = tuple(tokenizer.convert_ids_to_tokens(list(dict.fromkeys(ends))))

    @property
    def notes(self) -> tuple[str, ...]:
        """Describe unusual properties of this template, for the data report."""
        texts = []
        if self.appends_eos:
            token = self.tokenizer.eos_token
            texts.append(
                f"the chat template does not end answers with a stop token, so {token} is appended to each answer and trained on"
            )
        if self.answer_prefix:
            which = "each answer without reasoning" if self.writes_reasoning else "each answer"
            texts.append(
                f"the chat template writes {self.answer_prefix!r} before {which}, and the model learns to write it"
            )
        if self.rewrites_prompt:
            texts.append(
                "the chat template changes the prompt when it writes the answer; the model learns to answer the prompt as a "
                "server renders it"
            )
        if self._template_settings:
            listed = ", ".join(f"{name}: {value!r}" for name, value in sorted(self._template_settings.items()))
            texts.append(f"the chat template is rendered with {listed}, unless a request says otherwise")
        is_dated = (
            self._template.changes_with_date(_PROBE),
            self._template.changes_with_date([_PROBE_SYSTEM, *_PROBE]),
        )
        if any(is_dated):
            texts.append(
                f"the chat template writes the current date into prompts{_DATED[is_dated]}, so these change every day"
            )
        return tuple(texts)

    def answer_text(self, ids: list[int]) -> str:
        """Return the text of an answer's tokens as the proof reads a generated answer: without special tokens and prefix."""
        return decoded_answer(self.tokenizer, ids, self.answer_prefix)

    def encode(self, messages: Sequence[Message]) -> list[Example]:
        """Return the examples of one conversation.

        Raises:
            RowFault: the template or the tokenizer changes the conversation.
        """
        (encoded,) = self.encode_batch([messages])
        if isinstance(encoded, RowFault):
            raise encoded
        return encoded

    def encode_batch(self, conversations: Sequence[Sequence[Message]]) -> list[list[Example] | RowFault]:
        """Encode many conversations. Several examples of one conversation mean that it was unrolled."""
        if not any(map(is_document, conversations)):
            return self._encode_chats(conversations)
        chats = iter(self._encode_chats([messages for messages in conversations if not is_document(messages)]))
        texts = [messages[0]["content"] for messages in conversations if is_document(messages)]
        documents = iter(self._encode_documents(texts))
        return [next(documents) if is_document(messages) else next(chats) for messages in conversations]

    def encode_prompts(self, conversations: Sequence[Sequence[Message]]) -> list[list[Example] | RowFault]:
        """Encode prompts as a server renders them, up to the start of the answer. No token carries loss."""
        turns = [unmarked(messages) for messages in conversations]
        rendered = [
            text if isinstance(text, RowFault) else self._expanded(text, pictures_of(messages))
            for text, messages in zip(self._template.render(turns, generation_prompt=True), turns, strict=True)
        ]
        texts = [text for text in rendered if isinstance(text, str)]
        ids = iter(self._finder.ids(texts))
        encoded: list[list[Example] | RowFault] = []
        for text, messages in zip(rendered, turns, strict=True):
            if isinstance(text, str):
                tokens = next(ids)
                encoded.append([Example(tokens, [0] * len(tokens), pictures=tuple(pictures_of(messages)))])
            else:
                encoded.append(text)
        return encoded

    def _encode_documents(self, texts: list[str]) -> list[list[Example] | RowFault]:
        encoded: list[list[Example] | RowFault] = []
        for text, tokens in zip(texts, self._finder.ids(texts), strict=True):
            inside = next((stop for stop in self._stop_texts if stop in text), None)
            ids = [*self._document_start, *tokens, self.tokenizer.eos_token_id]
            encoded.append(RowFault(STOP_INSIDE, inside) if inside else [Example(ids, [0] + [1] * (len(ids) - 1))])
        return encoded

    def _encode_chats(self, conversations: Sequence[Sequence[Message]]) -> list[list[Example] | RowFault]:
        planned = [self._plan(turns) for turns in self._render_turns(conversations)]
        encoded = self._encode_pieces(planned)
        again = [i for i, result in enumerate(encoded) if result is None]
        # The turns of these conversations share a text prefix but not a token prefix.
        if again:
            unrolled = [self._unrolled(turns) for turns in self._render_turns([conversations[i] for i in again])]
            for i, result in zip(again, self._encode_pieces(unrolled), strict=True):
                encoded[i] = result
        return [RowFault(STRADDLES) if result is None else result for result in encoded]

    # rendering -------------------------------------------------------------------------------------------------------

    def _render_turns(self, conversations: Sequence[Sequence[Message]]) -> list[list[RenderedTurn] | RowFault]:
        """Render P and F of every assistant turn that is trained on; the last F is the whole conversation."""
        if self._template.is_default:
            return [default_turns(messages, self._template, self._stop_texts) for messages in conversations]
        prompts: list[list[Message]] = []
        fulls: list[list[Message]] = []
        for messages in conversations:
            ends = [i for i, message in enumerate(messages) if is_learnt(message)]
            turns = unmarked(messages)
            prompts += [turns[:i] for i in ends]
            fulls += [turns[: i + 1] for i in ends]
        rendered = iter(
            zip(
                self._template.render(prompts, generation_prompt=True),
                self._template.render(fulls, generation_prompt=False),
                fulls,
                strict=True,
            )
        )
        result: list[list[RenderedTurn] | RowFault] = []
        for messages in conversations:
            mine = [next(rendered) for message in messages if is_learnt(message)]
            result.append(self._with_pictures(checked_turns(mine, self._stop_texts, self._tail)))
        return result

    def _with_pictures(self, turns: list[RenderedTurn] | RowFault) -> list[RenderedTurn] | RowFault:
        """Return the turns with all tokens of each picture in the place of its placeholder."""
        if isinstance(turns, RowFault) or self.pictures is None:
            return turns
        shown = []
        for turn in turns:
            texts = [self._expanded(text, turn.pictures) for text in (turn.prompt, turn.full)]
            fault = next((text for text in texts if isinstance(text, RowFault)), None)
            if fault is not None:
                return fault
            shown.append(RenderedTurn(str(texts[0]), str(texts[1]), turn.pictures))
        return shown

    def _expanded(self, text: str, names: Sequence[str]) -> str | RowFault:
        if self.pictures is None:
            return text
        try:
            return self.pictures.expand(text, [self.picture_store.get(name) for name in names] if names else [])
        except ValueError as error:
            return RowFault(NO_PICTURES, str(error))

    def _plan(self, turns: list[RenderedTurn] | RowFault) -> list[Piece] | RowFault:
        if isinstance(turns, RowFault) or len(turns) == 1 or self.appends_eos:
            return self._unrolled(turns)
        whole = turns[-1].full
        # Two answers without a prompt between them would be one span of loss, which nothing could take apart again.
        follow_each_other = any(len(after.prompt) <= len(turn.full) for turn, after in pairwise(turns))
        if not follow_each_other and all(whole.startswith(turn.full) for turn in turns):
            return [Piece(whole, [(len(turn.prompt), len(turn.full)) for turn in turns], turns[-1].pictures)]
        return self._unrolled(turns)

    def _unrolled(self, turns: list[RenderedTurn] | RowFault) -> list[Piece] | RowFault:
        if isinstance(turns, RowFault):
            return turns
        pieces = []
        for turn in turns:
            text = turn.full
            if self.appends_eos and self._tail and text.endswith(self._tail):
                text = text[: len(text) - len(self._tail) + len(self._tail.rstrip())]
            pieces.append(Piece(text, [(len(turn.prompt), len(text))], turn.pictures))
        return pieces

    # tokens ----------------------------------------------------------------------------------------------------------

    def _encode_pieces(self, planned: list[list[Piece] | RowFault]) -> list[list[Example] | RowFault | None]:
        """Return the examples or the fault of each conversation; None where it must be unrolled first."""
        pieces = [piece for plan in planned if not isinstance(plan, RowFault) for piece in plan]
        located = self._finder.locate(pieces)
        examples = iter([self._example(piece, *location) for piece, location in zip(pieces, located, strict=True)])
        return [plan if isinstance(plan, RowFault) else _joined([next(examples) for _ in plan]) for plan in planned]

    def _example(self, piece: Piece, ids: list[int], answers: list[AnswerSpan]) -> Example | RowFault | None:
        """Return the example of a piece, or None where it holds several answers and must be unrolled."""
        spans = [(answer.first, answer.limit) for answer in answers if answer.first is not None]
        is_split = len(spans) < len(answers)
        if is_split and len(piece.spans) > 1:
            return None
        if is_split:
            start = piece.spans[0][0]
            apart = self._tokenize_apart(piece.text[:start], piece.text[start:], self._decode(ids))
            if apart is None:
                return RowFault(STRADDLES, repr(piece.text[max(0, start - 20) : start + 20]))
            prompt, answer = apart
            ids = prompt + answer
            spans = [(len(prompt), len(ids))]
        if self.appends_eos:
            ids = [*ids, self.tokenizer.eos_token_id]
            spans = [(spans[0][0], len(ids))]
        return self._masked(ids, spans, is_split, piece.pictures)

    def _tokenize_apart(self, prompt: str, rest: str, whole: str) -> tuple[list[int], list[int]] | None:
        """Return ids of ``prompt`` and of ``rest`` that together decode to ``whole``, or None.

        Sentencepiece-like tokenizers put a blank before every text. So ``rest`` is also tokenized after a leading character
        that is then removed, unless that character became one token with the text after it.
        """
        leads = ("", "\n", "0", "a")
        alone, *tokenized = self._finder.ids([prompt, *leads, *(lead + rest for lead in leads)])
        for lead, both in zip(tokenized[: len(leads)], tokenized[len(leads) :], strict=True):
            answer = both[len(lead) :]
            if both[: len(lead)] == lead and self._decode(alone + answer) == whole:
                return alone, answer
        return None

    def _masked(
        self, ids: list[int], spans: list[tuple[int, int]], is_split: bool, pictures: tuple[str, ...]
    ) -> Example | RowFault:
        mask = [0] * len(ids)
        for start, limit in spans:
            turn = ids[start:limit]
            ends = [turn.index(token) for token in self._turn_ends if token in turn]
            if not ends:
                return RowFault(NO_END_OF_TURN)
            end = start + min(ends) + 1
            mask[start:end] = [1] * (end - start)
        return Example(ids, mask, is_split, pictures)

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    # the probe -------------------------------------------------------------------------------------------------------

    def _probe(self) -> None:
        """Render one small conversation to see how this template starts and ends an answer."""
        full = self._template.render([_PROBE], generation_prompt=False)[0]
        prompt = self._template.render([_PROBE[:1]], generation_prompt=True)[0]
        for rendered in (full, prompt):
            if isinstance(rendered, RowFault):
                raise BaseModelError(
                    f"the chat template ({self.template_source}) fails on one question with one answer: "
                    f"{rendered.detail}; fix: set another data.chat_template"
                )
        at = str(full).rfind(_PROBE_ANSWER)
        if at < 0:
            raise BaseModelError(
                f"the chat template ({self.template_source}) leaves out the assistant's answer; "
                "fix: set another data.chat_template"
            )
        self.rewrites_prompt = not str(full).startswith(str(prompt))
        behind = at + len(_PROBE_ANSWER)
        self._tail = str(full)[behind:]
        self.answer_prefix = "" if self.rewrites_prompt else str(full)[len(str(prompt)) : at]
        (encoding,) = self._finder.encodings([str(full)])
        ids = encoding.ids
        stops = {i for i, token in self._finder.added_tokens.items() if token} | {self.tokenizer.eos_token_id}
        tail = [token for i, token in enumerate(ids) if encoding.token_to_chars(i)[0] >= behind]
        end_token = next((token for token in tail if token in stops), None)
        self.appends_eos = end_token is None
        self.end_of_turn_token_id: int = self.tokenizer.eos_token_id if end_token is None else end_token
        self._finder.turn_end = None if end_token is None else self._tail
        self._template.reasoning_key = next(filter(self._writes_reasoning, REASONING_FIELDS), None)

    def _end_of_call(self) -> list[int]:
        """Return the token that ends a turn with calls, where it is another one than that of an answer (GPT-OSS)."""
        if self._template.is_default or self.appends_eos:
            return []
        calling: Message = {"role": "assistant", "content": "", "tool_calls": [_PROBE_CALL]}
        text = self._template.render([[{**_PROBE[0], "tools": [_PROBE_TOOL]}, calling]], generation_prompt=False)[0]
        if isinstance(text, RowFault) or _PROBE_ANSWER not in text:
            return []
        behind = text.rfind(_PROBE_ANSWER) + len(_PROBE_ANSWER)
        (encoding,) = self._finder.encodings([text])
        tail = [token for i, token in enumerate(encoding.ids) if encoding.token_to_chars(i)[0] >= behind]
        ends = [token for token in tail if self._finder.added_tokens.get(token)]
        return [] if self.end_of_turn_token_id in tail else ends[-1:]

    def _writes_reasoning(self, field: str) -> bool:
        """Return whether the template writes what an answer has in this field."""
        turns = [_PROBE[0], {**_PROBE[1], field: _PROBE_REASONING}]
        return _PROBE_REASONING in str(self._template.render([turns], generation_prompt=False)[0])

    @property
    def writes_reasoning(self) -> bool:
        """Whether the template writes what the model thought before its last answer."""
        return self._template.reasoning_key is not None


def _joined(results: list[Example | RowFault | None]) -> list[Example] | RowFault | None:
    """Return the examples of a conversation, or its first fault, or None where it must be unrolled."""
    fault = next((example for example in results if isinstance(example, RowFault)), None)
    if fault is not None:
        return fault
    examples = [example for example in results if isinstance(example, Example)]
    return examples if len(examples) == len(results) else None
