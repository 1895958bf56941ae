"""Check the rows as a set: duplicates, contradictions, leaks, labels, encoding faults and tokens that the base hardly knows."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from mlflow_finetune_plugin.data.report.contents import MAX_LINES, DataFinding
from mlflow_finetune_plugin.data.report.tally import Labels, RowTally
from mlflow_finetune_plugin.data.tokens.encoding_faults import CONTROLS, MOJIBAKE, REPLACED, UNKNOWN
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.data.tokens.row_index import RowIndex, normalised
from mlflow_finetune_plugin.data.tokens.token_file import TokenFile
from mlflow_finetune_plugin.data.tokens.trained_tokens import untrained_tokens
from mlflow_finetune_plugin.methods import RowForm

UNTRAINED_STOP = "untrained end-of-turn token"

UNTRAINED_ANSWERS = "untrained answer tokens"

_MOST_TOKENS = 10

_NOTED_SHARE = 0.001
"""The share of answer tokens above which unknown tokens are a warning. Every large vocabulary has some rare tokens."""

DUPLICATES = "duplicates"
NEAR_DUPLICATES = "near duplicates"
CONTRADICTIONS = "contradictions"
CONSTANT_ANSWERS = "constant answers"
SIMILAR_LABELS = "similar labels"
EVAL_DUPLICATES = "duplicates in eval"
LEAKED_ROWS = "eval rows in train"
LEAKED_NEAR_ROWS = "eval rows in train except for case and blanks"
LEAKED_PROMPTS = "eval prompts in train"

_IMBALANCE = 10
_FEWEST_CONSTANT = 10
"""Fewer rows with one answer are not a sign of anything."""
_FAULTS = {
    MOJIBAKE: (
        "UTF-8 text that was read as Windows-1252 (\u00c3\u00a9 for \u00e9)",
        "read the source as UTF-8 and write the file again",
    ),
    REPLACED: ("U+FFFD, which replaces text that could not be decoded", "write the file again from its source"),
    CONTROLS: ("control characters", "remove them"),
    UNKNOWN: (
        "characters in the answer (of a pair: in the better one; of a prompt: in its reference) that the base's tokenizer does not "
        "know, so the base cannot write it",
        "write these answers without the characters, or choose another base",
    ),
}

PositionText = Callable[[int, int], str]
"""Returns the text of a position from the numbers of a file and a line."""


@dataclass(frozen=True)
class RowSet:
    """The hashes of one side.

    Attributes:
        records: One record per row (see ``RowIndex.records``).
        position_text: Returns file and line of a row as text.
        show: Returns the text of an example by its number.
    """

    records: np.ndarray
    position_text: PositionText
    show: Callable[[int], str]

    @classmethod
    def of(cls, index: RowIndex, position_text: PositionText, show: Callable[[int], str]) -> RowSet:
        return cls(index.records(), position_text, show)

    def finding(
        self,
        check: str,
        rows: np.ndarray,
        text: tuple[str, str],
        fix: str,
        *,
        ending: str = "",
        count: int | None = None,
        warns: bool = True,
        example_rows: np.ndarray | None = None,
    ) -> DataFinding:
        """Make a finding on ``rows``.

        Args:
            check: The name of the check.
            rows: The positions of the rows in ``records``.
            text: What was found, for one row and for several.
            fix: What the user can do.
            ending: The end of the text.
            count: How often it was found; None means the number of rows.
            warns: Whether the finding is a warning.
            example_rows: The positions of the rows to show; None means the first of ``rows``.
        """
        total = len(rows) if count is None else count
        first = self.records[rows[:MAX_LINES]]
        examples = self.records["example"][rows[:1] if example_rows is None else example_rows]
        return DataFinding(
            check=check,
            count=total,
            text=text[total != 1] + ending,
            places=tuple(
                dict.fromkeys(self.position_text(int(record["file"]), int(record["line"])) for record in first)
            ),
            example=" | ".join(self.show(int(example)) for example in examples),
            fix=fix,
            is_warning=warns,
        )


def row_findings(train: RowSet, held_out: RowSet, form: RowForm = "answers") -> list[DataFinding]:
    """Return findings on duplicates, contradictions and rows that leak from train to eval; checks without hits are left out.

    Only answers can contradict each other by being different: several pairs, ratings or rewards of one prompt are usual.
    """
    once = "remove them if a row should count once"
    apart = "remove them from one side"
    exact = _repeated(train.records["row"])
    near = np.setdiff1d(_repeated(normalised(train.records)), exact)
    contradicting, prompts = _contradicting(train.records)
    shared_by_files = _prompts_of_several_files(train.records[contradicting])
    leaked = _shared(held_out.records["row"], train.records["row"])
    leaked_near = np.setdiff1d(_shared(normalised(held_out.records), normalised(train.records)), leaked)
    leaked_prompts = _shared(held_out.records["prompt"], train.records["prompt"])
    too_optimistic = "so the proof is too optimistic"
    repeats = ("training row repeats an earlier row", "training rows repeat an earlier row")
    held_out_repeats = ("held-out row repeats an earlier row", "held-out rows repeat an earlier row")
    leaks = ("held-out row is also a training row", "held-out rows are also training rows")
    contradictory = ("prompt has more than one answer", "prompts have more than one answer")
    of_prompts = f"of {len(held_out.records):,} held-out prompts "
    findings = [
        train.finding(
            CONSTANT_ANSWERS,
            _constant(train.records),
            ("training row has the same answer", "training rows have the same answer"),
            "add rows with other answers, because the model learns to write this one whatever the prompt is",
            ending=", all that there are",
        ),
        train.finding(DUPLICATES, exact, repeats, once, ending=" word for word", warns=False),
        train.finding(NEAR_DUPLICATES, near, repeats, once, ending=" except for case and blanks", warns=False),
        train.finding(
            CONTRADICTIONS,
            contradicting,
            contradictory,
            "set an instruction for each file if the files are different tasks on the same text"
            if shared_by_files
            else "keep the right answer of each prompt",
            ending=f", {shared_by_files:,} of them in different files" if shared_by_files else "",
            count=prompts,
            example_rows=_two_answers(train.records, contradicting),
        ),
        held_out.finding(
            EVAL_DUPLICATES,
            _repeated(held_out.records["row"]),
            held_out_repeats,
            once,
            ending=" word for word",
            warns=False,
        ),
        held_out.finding(LEAKED_ROWS, leaked, leaks, apart, ending=f", word for word, {too_optimistic}"),
        held_out.finding(
            LEAKED_NEAR_ROWS, leaked_near, leaks, apart, ending=f", except for case and blanks, {too_optimistic}"
        ),
        held_out.finding(
            LEAKED_PROMPTS,
            leaked_prompts,
            (of_prompts + "is also a training prompt", of_prompts + "are also training prompts"),
            "remove them, or expect the metrics to be too optimistic",
        ),
    ]
    silent = () if form == "answers" else (CONTRADICTIONS, CONSTANT_ANSWERS)
    return [finding for finding in findings if finding.count and finding.check not in silent]


def count_of(findings: Sequence[DataFinding], check: str) -> int:
    return sum(finding.count for finding in findings if finding.check == check)


def _repeated(hashes: np.ndarray) -> np.ndarray:
    """Return the positions of values that occurred before, in order."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    return np.sort(order[1:][ordered[1:] == ordered[:-1]])


def _contradicting(records: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the positions of rows whose prompt has several answers, and the number of such prompts.

    The answers of one row of a file do not contradict each other, and neither do rows that have an answer in common.
    """
    order = np.lexsort((records["answer"], records["prompt"]))
    prompts, answers = records["prompt"][order], records["answer"][order]
    differs = (prompts[1:] == prompts[:-1]) & (answers[1:] != answers[:-1])
    bad = np.unique(prompts[1:][differs])
    bad = np.setdiff1d(bad, _agreeing(records[np.isin(records["prompt"], bad)])) if len(bad) else bad
    return np.flatnonzero(np.isin(records["prompt"], bad)) if len(bad) else np.empty(0, dtype=np.int64), len(bad)


def _agreeing(records: np.ndarray) -> np.ndarray:
    """Return the prompts whose rows have lists of answers, of which every two have one in common."""
    rows, counts = np.unique(records[["prompt", "file", "line"]], return_counts=True)
    with_lists = np.unique(rows["prompt"][counts > 1])
    lists: dict[int, dict[tuple[int, int], set[int]]] = {}
    for record in records[np.isin(records["prompt"], with_lists)]:
        by_row = lists.setdefault(int(record["prompt"]), {})
        by_row.setdefault((int(record["file"]), int(record["line"])), set()).add(int(record["answer"]))
    agreeing = [
        prompt
        for prompt, by_row in lists.items()
        if not any(one.isdisjoint(other) for one, other in combinations(set(map(frozenset, by_row.values())), 2))
    ]
    return np.array(agreeing, dtype=np.uint64)


def _two_answers(records: np.ndarray, contradicting: np.ndarray) -> np.ndarray:
    """Return the positions of the first contradicting row and of the first row that answers its prompt otherwise."""
    if not len(contradicting):
        return contradicting
    first = contradicting[0]
    same_prompt = contradicting[records["prompt"][contradicting] == records["prompt"][first]]
    other = same_prompt[records["answer"][same_prompt] != records["answer"][first]]
    in_other_rows = other[records[["file", "line"]][other] != records[["file", "line"]][first]]
    return np.array([first, (in_other_rows if len(in_other_rows) else other)[0]])


def _constant(records: np.ndarray) -> np.ndarray:
    """Return the positions of all rows if they have the same answer to different prompts, else none."""
    is_constant = (
        len(records) >= _FEWEST_CONSTANT
        and bool((records["answer"] == records["answer"][0]).all())
        and bool((records["prompt"] != records["prompt"][0]).any())
    )
    return np.arange(len(records) if is_constant else 0)


def _prompts_of_several_files(records: np.ndarray) -> int:
    places = np.unique(records[["prompt", "file"]])
    return int((np.unique(places["prompt"], return_counts=True)[1] > 1).sum())


def _shared(mine: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.isin(mine, other))


def label_findings(labels: Labels) -> list[DataFinding]:
    """Return findings on labels that differ only by form, on eval labels that train does not have, and on a label ten times as
    frequent as the rarest.

    An evaluation has no training rows to compare with.
    """
    findings = _similar_labels(labels)
    knows_train = labels.train and not labels.is_full("train")
    unseen = [label for label in labels.eval if label not in labels.train] if knows_train else []
    if unseen:
        places = tuple(labels.eval_positions[label] for label in unseen[:MAX_LINES])
        rows = sum(labels.eval[label] for label in unseen)
        verb = "row has" if rows == 1 else "rows have"
        which = "a label that does" if len(unseen) == 1 else f"one of {len(unseen):,} labels that do"
        text = f"held-out {verb} {which} not occur in the training rows"
        findings.append(
            DataFinding("unseen labels", rows, text, places, unseen[0], "add training rows with these labels")
        )
    if len(labels.train) > 1:
        (most, many), *_, (least, few) = labels.train.most_common()
        if many >= _IMBALANCE * few:
            text = f"times as many training rows have the label {most!r} ({many:,}) as {least!r} ({few:,})"
            fix = "add training rows with the rare labels, or compare f1 rather than accuracy"
            findings.append(DataFinding("label imbalance", many // few, text, (), least, fix, is_warning=False))
    return findings


def _similar_labels(labels: Labels) -> list[DataFinding]:
    forms: dict[str, list[str]] = {}
    counts = labels.train + labels.eval
    for label in counts:
        forms.setdefault(unicodedata.normalize("NFKC", label).casefold().strip(), []).append(label)
    similar = [variants for variants in forms.values() if len(variants) > 1]
    if not similar:
        return []
    text = (
        "label occurs in several forms" if len(similar) == 1 else "labels occur in several forms"
    ) + ", which differ only in case, blanks or Unicode form and count as different labels"
    example = ", ".join(f"{label!r} {counts[label]:,} times" for label in similar[0])
    return [DataFinding(SIMILAR_LABELS, len(similar), text, (), example, "write each label in one form")]


def score_findings(tallies: Sequence[RowTally]) -> list[DataFinding]:
    """Return findings on columns of numbers that may rate the answers, in files to train on."""
    return [
        DataFinding(
            "scores",
            tally.unused_columns[name],
            f"rows of {tally.name} have a number from {low:g} to {high:g} in the column {name!r}, which may rate the answers: "
            "all are learned alike",
            (),
            "",
            f"remove the rows with bad answers, or set data.ignore: [{name}]",
        )
        for tally in tallies
        if tally.role == "train"
        for name, (low, high) in tally.scores.items()
    ]


def encoding_findings(tallies: Sequence[RowTally]) -> list[DataFinding]:
    """Return findings on encoding faults in kept rows, over all files."""
    findings = []
    for fault in dict.fromkeys(fault for tally in tallies for fault in tally.odd):
        affected = [tally for tally in tallies if fault in tally.odd]
        places = tuple(f"{tally.name} line {line}" for tally in affected for line in tally.odd_lines[fault])
        rows = sum(tally.odd[fault] for tally in affected)
        text = f"{'row contains' if rows == 1 else 'rows contain'} {_FAULTS[fault][0]}"
        findings.append(
            DataFinding(fault, rows, text, places[:MAX_LINES], affected[0].odd_examples[fault], _FAULTS[fault][1])
        )
    return findings


def token_findings(renderer: ChatRenderer, train: TokenFile) -> list[DataFinding]:
    """Return findings on an end-of-turn token and on answer tokens that the base was hardly trained on."""
    return [*_stop_findings(renderer, train.examples), *_answer_findings(renderer, train.loss_counts())]


def _stop_findings(renderer: ChatRenderer, examples: int) -> list[DataFinding]:
    reason = renderer.untrained_end_of_turn
    if reason is None:
        return []
    token = str(renderer.tokenizer.convert_ids_to_tokens(renderer.end_of_turn_token_id))
    text = f"training examples end with {token}, which the base was hardly trained on ({reason}), so the adapter may never stop"
    fix = "choose a base or a chat template that ends turns with a trained token"
    return [DataFinding(UNTRAINED_STOP, examples, text, (), token, fix)]


def _answer_findings(renderer: ChatRenderer, counts: np.ndarray) -> list[DataFinding]:
    """Return a finding on rare tokens; ``counts`` says how often each token id carries loss."""
    if renderer.weights is None:
        return []
    unseen = untrained_tokens(renderer.weights, np.flatnonzero(counts))
    unseen = unseen[~np.isin(unseen, renderer.stop_token_ids)]
    if not len(unseen):
        return []
    most = unseen[np.argsort(-counts[unseen], kind="stable")][:_MOST_TOKENS]
    words = " ".join(renderer.tokenizer.convert_ids_to_tokens(most.tolist()))
    count, total = int(counts[unseen].sum()), int(counts.sum())
    text = (
        f"of {total:,} tokens trained on are among {len(unseen):,} tokens that the base was hardly trained on ({words})"
    )
    fix = "write answers without these tokens, or choose another base, because an adapter cannot distinguish them"
    return [DataFinding(UNTRAINED_ANSWERS, count, text, (), words, fix, is_warning=count > _NOTED_SHARE * total)]
