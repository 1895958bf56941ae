"""Data files to what a trainer reads: token ids and labels in a memory-mapped Arrow file, with a report and a digest.

Two steps: every file is read and checked once, its conversations go to a spool on disk (reading.py); then the spool is
encoded batch by batch, on a thread, since the tokenizer works outside Python's lock, while the batch before is counted and
written. Own memory does not grow with the rows but for 8 bytes each and the held-out rows. Nothing is reordered, and every
row that is left out is counted with its reason and line.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import datasets

from mlflow_finetune_plugin.data.checks import (
    CONTRADICTIONS,
    DUPLICATES,
    EVAL_DUPLICATES,
    LEAKED_PROMPTS,
    LEAKED_ROWS,
    RowSet,
    count_of,
    encoding_findings,
    label_findings,
    row_findings,
)
from mlflow_finetune_plugin.data.conversations import is_document
from mlflow_finetune_plugin.data.overlength import OVER_LENGTH, Fitting, fitted
from mlflow_finetune_plugin.data.reading import DataFile, Reader, ReadFile, place
from mlflow_finetune_plugin.data.rendering import ChatRenderer, Example
from mlflow_finetune_plugin.data.report import DataReport, Finding, LabelReport, UnusableDataError
from mlflow_finetune_plugin.data.row_faults import RowFault
from mlflow_finetune_plugin.data.samples import MASK_SAMPLES, Shower, across, segments
from mlflow_finetune_plugin.data.split import Split, hash_text, sample_of_eval, split_of_train
from mlflow_finetune_plugin.data.spool import Spool, SpooledRow
from mlflow_finetune_plugin.data.tally import Labels, Tally
from mlflow_finetune_plugin.data.token_file import TokenFile
from mlflow_finetune_plugin.data.token_findings import token_findings
from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.types import EvalRow

__all__ = ["DataFile", "DataRequest", "PreparedData", "prepare"]

OVER_EVAL_LIMIT = "over max_eval_rows"

_AHEAD = 2  # batches that may be encoded before they are written
_SHOWN_LABELS = 200

Side = Literal["train", "eval"]
Encoded = list[list[Example] | RowFault]


@dataclass(frozen=True)
class DataRequest:
    """What to prepare. ``eval``: files, a fraction of train's rows, or None for a tenth, at most 500 rows.

    ``train`` may be empty where only held-out files are wanted. ``overlength: split`` is for plain text alone.
    """

    train: tuple[DataFile, ...]
    eval: tuple[DataFile, ...] | float | None
    layout: str
    columns: Mapping[str, str]
    overlength: Literal["error", "drop", "truncate", "split"]
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
    """Read, check, render and write; ``on_progress`` gets the number of rows done so far.

    Raises UnusableDataError, which holds the report, when no row is left to train or to evaluate on, or rows are too long.
    """
    _check_request(request)
    folder.mkdir(parents=True, exist_ok=True)
    with Spool(folder / "rows.spool") as spool:
        reader = Reader(spool, request.columns, request.layout, request.seed, folder / "fetched")
        files = [reader.read(file, "train") for file in request.train]
        files += [reader.read(file, "eval") for file in _eval_files(request)]
        run = _Preparation(request, renderer, folder, _split(request, reader), on_progress or (lambda rows: None))
        with run.train, run.eval:
            for file in files:
                run.encode(file, spool)
    return run.result()


def _eval_files(request: DataRequest) -> tuple[DataFile, ...]:
    return request.eval if isinstance(request.eval, tuple) else ()


def _check_request(request: DataRequest) -> None:
    if not request.train and not isinstance(request.eval, tuple):
        raise DataError("no data file to train on; fix: data.train: FILE")
    for file in (*request.train, *_eval_files(request)):
        if not (math.isfinite(file.weight) and file.weight > 0):
            raise DataError(f"{file.path}: weight {file.weight} is not a positive number; fix: leave the file out")
    if isinstance(request.eval, float | int) and not 0 < request.eval < 1:
        raise DataError(f"data.eval: {request.eval} is not a fraction between 0 and 1; fix: 0.1, or a file")


def _split(request: DataRequest, reader: Reader) -> Split:
    if isinstance(request.eval, tuple):
        return sample_of_eval(reader.place_hashes, request.max_eval_rows, request.seed)
    return split_of_train(reader.row_hashes, request.eval, request.max_eval_rows, request.seed)


class _Preparation:
    """The state of one ``prepare``: both sides, the counts per file, the faults that stop it at the end."""

    def __init__(
        self,
        request: DataRequest,
        renderer: ChatRenderer,
        folder: Path,
        split: Split,
        on_progress: Callable[[int], None],
    ) -> None:
        self._request, self._renderer, self._split, self._on_progress = request, renderer, split, on_progress
        self.template_digest = hashlib.sha256(renderer.chat_template.encode()).hexdigest()
        self.train = TokenFile(folder / "train.arrow", self.template_digest)
        self.eval = TokenFile(folder / "eval.arrow", self.template_digest)
        self.eval_rows: list[EvalRow] = []
        self._tallies: list[Tally] = []
        self._rows_done = 0
        self._counts: Counter[str] = Counter()
        self._over_length: list[tuple[str, int, int]] = []
        self._samples: dict[int, list[Example]] = {}
        self._labels = Labels()

    def encode(self, file: ReadFile, spool: Spool) -> None:
        """Encode one file's rows and write them to their side."""
        self._tallies.append(file.tally)
        chosen = (self._chosen(file, batch) for batch in spool.batches(file.start, file.end))
        for rows, encoded in _ahead(chosen, self._renderer):
            self._write(file, rows, encoded)

    def _chosen(self, file: ReadFile, batch: list[SpooledRow]) -> list[tuple[SpooledRow, Side]]:
        """Each row with its side; rows of an eval file that its limit leaves out are counted."""
        held_out = self._split.holds_out
        if file.tally.role == "train":
            splits = not isinstance(self._request.eval, tuple)
            return [(row, "eval" if splits and held_out(row.row_hash) else "train") for row in batch]
        kept: list[tuple[SpooledRow, Side]] = []
        for row in batch:
            if held_out(hash_text(place(file.file, row.line), self._request.seed)):
                kept.append((row, "eval"))
            else:
                file.tally.skip(row.line, OVER_EVAL_LIMIT)
        return kept

    def _write(self, file: ReadFile, rows: list[tuple[SpooledRow, Side]], encoded: Encoded) -> None:
        written: dict[Side, list[Example]] = {"train": [], "eval": []}
        for (row, side), result in zip(rows, encoded, strict=True):
            if isinstance(result, RowFault):
                file.tally.skip(row.line, result.reason, result.detail, row.messages)
            else:
                written[side] += self._keep(file, row, side, result, len(written[side]))
        for token_file, examples in ((self.train, written["train"]), (self.eval, written["eval"])):
            token_file.write(examples, [file.file.task] * len(examples))
        self._rows_done += len(rows)
        self._on_progress(self._rows_done)

    def _keep(
        self, file: ReadFile, row: SpooledRow, side: Side, examples: list[Example], waiting: int
    ) -> list[Example]:
        """The examples to write for one row, as often as its weight says; none when the row is left out."""
        whole, tally = examples[-1], file.tally
        fit = fitted(examples, self._request.max_length, self._request.overlength, row.messages, side == "eval")
        self._count(file, row, fit)
        examples = fit.examples
        if not examples:
            return []
        tally.kept += 1
        tally.look_at(row.line, row.messages)
        self._counts["unrolled"] += len(examples) > 1
        self._counts["boundary_splits"] += sum([example.is_boundary_split for example in examples])
        token_file = self.train if side == "train" else self.eval
        token_file.index.note(
            *(row.messages, row.own_hash),
            line=row.line,
            file=len(self._tallies) - 1,
            example=token_file.examples + waiting,
        )
        if tally.layout.name == "label":
            self._labels.note(side, row.messages[-1]["content"], f"{tally.name} line {row.line}")
        if side == "eval":
            pieces = examples if is_document(row.messages) else [whole]
            self.eval_rows += [_eval_row(row, piece, file.file) for piece in pieces]
            tally.rows_after_weight += 1
            return examples
        samples = self._samples.setdefault(len(self._tallies), [])
        if len(samples) < MASK_SAMPLES:
            samples.append(examples[-1])
        times = self._copies(row, file.file)
        tally.rows_after_weight += times
        return examples * times

    def _count(self, file: ReadFile, row: SpooledRow, fit: Fitting) -> None:
        if fit.counts:
            self._counts.update(fit.counts)
        if fit.reason is not None:
            file.tally.skip(row.line, fit.reason, fit.detail, row.messages)
        if fit.reason == OVER_LENGTH and self._request.overlength in ("error", "split"):
            self._over_length.append((file.tally.name, row.line, fit.longest))

    def _copies(self, row: SpooledRow, file: DataFile) -> int:
        """How often a row is used: the weight's whole part, and once more for a seeded share of the rows."""
        whole = int(file.weight)
        rest = file.weight - whole
        if not rest:
            return whole
        return whole + (hash_text(place(file, row.line), self._request.seed) < rest * 2**64)

    # the end ---------------------------------------------------------------------------------------------------------

    def _fault(self) -> str | None:
        """Why there is nothing to train on, if so."""
        if self._over_length:
            return self._over_length_message()
        if self._request.train and not self.train.examples:
            return f"no row to train on: {self._why_skipped()}"
        if self.eval_rows:
            return None
        if isinstance(self._request.eval, tuple):
            return f"no row to evaluate on: {self._why_skipped()}"
        return (
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
        for count in self._tallies:
            for skip in count.report().skipped:
                lines = ", ".join(map(str, skip.lines[:5]))
                detail = f" ({skip.detail})" if skip.detail else ""
                said.append(f"{count.name}: {skip.rows} {skip.reason}{detail} in line {lines}")
        return ("; ".join(said) or "the weights leave none") + "; fix: correct the rows, data.columns or data.layout"

    def result(self) -> PreparedData:
        report, fault = self._report(), self._fault()
        if fault is not None:
            self.train.path.unlink()
            self.eval.path.unlink()
            raise UnusableDataError(fault, report)
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
        findings = self._findings()
        return DataReport(
            files=tuple(count.report() for count in self._tallies),
            train_rows=self.train.rows,
            eval_rows=self.eval.rows,
            eval_split=self._split.description,
            train=self.train.token_report(),
            eval=self.eval.token_report(),
            max_length=self._request.max_length,
            overlength=self._request.overlength,
            over_length=self._counts["over_length"],
            truncated=self._counts["truncated"],
            truncated_end_of_turn=self._counts["truncated_end_of_turn"],
            truncated_answer=self._counts["truncated_answer"],
            duplicates=count_of(findings, DUPLICATES),
            contradictions=count_of(findings, CONTRADICTIONS),
            eval_duplicates=count_of(findings, EVAL_DUPLICATES),
            leaked_prompts=count_of(findings, LEAKED_PROMPTS),
            leaked_rows=count_of(findings, LEAKED_ROWS),
            unrolled=self._counts["unrolled"],
            boundary_splits=self._counts["boundary_splits"],
            template_source=renderer.template_source,
            template_digest=self.template_digest,
            answer_prefix=renderer.answer_prefix,
            end_of_turn_token=str(tokenizer.convert_ids_to_tokens(renderer.end_of_turn_token_id)),
            stop_tokens=tuple(str(tokenizer.convert_ids_to_tokens(token)) for token in renderer.stop_token_ids),
            digest=self.train.digest(),
            eval_digest=self.eval.digest(),
            notes=(*renderer.notes, *self._notes()),
            mask_samples=tuple(segments(example, tokenizer) for example in across(self._samples)),
            findings=tuple(findings),
            labels=_label_report(self._labels),
        )

    def _findings(self) -> list[Finding]:
        train, held_out = (
            RowSet.of(side.index, self._place, Shower(side.dataset(), self._renderer.tokenizer))
            for side in (self.train, self.eval)
        )
        found = [*row_findings(train, held_out), *label_findings(self._labels), *encoding_findings(self._tallies)]
        found += token_findings(self._renderer, self.train)
        for side in (self.train, self.eval):
            side.index.remove()
        return found

    def _place(self, file: int, line: int) -> str:
        return f"{self._tallies[file].name} line {line}"

    def _notes(self) -> Iterator[str]:
        developers = sum(tally.developer_turns for tally in self._tallies)
        if developers:
            yield f"{developers:,} developer turns were read as system turns"
        several = sum(tally.conversations - tally.rows_read for tally in self._tallies)
        if several:
            yield f"rows with several answers gave {several:,} conversations more than there are rows"
        if any(tally.layout.name == "text" for tally in self._tallies):
            yield "plain text goes around the chat template: all its tokens but the first carry loss, and so does the end token"


def _ahead(
    batches: Iterable[list[tuple[SpooledRow, Side]]], renderer: ChatRenderer
) -> Iterator[tuple[list[tuple[SpooledRow, Side]], Encoded]]:
    """Each batch with what it encodes to, in order, encoded on a thread of its own a little ahead of who reads."""
    waiting: deque[tuple[list[tuple[SpooledRow, Side]], Future[Encoded]]] = deque()
    with ThreadPoolExecutor(1) as thread:
        for batch in batches:
            waiting.append((batch, thread.submit(renderer.encode_batch, [row.messages for row, _ in batch])))
            if len(waiting) > _AHEAD:
                rows, encoded = waiting.popleft()
                yield rows, encoded.result()
        while waiting:
            rows, encoded = waiting.popleft()
            yield rows, encoded.result()


def _label_report(labels: Labels) -> LabelReport | None:
    if not labels.train and not labels.eval:
        return None
    return LabelReport(tuple(labels.train.most_common(_SHOWN_LABELS)), tuple(labels.eval.most_common(_SHOWN_LABELS)))


def _eval_row(row: SpooledRow, example: Example, file: DataFile) -> EvalRow:
    """The last assistant turn is the reference; what stands before it is the prompt."""
    start, end = example.last_turn()
    return EvalRow(
        messages=row.messages[:-1],
        prompt_ids=tuple(example.input_ids[:start]),
        completion_ids=tuple(example.input_ids[start:end]),
        reference=row.messages[-1]["content"],
        task=file.task,
        source=file.shown,
        line=row.line,
    )
