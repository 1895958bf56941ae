"""Prepare data files for training: token ids and labels in a memory-mapped Arrow file, with a report and a digest.

Step one reads and checks every file once, encodes the conversations on all cores and spools them to disk (reader.py,
tokens/encoding_pool.py). Only then is it known which rows are held out. Step two counts the spooled rows and writes the
training and the held-out file. Memory grows by 8 bytes per row and by the held-out rows only. The order of the rows stays, and
the report counts every row that is left out with its reason and line.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np

from mlflow_finetune_plugin.data.conversations.conversion import is_document
from mlflow_finetune_plugin.data.conversations.groups import split_of_groups
from mlflow_finetune_plugin.data.conversations.row_faults import OVER_EVAL_LIMIT, OVER_LENGTH
from mlflow_finetune_plugin.data.conversations.split import (
    Split,
    ValidationSplit,
    hash_text,
    sample_of_eval,
    split_of_train,
    validation_of_train,
)
from mlflow_finetune_plugin.data.conversations.turns.chat import whole_text
from mlflow_finetune_plugin.data.held_out_rows import GroupSides, columns_beside, eval_rows
from mlflow_finetune_plugin.data.reader import Reader, ReadFile, row_key
from mlflow_finetune_plugin.data.report.checks import (
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
    score_findings,
    token_findings,
)
from mlflow_finetune_plugin.data.report.contents import DataFinding, DataReport, LabelReport, UnusableDataError
from mlflow_finetune_plugin.data.report.faults import over_length_fault, skipped_fault, token_without_row, why_skipped
from mlflow_finetune_plugin.data.report.notes import report_notes
from mlflow_finetune_plugin.data.report.pictures import PictureTally
from mlflow_finetune_plugin.data.report.preferences import PreferenceTally
from mlflow_finetune_plugin.data.report.samples import MASK_SAMPLES, ExampleText, across
from mlflow_finetune_plugin.data.report.tally import Labels, RowTally
from mlflow_finetune_plugin.data.request import DataFile, DataRequest
from mlflow_finetune_plugin.data.row_pictures import RowPictures
from mlflow_finetune_plugin.data.tokens.batch_encoder import BatchEncoder
from mlflow_finetune_plugin.data.tokens.batches import EncodedBatch
from mlflow_finetune_plugin.data.tokens.overlength import NO_LOSS_TOKEN, Fitting, fitted
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer, Example
from mlflow_finetune_plugin.data.tokens.spool import Spool, SpooledBatch
from mlflow_finetune_plugin.data.tokens.token_file import TokenFile
from mlflow_finetune_plugin.evaluation.results import EvalRow, Message
from mlflow_finetune_plugin.images import PictureStore
from mlflow_finetune_plugin.images.turns import pictures_of

_SHOWN_LABELS = 200


@dataclass(frozen=True)
class PreparedData:
    """The prepared data.

    Attributes:
        train: Rows with input_ids, labels (-100 where a token carries no loss) and task, ready for the trainer.
        eval_rows: The held-out rows, rendered for the proof.
        validation: The rows whose loss is measured while training, in the form of ``train``: the validation rows, or the held-out
            rows where there are none.
        trained_rows: The distinct ``hash_row`` of the conversations that training used, validation included, uint64, sorted.
    """

    train: datasets.Dataset
    eval_rows: list[EvalRow]
    validation: datasets.Dataset
    report: DataReport
    digest: str
    eval_digest: str
    trained_rows: np.ndarray


def prepare(
    request: DataRequest, renderer: ChatRenderer, folder: Path, on_progress: Callable[[int], None] | None = None
) -> PreparedData:
    """Read, check, render and write the data.

    Args:
        request: What to prepare.
        renderer: The base's tokenizer and chat template.
        folder: Where to write the files; created if it does not exist.
        on_progress: Called with the number of conversations that are encoded so far.

    Raises:
        DataError: a file or a setting is not valid.
        UnusableDataError: no row is left to train or to evaluate on, or rows are too long. It holds the report.
    """
    request.check()
    folder.mkdir(parents=True, exist_ok=True)
    store = PictureStore(folder / "pictures")
    renderer.picture_store = store
    pictures = RowPictures(store, sees=renderer.pictures is not None, hosts=request.picture_hosts)
    with Spool(folder / "rows.spool") as spool:
        reader = Reader(
            spool,
            BatchEncoder(renderer, request.seed, request.form),
            request.column_settings,
            request.seed,
            folder / "fetched",
            on_progress or (lambda rows: None),
            pictures,
        )
        with reader:
            files = [reader.read(file, "train") for file in request.train]
            files += [reader.read(file, "eval") for file in request.eval_files]
        split = _split(request, reader)
        run = _Preparation(request, renderer, folder, split, _validation_split(request, reader, split), pictures.sizes)
        with run.train, run.eval, run.validation:
            for file in files:
                run.write(file, spool)
    return run.result()


def _split(request: DataRequest, reader: Reader) -> Split:
    if isinstance(request.eval, tuple):
        return sample_of_eval(reader.place_hashes, request.max_eval_rows, request.seed)
    if request.group is not None:
        return split_of_groups(
            reader.group_hashes, request.eval, request.max_eval_rows, request.seed, column=request.group
        )
    return split_of_train(
        reader.row_hashes, request.eval, request.max_eval_rows, request.seed, prompt_hashes=reader.prompt_hashes
    )


def _validation_split(request: DataRequest, reader: Reader, split: Split) -> ValidationSplit | None:
    if request.validation is None or not request.train:
        return None
    held_out = None if isinstance(request.eval, tuple) else split
    if request.group is not None:
        return validation_of_train(reader.group_hashes, None, held_out, request.validation)
    return validation_of_train(reader.row_hashes, reader.prompt_hashes, held_out, request.validation)


class _Preparation:
    """The state of step two: the output files, the counts of each file, and the faults that stop it at the end."""

    def __init__(
        self,
        request: DataRequest,
        renderer: ChatRenderer,
        folder: Path,
        split: Split,
        validation_split: ValidationSplit | None,
        picture_sizes: Mapping[str, tuple[int, int]],
    ) -> None:
        self._request, self._renderer, self._split, self._validation_split = request, renderer, split, validation_split
        self.template_digest = hashlib.sha256(renderer.chat_template.encode()).hexdigest()
        sees = renderer.pictures is not None and request.form == "answers"
        self.train, self.eval, self.validation = (
            TokenFile(folder / f"{side}.arrow", self.template_digest, request.form, sees=sees)
            for side in ("train", "eval", "validation")
        )
        self._trained_rows: list[np.ndarray] = []
        self.eval_rows: list[EvalRow] = []
        self._tallies: list[RowTally] = []
        self._counts: Counter[str] = Counter()
        self._over_length: list[tuple[str, int, int]] = []
        self._samples: dict[int, list[Example]] = {}
        self._labels = Labels()
        self._groups = GroupSides(request.group)
        self._preferences = PreferenceTally()
        image_token = None if renderer.pictures is None else renderer.pictures.image_token_id
        self._pictures = PictureTally(renderer.picture_store, picture_sizes, image_token)
        self._example_text = ExampleText(renderer.tokenizer, image_token, picture_sizes)
        self._largest_id = 0

    def write(self, file: ReadFile, spool: Spool) -> None:
        """Count the rows of one file and write each to the training, the validation or the held-out side."""
        self._tallies.append(file.tally)
        for batch in spool.batches(file.start, file.end):
            self._write(file, batch)

    def _write(self, file: ReadFile, batch: SpooledBatch) -> None:
        whole = batch.encoded
        is_chosen, is_eval = self._sides(file, batch)
        for row, reason, detail in whole.faults:
            if is_chosen[row]:
                file.tally.skip(int(whole.lines[row]), reason, detail, batch.conversations[row])
        encoded = self._fitted(file, batch, is_chosen, is_eval)
        is_used = is_chosen & (encoded.counts > 0)
        used = np.flatnonzero(is_used)
        self._count(file, batch, encoded, is_used, is_eval)
        is_validation = self._is_validation(file, batch) & ~is_eval
        held_out, validated = used[is_eval[used]], used[is_validation[used]]
        trained = used[~(is_eval | is_validation)[used]]
        file.tally.rows_after_weight += len(held_out) + len(validated)
        for side, rows in ((self.eval, held_out), (self.validation, validated)):
            self._put(side, file, batch, encoded, rows, np.ones(len(rows), dtype=np.int64))
        self._groups.note(batch, held_out, np.concatenate([validated, trained]))
        self._count_pictures(file, batch, encoded, is_used, is_eval)
        self._trained_rows += [whole.chat_hashes[validated], whole.chat_hashes[trained]]
        for row in held_out.tolist():
            # A chat is proven on its last turn only, in full length: a cut reference could not be compared with an answer.
            of_row = encoded if is_document(batch.conversations[row]) else whole
            self.eval_rows += eval_rows(batch, row, of_row.examples(row), file.file, self._renderer, self._request.form)
        samples = self._samples.setdefault(len(self._tallies), [])
        shown = 0 if self._request.form == "pairs" else -1  # of a pair, the better answer
        samples += [encoded.examples(row)[shown] for row in trained[: MASK_SAMPLES - len(samples)].tolist()]
        if self._request.form == "pairs":
            self._count_pairs(batch, encoded, trained)
        copies = self._copies(encoded.lines[trained], file.file)
        file.tally.rows_after_weight += int(copies.sum())
        self._put(self.train, file, batch, encoded, trained, copies)

    def _count_pictures(
        self, file: ReadFile, batch: SpooledBatch, encoded: EncodedBatch, is_used: np.ndarray, is_eval: np.ndarray
    ) -> None:
        if not encoded.tokens.pictures:
            return
        for row in np.flatnonzero(is_used).tolist():
            position = f"{file.tally.name} line {int(encoded.lines[row])}"
            self._pictures.note(pictures_of(batch.conversations[row]), position, is_held_out=bool(is_eval[row]))
        self._pictures.note_tokens(encoded, is_used)

    def _count_pairs(self, batch: SpooledBatch, encoded: EncodedBatch, rows: np.ndarray) -> None:
        for row in rows.tolist():
            answers = [whole_text(turns[-1]) for turns in (batch.conversations[row], batch.beside[row][0])]
            lengths = [len(example.input_ids) for example in encoded.examples(row)]
            self._preferences.add(int(encoded.prompt_hashes[row]), *map(hash_text, answers), *lengths)

    def _sides(self, file: ReadFile, batch: SpooledBatch) -> tuple[np.ndarray, np.ndarray]:
        """Return which rows are used at all and which are held out: two bool arrays, (rows,). Count eval rows over the limit."""
        encoded = batch.encoded
        every = np.ones(len(encoded), dtype=np.bool_)
        if file.tally.role == "train":
            splits = not isinstance(self._request.eval, tuple)
            return every, self._split.held_out(self._split_hashes(encoded), encoded.line_prompts) if splits else ~every
        # Eval rows are sampled by position too, so that duplicates are drawn one by one.
        places = [hash_text(row_key(file.file, line), self._request.seed) for line in encoded.lines.tolist()]
        is_chosen = self._split.held_out(np.array(places, dtype=np.uint64))
        for line in encoded.lines[~is_chosen].tolist():
            file.tally.skip(line, OVER_EVAL_LIMIT)
        return is_chosen, every

    def _split_hashes(self, encoded: EncodedBatch) -> np.ndarray:
        """Return the hashes by which training rows are divided: uint64, (rows,)."""
        return encoded.row_hashes if self._request.group is None else encoded.group_hashes

    def _is_validation(self, file: ReadFile, batch: SpooledBatch) -> np.ndarray:
        """Return which rows of a file choose the best weights: bool, (rows,)."""
        encoded = batch.encoded
        if self._validation_split is None or file.tally.role != "train":
            return np.zeros(len(encoded), dtype=np.bool_)
        return self._validation_split.chosen(self._split_hashes(encoded), encoded.line_prompts)

    def _fitted(self, file: ReadFile, batch: SpooledBatch, is_chosen: np.ndarray, is_eval: np.ndarray) -> EncodedBatch:
        """Return the batch after ``overlength`` was applied to the rows that are longer than max_length, and count them."""
        encoded, limit, changed = batch.encoded, self._request.most_tokens, {}
        for row in np.flatnonzero(is_chosen & (encoded.longest > limit)).tolist():
            messages, line = batch.conversations[row], int(encoded.lines[row])
            fit = fitted(encoded.examples(row), limit, self._request.overlength, messages, bool(is_eval[row]))
            if self._request.form == "pairs" and len(fit.examples) == 1:  # a pair without one of its answers is none
                fit = replace(fit, examples=[], reason=NO_LOSS_TOKEN)
            self._note_fit(file, line, messages, fit)
            changed[row] = fit.examples
        return encoded.with_examples(changed) if changed else encoded

    def _note_fit(self, file: ReadFile, line: int, messages: Sequence[Message], fit: Fitting) -> None:
        self._counts.update(fit.counts or {})
        if fit.reason is not None:
            file.tally.skip(line, fit.reason, fit.detail, messages)
        if fit.reason == OVER_LENGTH and self._request.overlength in ("error", "split"):
            tokens = fit.longest + len(self._request.virtual_token_ids)
            self._over_length.append((file.tally.name, line, tokens))

    def _count(
        self, file: ReadFile, batch: SpooledBatch, encoded: EncodedBatch, is_used: np.ndarray, is_eval: np.ndarray
    ) -> None:
        tally = file.tally
        tally.rows_used += int(is_used.sum())
        for row, fault, excerpt in encoded.odd:
            if is_used[row]:
                tally.note_odd(int(encoded.lines[row]), fault, excerpt)
        if self._request.form == "answers":
            self._counts["unrolled"] += int((encoded.counts[is_used] > 1).sum())
        self._counts["boundary_splits"] += int(encoded.tokens.is_split[np.repeat(is_used, encoded.counts)].sum())
        if tally.layout.name == "label":
            for row in np.flatnonzero(is_used).tolist():
                side, label = "eval" if is_eval[row] else "train", batch.conversations[row][-1]["content"]
                self._labels.note(side, label, f"{tally.name} line {int(encoded.lines[row])}")

    def _put(
        self,
        side: TokenFile,
        file: ReadFile,
        batch: SpooledBatch,
        encoded: EncodedBatch,
        rows: np.ndarray,
        copies: np.ndarray,
    ) -> None:
        """Write each of ``rows`` as many times as ``copies`` says."""
        is_pair = self._request.form == "pairs"
        sizes = (np.minimum(encoded.counts[rows], 1) if is_pair else encoded.counts[rows]) * copies
        side.index.add(encoded, rows, file=len(self._tallies) - 1, examples=side.examples + np.cumsum(sizes) - sizes)
        spans = zip(encoded.starts[rows].tolist(), encoded.counts[rows].tolist(), copies.tolist(), strict=True)
        numbers = [number for start, count, times in spans for number in [*range(start, start + count)] * times]
        tokens = encoded.tokens.take(np.array(numbers, dtype=np.int64))
        self._largest_id = max(self._largest_id, int(tokens.ids.max(initial=0)))
        further = [
            columns_beside(batch, row, self._request.form)
            for row, times in zip(rows.tolist(), copies.tolist(), strict=True)
            for _ in range(times)
        ]
        tokens = tokens.after(self._request.virtual_token_ids)
        side.write(tokens, file.file.task, further if self._request.form != "answers" else ())

    def _copies(self, lines: np.ndarray, file: DataFile) -> np.ndarray:
        """Return how often each row is used: the weight's whole part, and once more for a seeded share of the rows."""
        whole = int(file.weight)
        rest = file.weight - whole
        copies = np.full(len(lines), whole, dtype=np.int64)
        if rest:
            # The hash of the position, not of the text, decides: duplicates must not all be drawn or all be left out.
            hashes = [hash_text(row_key(file, line), self._request.seed) for line in lines.tolist()]
            copies += np.array([row_hash < rest * 2**64 for row_hash in hashes], dtype=np.int64)
        return copies

    # result ----------------------------------------------------------------------------------------------------------

    def _fault(self) -> str | None:
        """Return why the data cannot be used, or None."""
        if fault := token_without_row(self._renderer, self._largest_id):
            return fault
        if fault := self._groups.fault():
            return fault
        if self._over_length:
            return over_length_fault(self._over_length, self._request.max_length)
        if self._request.train and not self.train.examples:
            return f"no usable row to train on: {why_skipped(self._tallies)}"
        if self._validation_split is not None and not self.validation.examples:
            return (
                f"no validation row: {self.train.rows} usable training row(s) are too few to take some from; "
                "fix: add rows, or leave out training.load_best_model_at_end and training.early_stopping_patience"
            )
        if self.eval_rows:
            return skipped_fault(self._tallies, self._request.max_skipped)
        if isinstance(self._request.eval, tuple):
            return f"no usable row to evaluate on: {why_skipped(self._tallies)}"
        if self._request.group is not None and not self._split.below:
            return (
                f"no row to evaluate on: all rows are of one group ({self._request.group}); "
                "fix: set data.eval to a file, or remove data.group"
            )
        return (
            f"no row to evaluate on: {self.train.rows} usable training row(s) are too few to hold one out; "
            "fix: set data.eval to a file, or add rows"
        )

    def result(self) -> PreparedData:
        trained_rows = np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *self._trained_rows]))
        fault = self._fault()
        if self._validation_split is None:
            self.validation.path.unlink()
        report = self._report(fault)
        if fault is not None:
            self.train.path.unlink()
            self.eval.path.unlink()
            self.validation.path.unlink(missing_ok=True)
            raise UnusableDataError(fault, report)
        return PreparedData(
            train=self.train.dataset(),
            eval_rows=self.eval_rows,
            validation=(self.eval if self._validation_split is None else self.validation).dataset(),
            report=report,
            digest=report.digest,
            eval_digest=report.eval_digest,
            trained_rows=trained_rows,
        )

    def _report(self, fault: str | None) -> DataReport:
        renderer, tokenizer = self._renderer, self._renderer.tokenizer
        findings = self._findings()
        return DataReport(
            files=tuple(count.report() for count in self._tallies),
            train_rows=self.train.rows,
            eval_rows=self.eval.rows,
            eval_split=self._split.description + self._groups.of_eval_files(self._request.eval),
            validation_rows=self.validation.rows,
            validation_split="" if self._validation_split is None else self._validation_split.description,
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
            notes=tuple(report_notes(self._tallies, renderer)),
            mask_samples=tuple(map(self._example_text.segments, across(self._samples))),
            findings=tuple(findings),
            labels=_label_report(self._labels),
            fault=fault,
            thinking_turns=sum(tally.thinking_turns for tally in self._tallies),
            pictures=self._pictures.report(),
        )

    def _findings(self) -> list[DataFinding]:
        train, held_out = (
            RowSet.of(side.index, self._position_text, self._example_text.of(side.dataset()))
            for side in (self.train, self.eval)
        )
        findings = [
            *row_findings(train, held_out, self._request.form),
            *self._pictures.findings(),
            *label_findings(self._labels),
            *encoding_findings(self._tallies),
            *score_findings(self._tallies),
        ]
        findings += [*token_findings(self._renderer, self.train), *self._preferences.findings()]
        for side in (self.train, self.eval, self.validation):
            side.index.remove()
        return findings

    def _position_text(self, file: int, line: int) -> str:
        return f"{self._tallies[file].name} line {line}"


def _label_report(labels: Labels) -> LabelReport | None:
    if not labels.train and not labels.eval:
        return None
    return LabelReport(tuple(labels.train.most_common(_SHOWN_LABELS)), tuple(labels.eval.most_common(_SHOWN_LABELS)))
