"""Data files to what a trainer reads: token ids and labels in a memory-mapped Arrow file, with a report and a digest.

Rows are read, rendered and written in batches, so memory does not grow with the rows but for 24 bytes each (hashes, for
duplicates and leakage) and the held-out rows. Nothing is reordered, and every row that is left out is counted with its
reason and line.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets

from mlflow_finetune_plugin.data.layouts import Layout, RowFault, conversation, detect_layout
from mlflow_finetune_plugin.data.rendering import ChatRenderer, Example
from mlflow_finetune_plugin.data.report import MAX_LINES, DataReport, FileReport, SkipCount
from mlflow_finetune_plugin.data.sources import peek, read_rows
from mlflow_finetune_plugin.data.split import Split, hash_row, hash_text, sample_of_eval, split_of_train
from mlflow_finetune_plugin.data.token_file import TokenFile
from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.types import EvalRow, Message

BATCH_ROWS = 1000
NO_LOSS_TOKEN = "no loss token left"
OVER_LENGTH = "over length"
OVER_EVAL_LIMIT = "over max_eval_rows"

_MASK_SAMPLES = 5


@dataclass(frozen=True)
class DataFile:
    """A file and the task its rows belong to; ``weight`` 2 uses each row twice, 0.5 a seeded half of the rows."""

    path: Path
    task: str
    weight: float = 1.0


@dataclass(frozen=True)
class DataRequest:
    """What to prepare. ``eval``: files, a fraction of train's rows, or None for a tenth, at most 500 rows.

    ``train`` may be empty where only held-out files are wanted.
    """

    train: tuple[DataFile, ...]
    eval: tuple[DataFile, ...] | float | None
    layout: str
    columns: Mapping[str, str]
    overlength: Literal["error", "drop", "truncate"]
    max_length: int
    max_eval_rows: int | None
    seed: int


@dataclass(frozen=True)
class PreparedData:
    """``train`` and ``eval_dataset`` hold input_ids, labels (-100 where no loss) and task; not to be prepared again."""

    train: datasets.Dataset
    eval_rows: list[EvalRow]
    eval_dataset: datasets.Dataset
    report: DataReport
    digest: str
    eval_digest: str


def prepare(
    request: DataRequest, renderer: ChatRenderer, folder: Path, on_progress: Callable[[int], None] | None = None
) -> PreparedData:
    """Read, check, render and write; ``on_progress`` gets the number of rows done so far."""
    _check_request(request)
    folder.mkdir(parents=True, exist_ok=True)
    run = _Preparation(request, renderer, folder, on_progress or (lambda rows: None))
    with run.train, run.eval:
        for file in request.train:
            run.read(file, "train")
        for file in request.eval if isinstance(request.eval, tuple) else ():
            run.read(file, "eval")
        run.check_usable()
    return run.result()


def _check_request(request: DataRequest) -> None:
    if not request.train and not isinstance(request.eval, tuple):
        raise DataError("no data file to train on; fix: data.train: FILE")
    for file in (*request.train, *(request.eval if isinstance(request.eval, tuple) else ())):
        if not (math.isfinite(file.weight) and file.weight > 0):
            raise DataError(f"{file.path}: weight {file.weight} is not a positive number; fix: leave the file out")
    if isinstance(request.eval, float | int) and not 0 < request.eval < 1:
        raise DataError(f"data.eval: {request.eval} is not a fraction between 0 and 1; fix: 0.1, or a file")


def _split(request: DataRequest) -> Split:
    """From a first reading, which also finds broken files before any work is done."""
    hashes = array("Q")
    if isinstance(request.eval, tuple):
        for file in request.eval:
            hashes.extend(hash_text(_place(file, line), request.seed) for line, _ in read_rows(file.path))
        return sample_of_eval(hashes, request.max_eval_rows, request.seed)
    for file in request.train:
        layout = _layout(file, request)
        for _, row in read_rows(file.path):
            try:
                hashes.append(hash_row(conversation(layout, row).messages, request.seed))
            except RowFault:
                continue  # counted with its reason when the row is read to be encoded
    return split_of_train(hashes, request.eval, request.max_eval_rows, request.seed)


def _place(file: DataFile, line: int) -> str:
    return f"{file.path.name} {file.task} {line}"


def _layout(file: DataFile, request: DataRequest) -> Layout:
    try:
        return detect_layout((row for _, row in peek(file.path)), request.columns, request.layout)
    except DataError as error:
        if str(file.path) in str(error):
            raise
        raise DataError(f"{file.path}: {error}") from error


# one file ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    line: int
    messages: tuple[Message, ...]
    hash: int
    side: Literal["train", "eval"]


@dataclass
class _FileCount:
    """What happened to the rows of one file so far."""

    file: DataFile
    role: str
    layout: Layout
    rows_read: int = 0
    kept: int = 0
    rows_after_weight: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    lines: dict[str, list[int]] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)

    def skip(self, line: int, reason: str, detail: str = "") -> None:
        self.reasons[reason] += 1
        lines = self.lines.setdefault(reason, [])
        if len(lines) < MAX_LINES:
            lines.append(line)
        self.details.setdefault(reason, detail)

    def report(self) -> FileReport:
        skipped = tuple(
            SkipCount(reason, rows, tuple(self.lines[reason]), self.details[reason])
            for reason, rows in self.reasons.most_common()
        )
        return FileReport(
            name=_shown_path(self.file.path),
            task=self.file.task,
            role=self.role,
            layout=str(self.layout),
            rows_read=self.rows_read,
            kept=self.kept,
            skipped=skipped,
            weight=self.file.weight,
            rows_after_weight=self.rows_after_weight,
        )


def _shown_path(path: Path) -> str:
    """The path as it was given, or only the name of an absolute one: reports are shared, home folders are not."""
    return path.name if path.is_absolute() else str(path)


class _Preparation:
    """The state of one ``prepare``: both sides, the counts per file, the faults that stop it at the end."""

    def __init__(
        self, request: DataRequest, renderer: ChatRenderer, folder: Path, on_progress: Callable[[int], None]
    ) -> None:
        self._request, self._renderer, self._on_progress = request, renderer, on_progress
        self.template_digest = hashlib.sha256(renderer.chat_template.encode()).hexdigest()
        self.train = TokenFile(folder / "train.arrow", self.template_digest)
        self.eval = TokenFile(folder / "eval.arrow", self.template_digest)
        self.eval_rows: list[EvalRow] = []
        self._files: list[_FileCount] = []
        self._rows_done = 0
        self._counts: Counter[str] = Counter()
        self._over_length: list[tuple[str, int, int]] = []
        self._samples: dict[int, list[Example]] = {}
        self._split = _split(request)

    def read(self, file: DataFile, role: Literal["train", "eval"]) -> None:
        count = _FileCount(file, role, _layout(file, self._request))
        self._files.append(count)
        batch: list[_Row] = []
        for line, row in read_rows(file.path):
            count.rows_read += 1
            try:
                made = self._row(file, role, line, conversation(count.layout, row).messages)
            except RowFault as fault:
                count.skip(line, fault.reason, fault.detail)
                continue
            batch.append(made)
            if len(batch) == BATCH_ROWS:
                self._encode(batch, count)
                batch = []
        self._encode(batch, count)

    def _row(self, file: DataFile, role: Literal["train", "eval"], line: int, messages: tuple[Message, ...]) -> _Row:
        row_hash = hash_row(messages, self._request.seed)
        if role == "eval":
            if not self._split.holds_out(hash_text(_place(file, line), self._request.seed)):
                raise RowFault(OVER_EVAL_LIMIT)
            return _Row(line, messages, row_hash, "eval")
        to_eval = not isinstance(self._request.eval, tuple) and self._split.holds_out(row_hash)
        return _Row(line, messages, row_hash, "eval" if to_eval else "train")

    def _encode(self, batch: list[_Row], count: _FileCount) -> None:
        written: dict[str, list[Example]] = {"train": [], "eval": []}
        encoded = self._renderer.encode_batch([row.messages for row in batch])
        for row, result in zip(batch, encoded, strict=True):
            if isinstance(result, RowFault):
                count.skip(row.line, result.reason, result.detail)
            else:
                written[row.side] += self._keep(row, result, count)
        for side, examples in ((self.train, written["train"]), (self.eval, written["eval"])):
            side.write(examples, [count.file.task] * len(examples))
        self._rows_done += len(batch)
        self._on_progress(self._rows_done)

    def _keep(self, row: _Row, examples: list[Example], count: _FileCount) -> list[Example]:
        """The examples to write for one row, as often as its weight says; none when the row is left out."""
        whole = examples[-1]
        examples = self._fitted(row, examples, count)
        if not examples:
            return []
        count.kept += 1
        self._counts["unrolled"] += len(examples) > 1
        self._counts["boundary_splits"] += sum(example.is_boundary_split for example in examples)
        side = self.train if row.side == "train" else self.eval
        side.note_row(row.messages, row.hash)
        if row.side == "eval":
            self.eval_rows.append(_eval_row(row, whole, count.file))
            count.rows_after_weight += 1
            return examples
        samples = self._samples.setdefault(len(self._files), [])
        if len(samples) < _MASK_SAMPLES:
            samples.append(examples[-1])
        times = self._copies(row, count.file)
        count.rows_after_weight += times
        return examples * times

    def _fitted(self, row: _Row, examples: list[Example], count: _FileCount) -> list[Example]:
        """The examples as they are when all fit into max_length, else what ``overlength`` says."""
        limit = self._request.max_length
        longest = max(len(example.input_ids) for example in examples)
        if longest <= limit:
            return examples
        self._counts["over_length"] += 1
        if self._request.overlength == "truncate":
            return self._truncated(row, examples, count)
        count.skip(row.line, OVER_LENGTH, f"{longest} tokens")
        if self._request.overlength == "error":
            self._over_length.append((_shown_path(count.file.path), row.line, longest))
        return []

    def _truncated(self, row: _Row, examples: list[Example], count: _FileCount) -> list[Example]:
        limit = self._request.max_length
        kept = []
        for example in examples:
            if len(example.input_ids) <= limit:
                kept.append(example)
                continue
            start, end = example.last_turn()
            cut = Example(example.input_ids[:limit], example.loss_mask[:limit], example.is_boundary_split)
            self._counts["truncated"] += 1
            self._counts["truncated_end_of_turn"] += end > limit
            self._counts["truncated_answer"] += start >= limit
            if any(cut.loss_mask):
                kept.append(cut)
        prompt_fills_it = examples[-1].last_turn()[0] >= limit  # no room to generate an answer
        if not kept or (row.side == "eval" and prompt_fills_it):
            count.skip(row.line, NO_LOSS_TOKEN)
            return []
        return kept

    def _copies(self, row: _Row, file: DataFile) -> int:
        """How often a row is used: the weight's whole part, and once more for a seeded share of the rows."""
        whole = int(file.weight)
        rest = file.weight - whole
        if not rest:
            return whole
        return whole + (hash_text(_place(file, row.line), self._request.seed) < rest * 2**64)

    # the end ---------------------------------------------------------------------------------------------------------

    def check_usable(self) -> None:
        if self._over_length:
            raise DataError(self._over_length_message())
        if self._request.train and not self.train.examples:
            raise DataError(f"no row to train on: {self._why_skipped()}")
        if not self.eval_rows:
            if isinstance(self._request.eval, tuple):
                raise DataError(f"no row to evaluate on: {self._why_skipped()}")
            raise DataError(
                f"no row to evaluate on: {self.train.rows} usable rows in train do not leave one to hold out; "
                "fix: give data.eval a file, or add rows"
            )

    def _over_length_message(self) -> str:
        found = self._over_length
        first = ", ".join(f"{name} line {line} ({length})" for name, line, length in found[:5])
        longest = max(length for _, _, length in found)
        rows = "1 row is" if len(found) == 1 else f"{len(found):,} rows are"
        return (
            f"{rows} longer than max_length {self._request.max_length} tokens: {first}"
            f"{', ...' if len(found) > 5 else ''}; longest {longest:,}; fix: data.overlength: drop (or truncate), "
            f"or training.max_length: {longest} if the model takes that many"
        )

    def _why_skipped(self) -> str:
        said = []
        for count in self._files:
            for skip in count.report().skipped:
                lines = ", ".join(map(str, skip.lines[:5]))
                detail = f" ({skip.detail})" if skip.detail else ""
                said.append(f"{_shown_path(count.file.path)}: {skip.rows} {skip.reason}{detail} in line {lines}")
        return ("; ".join(said) or "the weights leave none") + "; fix: correct the rows, data.columns or data.layout"

    def result(self) -> PreparedData:
        report = self._report()
        return PreparedData(
            train=self.train.dataset(),
            eval_rows=self.eval_rows,
            eval_dataset=self.eval.dataset(),
            report=report,
            digest=report.digest,
            eval_digest=report.eval_digest,
        )

    def _report(self) -> DataReport:
        renderer, tokenizer = self._renderer, self._renderer.tokenizer
        leaked_prompts, leaked_rows = self.eval.leaks_into(self.train)
        return DataReport(
            files=tuple(count.report() for count in self._files),
            train_rows=self.train.rows,
            eval_rows=len(self.eval_rows),
            eval_split=self._split.description,
            train=self.train.token_report(),
            eval=self.eval.token_report(),
            max_length=self._request.max_length,
            overlength=self._request.overlength,
            over_length=self._counts["over_length"],
            truncated=self._counts["truncated"],
            truncated_end_of_turn=self._counts["truncated_end_of_turn"],
            truncated_answer=self._counts["truncated_answer"],
            duplicates=self.train.duplicates(),
            contradictions=self.train.contradictions(),
            eval_duplicates=self.eval.duplicates(),
            leaked_prompts=leaked_prompts,
            leaked_rows=leaked_rows,
            unrolled=self._counts["unrolled"],
            boundary_splits=self._counts["boundary_splits"],
            template_source=renderer.template_source,
            template_digest=self.template_digest,
            answer_prefix=renderer.answer_prefix,
            end_of_turn_token=str(tokenizer.convert_ids_to_tokens(renderer.end_of_turn_token_id)),
            stop_tokens=tuple(str(tokenizer.convert_ids_to_tokens(token)) for token in renderer.stop_token_ids),
            digest=self.train.digest(),
            eval_digest=self.eval.digest(),
            notes=renderer.notes,
            mask_samples=tuple(_segments(example, tokenizer) for example in _across(self._samples)),
        )


def _eval_row(row: _Row, example: Example, file: DataFile) -> EvalRow:
    """The last assistant turn is the reference; what stands before it is the prompt."""
    start, end = example.last_turn()
    return EvalRow(
        messages=row.messages[:-1],
        prompt_ids=tuple(example.input_ids[:start]),
        completion_ids=tuple(example.input_ids[start:end]),
        reference=row.messages[-1]["content"],
        task=file.task,
        source=_shown_path(file.path),
        line=row.line,
    )


def _across(samples: Mapping[int, list[Example]]) -> Iterator[Example]:
    """A few examples, one of each file before a second one of any."""
    rounds = [examples[i] for i in range(_MASK_SAMPLES) for examples in samples.values() if i < len(examples)]
    yield from rounds[:_MASK_SAMPLES]


def _segments(example: Example, tokenizer: Any) -> tuple[dict[str, object], ...]:
    """The example as decoded text, cut where loss begins and ends."""
    cuts = [0, *(i for i in range(1, len(example.input_ids)) if example.loss_mask[i] != example.loss_mask[i - 1])]
    ends = [*cuts[1:], len(example.input_ids)]
    return tuple(
        {"text": tokenizer.decode(example.input_ids[a:b]), "carries_loss": bool(example.loss_mask[a])}
        for a, b in zip(cuts, ends, strict=True)
    )
