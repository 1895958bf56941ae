"""Change the registry for a canary: begin, widen and end it, also for a process that died. Each step may be
interrupted.

The intention is written first: the tag ``finetune.canary`` holds the previous split and the splits that will be set.
Then comes the alias ``canary``, and then the split, so that a split never names an alias that does not exist. The end
reverses the order: restore the split, delete the alias, delete the tag. A process that finds the tag without a live
process behind it completes the rest. The lease is held only during each of these steps, not while the canary waits.
Deleting the alias needs the right to delete aliases (MANAGE under MLflow's basic-auth), which is checked before
anything is changed.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import MoveError, one_line
from mlflow_finetune_plugin.promotion.moves.audit import last_moved, now, record_of, write_record
from mlflow_finetune_plugin.promotion.moves.canary_state import DEAD_S, CanaryState, read_state, split_of
from mlflow_finetune_plugin.promotion.moves.holder import Holder
from mlflow_finetune_plugin.promotion.moves.intent import REASON_LIMIT, Intent, MoveEvidence
from mlflow_finetune_plugin.promotion.moves.lease import Lease
from mlflow_finetune_plugin.store.names import CANARY, CANARY_ALIVE_TAG, CANARY_TAG, CHAMPION, INTENT_TAG, SPLIT_TAG
from mlflow_finetune_plugin.store.people import who_moves
from mlflow_finetune_plugin.store.registered_model import named, read_model, registry_faults, version_exists

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from mlflow_finetune_plugin.gate.canary_policy import CanaryPolicy


def begin_canary(
    client: MlflowClient, lease: Lease, candidate: str, policy: CanaryPolicy, evidence: MoveEvidence
) -> CanaryState:
    """Set the first step. The caller holds the lease and has settled earlier moves.

    Raises:
        MoveError: The canary cannot begin; nothing was changed.
    """
    name = lease.name
    aliases, tags = read_model(client, name)
    champion = aliases.get(CHAMPION)
    if champion is None:
        raise MoveError(f"{name}: has no {CHAMPION} that could answer the rest; fix: promote without --canary")
    if champion != evidence.champion:
        raise MoveError(
            f"{name}: version {candidate} was judged against {named(evidence.champion)}, but {CHAMPION} is "
            f"{named(champion)} now; fix: judge again"
        )
    if CANARY in aliases:
        raise MoveError(
            f"{name}: the alias {CANARY!r} is {named(aliases[CANARY])}, set by other means; fix: take it away first"
        )
    if not version_exists(client, name, candidate):
        raise MoveError(f"{name}: version {candidate} does not exist; fix: name a version that the registry has")
    client.delete_registered_model_alias(name, CANARY)  # not there: only asks whether we may
    holder = Holder.of_this_process(DEAD_S)
    state = CanaryState(
        id=holder.id,
        candidate=candidate,
        champion=champion,
        steps=policy.steps,
        step=0,
        split_before=tags.get(SPLIT_TAG),
        split_now=split_of(policy.steps[0]),
        who=holder.owner,
        pid=holder.pid,
        machine=holder.machine,
        begun=now(),
        heartbeat=time.time(),
        run_id=evidence.run_id,
        policy_digest=evidence.policy_digest,
        candidate_digest=evidence.candidate_digest,
        champion_digest=evidence.champion_digest,
    )
    lease.check()
    client.set_registered_model_tag(name, CANARY_TAG, state.to_json())
    lease.check()
    client.set_registered_model_alias(name, CANARY, candidate)
    lease.check()
    client.set_registered_model_tag(name, SPLIT_TAG, state.split_now)
    return state


def widen_canary(client: MlflowClient, lease: Lease, state: CanaryState) -> CanaryState:
    """Set the next step. Raises MoveError if ``disturbance`` returns a reason; nothing was changed then."""
    name = lease.name
    reason = disturbance(client, name, state)
    if reason is not None:
        raise MoveError(f"{name}: {reason}")
    step = state.step + 1
    wider = replace(state, step=step, split_now=split_of(state.steps[step]), heartbeat=time.time())
    lease.check()
    client.set_registered_model_tag(name, CANARY_TAG, wider.to_json())
    lease.check()
    client.set_registered_model_tag(name, SPLIT_TAG, wider.split_now)
    return wider


def keep_alive(client: MlflowClient, name: str, state: CanaryState) -> None:
    client.set_registered_model_tag(name, f"{CANARY_ALIVE_TAG}{state.id}", f"{time.time():.3f}")


def disturbance(client: MlflowClient, name: str, state: CanaryState) -> str | None:
    """Return a change from outside that ends this canary; None if everything is as this canary set it."""
    aliases, tags = read_model(client, name)
    current = read_state(tags)
    if current is None or current.id != state.id:
        return "another process ended the canary"
    if aliases.get(CHAMPION) != state.champion:
        return f"{CHAMPION} is {named(aliases.get(CHAMPION))} now, moved by other means"
    if aliases.get(CANARY) != state.candidate:
        return f"the alias {CANARY!r} is {named(aliases.get(CANARY))} now, set by other means"
    if tags.get(SPLIT_TAG) != state.split_now:
        return f"{SPLIT_TAG} is {tags.get(SPLIT_TAG)!r} now, set by other means"
    return None


def put_back(client: MlflowClient, lease: Lease, state: CanaryState) -> str:
    """Restore the previous split and delete the alias. Return the result in words.

    A split that was set from outside in the meantime stays, unless it names the alias that is deleted.
    """
    name = lease.name
    aliases, tags = read_model(client, name)
    split = tags.get(SPLIT_TAG)
    if split == state.split_before:
        outcome = f"{SPLIT_TAG} is as it was before"
    elif state.is_own_split(split) or _names_canary(split):
        lease.check()
        if state.split_before is not None:
            client.set_registered_model_tag(name, SPLIT_TAG, state.split_before)
        else:
            client.delete_registered_model_tag(name, SPLIT_TAG)
        outcome = f"{SPLIT_TAG} is put back to {state.split_before or 'none'}"
    else:
        outcome = f"{SPLIT_TAG} was set to {split or 'none'} by other means, and stays so"
    if aliases.get(CANARY) == state.candidate:
        lease.check()
        client.delete_registered_model_alias(name, CANARY)
    elif CANARY in aliases:
        outcome += f"; the alias {CANARY!r} was moved to {named(aliases[CANARY])} by other means, and stays so"
    return outcome


def close_canary(client: MlflowClient, lease: Lease, state: CanaryState) -> None:
    """Delete the tags of this canary."""
    _, tags = read_model(client, lease.name)
    for key in sorted(key for key in tags if key.startswith(CANARY_ALIVE_TAG)):
        client.delete_registered_model_tag(lease.name, key)
    current = read_state(tags)
    if current is not None and current.id == state.id:
        lease.check()
        client.delete_registered_model_tag(lease.name, CANARY_TAG)


def end_for_another(client: MlflowClient, lease: Lease, state: CanaryState, why: str, outcome: str) -> str:
    """End the canary of another process, write its record and end its run. Return the result in words.

    If the candidate is already champion, the process was interrupted after the move, which has its own record. A record
    that cannot be written does not prevent the end of the canary, and is mentioned in the result.
    """
    from mlflow.exceptions import MlflowException

    name = lease.name
    is_promoted = read_model(client, name)[0].get(state.alias) == state.candidate
    note = put_back(client, lease, state)
    try:
        if not is_promoted and (state.run_id is None or record_of(client, state.run_id) is None):
            record_canary(client, name, state, state.evidence(outcome, f"canary {why} at {state.share:g} %"))
        if state.run_id is not None:
            client.set_terminated(state.run_id, "FINISHED" if is_promoted or outcome == "reject" else "FAILED")
    except (MlflowException, MoveError) as error:
        note += f"; its record could not be written: {one_line(error)}"
    close_canary(client, lease, state)
    after = " after its candidate had become champion" if is_promoted else ""
    return f"{name}: {state.text}, was {why}{after}; {note}"


def stop_canary(client: MlflowClient, name: str, *, reason: str | None = None) -> str | None:
    """End the current canary, whether its process is alive or not, and return the result in words. The champion does
    not change.

    Returns:
        None if there is no canary, or its candidate is already champion.

    Raises:
        LeaseError, MoveError, TrackingError: The canary could not be ended.
    """
    with registry_faults(name):
        if read_state(read_model(client, name)[1]) is None:
            return None
        with Lease(client, name) as lease:
            aliases, tags = read_model(client, name)
            state = read_state(tags)
            if state is None or INTENT_TAG in tags or aliases.get(CHAMPION) == state.candidate:
                return None
            why = f"ended by a rollback of {who_moves()}" + (f" ({reason})" if reason else "")
            return end_for_another(client, lease, state, why, "reject")


def record_canary(client: MlflowClient, name: str, state: CanaryState, evidence: MoveEvidence) -> str:
    """Record the decision on a canary that moved nothing, once, and return the id of its run."""
    intent = Intent(
        id=state.id,
        kind="promote",
        alias=state.alias,
        from_version=state.champion,
        to_version=state.candidate,
        previous=None,
        expected=last_moved(read_model(client, name)[1], state.alias),
        who=state.who,
        when=state.begun,
        reason=evidence.reason[:REASON_LIMIT],
        evidence=evidence,
    )
    return write_record(client, name, intent, is_moved=False)


def _names_canary(split: str | None) -> bool:
    return CANARY in {part.partition("=")[0].strip() for part in (split or "").split(",")}
