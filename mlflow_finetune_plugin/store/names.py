"""Every name that this package writes to MLflow: aliases, tags, params, metrics and the fixed artifacts of a run.

Each constant is declared once with its meaning; ``NAMES`` holds all of them, for the generated reference page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["alias", "model id", "tag", "param", "metric", "artifact", "feedback", "attribute"]

Owner = Literal["run", "version", "registered model", "logged model", "experiment", "trace"]


@dataclass(frozen=True)
class Name:
    """A name in MLflow.

    Args:
        kind: What MLflow calls a thing of this name.
        text: The name; a part in angle brackets is filled in when it is written.
        description: One line for the reference page.
        owners: The MLflow objects that carry the name.
    """

    kind: Kind
    text: str
    description: str
    owners: tuple[Owner, ...]


_names: list[Name] = []


def _declare(kind: Kind, text: str, description: str, *owners: Owner, ending: str = "") -> str:
    """Add a name to the reference and return its text. ``ending`` documents what is appended to a prefix."""
    _names.append(Name(kind, text + ending, description, owners))
    return text


# Aliases of a registered model.
CHAMPION = _declare("alias", "champion", "The version that users get; only the gate or a person moves it.", "version")
CHALLENGER = _declare(
    "alias", "challenger", "The newest version that scored better than its base, the next one to judge.", "version"
)
PREVIOUS = _declare("alias", "previous", "The champion before this one; a rollback restores it.", "version")
CANARY = _declare("alias", "canary", "The version that gets a growing share of the requests.", "version")

BASE = _declare("model id", "base", "The base model without an adapter, wherever a version could be named.")

# A run and its job.
STATUS_TAG = _declare("tag", "finetune.status_reason", "Why the run has its status.", "run")
HEARTBEAT_TAG = _declare("tag", "finetune.heartbeat", "Epoch seconds when the supervisor last wrote.", "run")
ATTEMPT_TAG = _declare("tag", "finetune.attempt", "The number of the attempt that may write to the run.", "run")
JOB_TAG = _declare("tag", "finetune.job", "The job folder's name on its host.", "run")
HOST_TAG = _declare("tag", "finetune.host", "The host of the job.", "run")
ATTEMPT_OWNER_PARAM = _declare(
    "param", "finetune.attempt_owner.", "Host, job and time of the attempt with this number.", "run", ending="<number>"
)
DRIFT_TAG = _declare("tag", "finetune.param_drift", "Params that differ from those of an earlier attempt.", "run")
PROCESSES_TAG = _declare("tag", "finetune.processes", "How many processes shared the training.", "run")
MICRO_BATCH_TAG = _declare("tag", "finetune.micro_batch", "The micro-batch after memory ran out.", "run")
EARLY_STOPPING_TAG = _declare("tag", "finetune.early_stopping", "The step of an early stop and the best step.", "run")
DESCRIPTION_TAG = _declare("tag", "mlflow.note.content", "The run's description on its page.", "run")

# What an adapter is made of.
BASE_MODEL_TAG = _declare(
    "tag", "finetune.base_model", "The base model's name or folder.", "run", "version", "logged model"
)
BASE_DIGEST_TAG = _declare(
    "tag", "finetune.base_digest", "SHA-256 of the base model's weights.", "run", "version", "logged model"
)
ADAPTATION_TAG = _declare(
    "tag", "finetune.adaptation", "How the model is changed, e.g. lora.", "run", "version", "logged model"
)
OBJECTIVE_TAG = _declare(
    "tag", "finetune.objective", "What the model learns from, e.g. sft.", "run", "version", "logged model"
)
DATA_DIGEST_TAG = _declare(
    "tag", "finetune.data_digest", "SHA-256 of the rows trained on.", "run", "version", "logged model"
)
ADAPTER_DIGEST_TAG = _declare(
    "tag", "finetune.adapter_digest", "SHA-256 of the adapter's files.", "run", "version", "logged model"
)
START_FROM_TAG = _declare(
    "tag", "finetune.start_from", "The version whose adapter the training continued.", "run", "version", "logged model"
)
START_DIGEST_TAG = _declare(
    "tag",
    "finetune.start_digest",
    "SHA-256 of the adapter's files of that version.",
    "run",
    "version",
    "logged model",
)
CONTENT_DIGEST_TAG = _declare(
    "tag",
    "finetune.content_digest",
    "SHA-256 of all that shapes the answers: adapter, tokenizer, chat template, stop ids, reference.",
    "run",
    "version",
    "logged model",
)
SERVING_TAG = _declare("tag", "finetune.serving", "How vLLM can serve the adapter.", "run", "version", "logged model")
KIND_TAG = _declare(
    "tag",
    "finetune.kind",
    "`reward` for a reward model, which gives scores; absent for a model that answers.",
    "run",
    "version",
    "logged model",
)
EVALUATED_MODEL_TAG = _declare("tag", "finetune.evaluated_model", "The model that an evaluation measured.", "run")
TRAINED_ON_DIGEST_TAG = _declare(
    "tag", "finetune.trained_on_digest", "SHA-256 of the rows that the evaluated adapter was trained on.", "run"
)
CONVERTED_FROM_TAG = _declare("tag", "finetune.converted_from", "The version this one was converted from.", "version")
CONVERSION_RANK_TAG = _declare("tag", "finetune.conversion_rank", "The rank of the converted adapter.", "version")
CONVERSION_MAX_TAG = _declare(
    "tag", "finetune.conversion_max_nats", "Largest difference to the original, in nats per token.", "version"
)
CONVERSION_MEAN_TAG = _declare(
    "tag", "finetune.conversion_mean_nats", "Mean difference to the original, in nats per token.", "version"
)

# What a training run records for its promotion.
GATE_DIGEST_TAG = _declare("tag", "finetune.gate_digest", "SHA-256 of the gate's policy file.", "run")
HELD_OUT_TAG = _declare("tag", "finetune.held_out_digest", "SHA-256 of the file with the held-out rows.", "run")
PROOF_TAG = _declare("tag", "finetune.proof_digest", "SHA-256 of the table with both answers to each row.", "run")
FORGETTING_TAG = _declare(
    "tag", "finetune.forgetting_digest", "SHA-256 of the file with the nats of each forgetting text.", "run"
)

# Promotion, rollback and canary.
VERDICT_TAG = _declare("tag", "finetune.verdict", "The last verdict on the version, and its run.", "run", "version")
PROMOTION_RUN_TAG = _declare("tag", "finetune.promotion_run", "The run that holds the decision's report.", "run")
PROMOTIONS_OF_TAG = _declare(
    "tag", "finetune.promotions_of", "The registered model that the experiment records the decisions of.", "experiment"
)
SIDES_TAG = _declare("tag", "finetune.sides_digest", "SHA-256 of the file with the measured answers.", "run")
INTENT_TAG = _declare(
    "tag", "finetune.move", "A move of an alias that has begun and not ended, as JSON.", "registered model"
)
MOVED_TAG = _declare(
    "tag", "finetune.moved.", "The version that the last move left this alias at.", "registered model", ending="<alias>"
)
UNRECORDED_TAG = _declare(
    "tag", "finetune.unrecorded.", "A move that has no run yet, as JSON.", "registered model", ending="<move>"
)
MOVE_TAG = _declare("tag", "finetune.move.", "A field of a recorded move.", "run", ending="<field>")
MOVE_CANDIDATE_DIGEST_TAG = _declare(
    "tag", "finetune.move.candidate_digest", "The adapter digest of the judged version.", "run"
)
MOVE_CHAMPION_DIGEST_TAG = _declare(
    "tag", "finetune.move.champion_digest", "The adapter digest of the champion that it was compared with.", "run"
)
LEASE_TAG = _declare(
    "tag", "finetune.lease.", "Who may move the aliases now: id, owner, expiry.", "registered model", ending="<field>"
)
VOTE_PAIR_TAG = _declare(
    "tag",
    "finetune.vote_pair.",
    "A pair that the gate tested by votes: its number, and earlier discoveries, as JSON.",
    "registered model",
    ending="<version>-<version>-<policy>",
)
GAIN_TEST_TAG = _declare(
    "tag",
    "finetune.gain_test.",
    "A gain that the gate tested: its number, and earlier discoveries, as JSON.",
    "registered model",
    ending="<version>-<version>-<policy>",
)
PROMOTED_TAG = _declare("tag", "finetune.promoted", "When and from where an alias was moved to it.", "version")
ROLLED_BACK_TAG = _declare("tag", "finetune.rolled_back", "When an alias was rolled back from it.", "version")
CANARY_TAG = _declare("tag", "finetune.canary", "The canary that runs, as JSON.", "registered model")
# The heartbeat has its own tag, so that a late one cannot bring an ended canary back.
CANARY_ALIVE_TAG = _declare(
    "tag", "finetune.canary_alive.", "Epoch seconds of the canary's last heartbeat.", "registered model", ending="<id>"
)

# Checks of the champion.
WATCH_TAG = _declare("tag", "finetune.watch", "The verdict of the last check.", "run", "version")
WATCH_RUN_TAG = _declare("tag", "finetune.watch_run", "The run that holds the check's report.", "run")
WATCH_OUTCOME_TAG = _declare("tag", "finetune.watch.outcome", "The verdict of this check.", "run")
WATCH_CHAMPION_TAG = _declare("tag", "finetune.watch.champion", "The version that was checked.", "run")
WATCH_REASON_TAG = _declare("tag", "finetune.watch.reason", "Why the check has its verdict.", "run")
WATCH_MOVE_RUN_TAG = _declare("tag", "finetune.watch.move_run", "The run of the rollback that followed.", "run")
WATCH_CHAMPION_DIGEST_TAG = _declare("tag", "finetune.watch.champion_digest", "The champion's adapter digest.", "run")
WATCH_PREVIOUS_DIGEST_TAG = _declare(
    "tag", "finetune.watch.previous_digest", "The previous champion's adapter digest.", "run"
)

# Serving.
SPLIT_TAG = _declare(
    "tag", "finetune.split", "Shares of the requests, e.g. champion=90, challenger=10.", "registered model"
)
SHADOW_TAG = _declare(
    "tag", "finetune.shadow", "A version that answers copies of the requests, unseen by users.", "registered model"
)
SERVED_TAG = _declare(
    "tag",
    "finetune.served.",
    "Answers, failures and latency, as this router counted them.",
    "version",
    ending="<router>",
)
CERTIFICATE_TAG = _declare(
    "tag",
    "finetune.certificate.",
    "How an engine's answers compare with the reference.",
    "version",
    ending="<precision>",
)

# Answers and votes.
TURN_TAG = _declare("tag", "finetune.turn_id", "The turn that the answer belongs to.", "trace")
TRACE_MODEL_TAG = _declare("tag", "finetune.model", "The registered model that answered.", "trace")
TRACE_VERSION_TAG = _declare("tag", "finetune.version", "The version that answered.", "trace")
FINISH_TAG = _declare(
    "tag", "finetune.finish_reason", "Why the answer ended: stop, length, ...; also an attribute of the span.", "trace"
)
# Each vote has exactly one such trace, so readers need only these: half of those with a vote.
LEFT_TAG = _declare("tag", "finetune.shown_left", "true when the answer was the left side.", "trace")
VOTED_TAG = _declare("tag", "finetune.voted", "true when a vote exists for the answer.", "trace")
SAMPLING_ATTRIBUTE = _declare("attribute", "finetune.sampling", "The sampling parameters of the answer.", "trace")
SYSTEM_PROMPT_ATTRIBUTE = _declare("attribute", "finetune.system_prompt", "The system prompt.", "trace")
RECEIPT_ATTRIBUTE = _declare("attribute", "finetune.receipt", "The router's receipt of the answer.", "trace")
FIRST_TOKEN_ATTRIBUTE = _declare(
    "attribute", "finetune.time_to_first_token_ms", "Milliseconds from the request to the first token.", "trace"
)
FAULT_ATTRIBUTE = _declare("attribute", "finetune.fault", "What went wrong with the answer.", "trace")
VOTE_FEEDBACK = _declare("feedback", "finetune.vote", "A vote as one side sees it: won, lost, tie, both_bad.", "trace")
VOTE_METADATA = _declare("feedback", "finetune.", "A field of the vote in its feedback.", "trace", ending="<field>")
VOTE_ID_METADATA = _declare("feedback", "finetune.vote_id", "The vote's id.", "trace")
VOTE_SESSION_METADATA = _declare("feedback", "finetune.session", "The playground session of the vote.", "trace")
VOTE_TIME_METADATA = _declare("feedback", "finetune.cast_at", "When the vote was cast, UTC.", "trace")

# Metrics of a training run.
PLAN_MEMORY = _declare("metric", "plan/memory_mib", "Forecast of the training's peak memory.", "run")
PLAN_SECONDS = _declare("metric", "plan/train_seconds", "Forecast of the training's time.", "run")
TRAIN = _declare("metric", "train/", "A figure of the training at a step.", "run", ending="<figure>")
TRAIN_LOSS = _declare("metric", "train/loss", "The loss of the steps since the last report.", "run")
TRAIN_TOKEN_RATE = _declare("metric", "train/tokens_per_second", "Tokens trained on in a second.", "run")
TRAIN_TOKENS = _declare("metric", "train/tokens", "Tokens trained on so far.", "run")
TRAIN_HALVINGS = _declare("metric", "train/halvings", "How often the micro-batch was halved for memory.", "run")
TRAIN_SECONDS = _declare("metric", "train/seconds", "Time of the training, all attempts together.", "run")
TRAIN_PEAK_MEMORY = _declare("metric", "train/peak_memory_mib", "Peak memory of the training.", "run")
TRAIN_REFERENCE_SECONDS = _declare(
    "metric", "train/reference_seconds", "Time to compute the log-probabilities of the model before training.", "run"
)
TRAIN_REFERENCE_CHOSEN = _declare(
    "metric",
    "train/reference_chosen_nats",
    "Nats per token of the better answers before training, mean of pairs.",
    "run",
)
TRAIN_REFERENCE_REJECTED = _declare(
    "metric",
    "train/reference_rejected_nats",
    "Nats per token of the worse answers before training, mean of pairs.",
    "run",
)
TRAIN_TOTAL_TOKENS = _declare("metric", "train/total_tokens", "Tokens trained on in all.", "run")
EVAL_LOSS = _declare(
    "metric", "eval_loss", "The loss on the validation rows, or on the held-out rows where there are none.", "run"
)
EVAL_ACCURACY = _declare("metric", "eval_mean_token_accuracy", "Share of held-out tokens predicted.", "run")
VALIDATION = _declare(
    "metric",
    "validation/",
    "A figure of the objective on the validation rows, such as rewards/margins.",
    "run",
    ending="<figure>",
)
START = _declare(
    "metric",
    "start/",
    "A figure of completions that were sampled before the first step: reward, pass_at_1, flat_groups, ...",
    "run",
    ending="<figure>",
)
ALARMS = _declare(
    "metric", "alarms/", "The figure of an alarm at a step, such as length_ratio.", "run", ending="<alarm>"
)
CHECKPOINT_EVAL_LOSS = _declare(
    "metric", "checkpoint/eval_loss", "The eval_loss of a checkpoint's model.", "run", "logged model"
)
RELOAD_NATS = _declare(
    "metric", "reload/max_nats", "Largest difference of the loaded model to the trained one.", "run", "logged model"
)
RELOAD_REWARD = _declare(
    "metric", "reload/max_reward", "Largest difference of the loaded reward model's rewards.", "run", "logged model"
)
PRECISION = _declare(
    "metric",
    "precision/",
    "Gap and noise of a serving precision, in nats.",
    "run",
    "logged model",
    ending="<precision>/<figure>",
)

# Metrics of a proof; with several tasks each again as <name>/<task>.
EVAL_KL = _declare(
    "metric",
    "eval/kl",
    "How much likelier the adapter's answers are than under the base, in nats per token; with rewards.",
    "run",
    "logged model",
)
EVAL_ANSWER_TOKENS = _declare(
    "metric",
    "eval/answer_tokens/",
    "Mean length of the generated answers in tokens: base, adapter, and start for the start version.",
    "run",
    "logged model",
    ending="<side>",
)
EVAL_ROWS = _declare("metric", "eval/rows", "Held-out rows that both sides answered.", "run", "logged model")
EVAL_BASE = _declare("metric", "eval/base/", "The base's result in a metric.", "run", "logged model", ending="<metric>")
EVAL_ADAPTER = _declare(
    "metric", "eval/adapter/", "The adapter's result in a metric.", "run", "logged model", ending="<metric>"
)
EVAL_GAIN = _declare("metric", "eval/gain/", "Adapter minus base.", "run", "logged model", ending="<metric>")
EVAL_GAIN_LOW = _declare(
    "metric", "eval/gain_low/", "Lower end of the gain's 95 % interval.", "run", "logged model", ending="<metric>"
)
EVAL_GAIN_HIGH = _declare(
    "metric", "eval/gain_high/", "Upper end of the gain's 95 % interval.", "run", "logged model", ending="<metric>"
)
REWARD = _declare(
    "metric",
    "reward/",
    "A figure of a reward model on the held-out pairs: margin, mean, calibration_error, ...",
    "run",
    "logged model",
    ending="<figure>",
)
EVAL_START = _declare(
    "metric", "eval/start/", "The result of the start version in a metric.", "run", "logged model", ending="<metric>"
)
EVAL_GAIN_OVER_START = _declare(
    "metric", "eval/gain_over_start/", "Adapter minus start version.", "run", "logged model", ending="<metric>"
)
EVAL_GAIN_OVER_START_LOW = _declare(
    "metric",
    "eval/gain_over_start_low/",
    "Lower end of that gain's 95 % interval.",
    "run",
    "logged model",
    ending="<metric>",
)
EVAL_GAIN_OVER_START_HIGH = _declare(
    "metric",
    "eval/gain_over_start_high/",
    "Upper end of that gain's 95 % interval.",
    "run",
    "logged model",
    ending="<metric>",
)
FORGETTING = _declare(
    "metric", "forgetting/nats_per_token", "Loss added on general text, in nats per token.", "run", "logged model"
)
FORGETTING_LOW = _declare(
    "metric", "forgetting/nats_per_token_low", "Lower end of its 95 % interval.", "run", "logged model"
)
FORGETTING_HIGH = _declare(
    "metric", "forgetting/nats_per_token_high", "Upper end of its 95 % interval.", "run", "logged model"
)
INTERFERENCE = _declare(
    "metric",
    "interference/",
    "The mixture's adapter minus an adapter of this task alone.",
    "run",
    ending="<metric>/<task>",
)
WATCH_METRIC = _declare("metric", "watch/", "A number of a check's criterion.", "run", ending="<criterion>")

# Artifacts of a run.
LOSS_PICTURE = _declare("artifact", "1_loss.png", "The loss over the steps.", "run")
GAIN_PICTURE = _declare("artifact", "2_gain.png", "Base and adapter in each metric, with the gain.", "run")
PLOTS_FOLDER = _declare("artifact", "plots", "More pictures: tasks.png, interference.png.", "run")
RECORDS_FOLDER = _declare("artifact", "finetune", "What the run was made of: config, data report, forecast.", "run")
VOTES_RECORD = _declare(
    "artifact", "votes.json", "In `finetune/`: ids and digests of the votes that `votes:NAME` read.", "run"
)
COMPLETIONS_FOLDER = _declare(
    "artifact",
    "completions",
    "Tables of sampled completions with their rewards: at_start.json, completions-<step>.json.",
    "run",
)
START_COMPLETIONS = _declare(
    "artifact", "at_start.json", "In `completions/`: completions that were sampled before the first step.", "run"
)
HELD_OUT_FOLDER = _declare("artifact", "proof", "The held-out rows and both answers to each.", "run")
HELD_OUT_TABLE = _declare(
    "artifact", "rows.json", "In `proof/`: each held-out row with both answers and their scores.", "run"
)
START_TABLE = _declare(
    "artifact",
    "start.json",
    "In `proof/`: each held-out row with the answers of the start version and of the adapter.",
    "run",
)
FORGETTING_TABLE = _declare(
    "artifact",
    "forgetting.json",
    "In `proof/`: tokens and summed nats of each forgetting text, base and adapter.",
    "run",
)
CALIBRATION_TABLE = _declare(
    "artifact",
    "calibration.json",
    "In `proof/`: of a reward model, pairs by how sure it is, and how often it is right.",
    "run",
)
GATE_FOLDER = _declare("artifact", "finetune/gate", "The policy and the rows of its regression files.", "run")
LOGS_FOLDER = _declare("artifact", "logs", "The worker's log and, after an error, its traceback.", "run")
CHECKPOINTS_FOLDER = _declare("artifact", "checkpoints", "Checkpoints to resume from, while the run lasts.", "run")
CARD_FILE = _declare("artifact", "finetune.json", "What the model was made of and how to load it.", "logged model")
REFERENCE_FILE = _declare(
    "artifact", "reference.json", "Log-probabilities of probes, to check every load against.", "logged model"
)

NAMES: tuple[Name, ...] = tuple(_names)
