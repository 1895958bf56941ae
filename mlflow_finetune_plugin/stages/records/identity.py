"""The identity of a version: the digests and names in its tags, and the card inside the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin import __version__
from mlflow_finetune_plugin.base_models.weights_digest import folder_digest
from mlflow_finetune_plugin.data.preparation import PreparedData
from mlflow_finetune_plugin.logged_models.start_version import StartVersion
from mlflow_finetune_plugin.planning.plan import Plan
from mlflow_finetune_plugin.store.names import (
    ADAPTATION_TAG,
    ADAPTER_DIGEST_TAG,
    BASE_DIGEST_TAG,
    BASE_MODEL_TAG,
    DATA_DIGEST_TAG,
    KIND_TAG,
    OBJECTIVE_TAG,
    SERVING_TAG,
    START_DIGEST_TAG,
    START_FROM_TAG,
)


@dataclass(frozen=True)
class Identity:
    """The digests and names of what a version is made of. Lineage and serving rely on them as tags."""

    adaptation: str
    objective: str
    base_model: str
    base_digest: str
    data_digest: str
    adapter_digest: str
    serving: str
    is_reward_model: bool = False
    start: StartVersion | None = None

    @classmethod
    def of(cls, plan: Plan, data: PreparedData, base_digest: str, adapter: Path) -> Identity:
        """Return the identity of an adapter that was trained by this plan."""
        return cls(
            adaptation=plan.config.adaptation,
            objective=plan.config.objective,
            base_model=plan.base.name,
            base_digest=base_digest,
            data_digest=data.digest,
            adapter_digest=folder_digest(adapter),
            serving=plan.serving,
            is_reward_model=plan.is_reward_model,
            start=plan.start,
        )

    def tags(self) -> dict[str, str]:
        """Return the identity as tags."""
        return {
            ADAPTATION_TAG: self.adaptation,
            OBJECTIVE_TAG: self.objective,
            BASE_MODEL_TAG: self.base_model,
            BASE_DIGEST_TAG: self.base_digest,
            DATA_DIGEST_TAG: self.data_digest,
            ADAPTER_DIGEST_TAG: self.adapter_digest,
            SERVING_TAG: self.serving,
            **({KIND_TAG: "reward"} if self.is_reward_model else {}),
            **start_tags(self.start),
        }


def start_tags(start: StartVersion | None) -> dict[str, str]:
    """Return the tags of the version that a training continues; none for a new adapter."""
    return {} if start is None else {START_FROM_TAG: start.uri, START_DIGEST_TAG: start.digest}


def model_card(plan: Plan, identity: Identity) -> dict[str, Any]:
    """Return the content of the model's file ``finetune.json``: all that is needed to load, serve and identify it."""
    base = plan.base
    return {
        "mlflow_finetune": __version__,
        "base_model": {
            "name": base.name,
            "folder": str(base.folder),
            "model_type": plan.facts.model_type,
            "revision": base.revision,
            "digest": identity.base_digest,
            "dtype": str(base.dtype).removeprefix("torch."),
            "quantization": base.quantization,
            "attn_implementation": base.attn_implementation,
            "trust_remote_code": base.trust_remote_code,
        },
        "adaptation": identity.adaptation,
        "objective": identity.objective,
        **({"kind": "reward"} if identity.is_reward_model else {}),
        **({"sees": True} if plan.facts.sees else {}),
        "options": plan.options,
        "serving": identity.serving,
        "data_digest": identity.data_digest,
        "adapter_digest": identity.adapter_digest,
        "stop_token_ids": list(plan.renderer.stop_token_ids),
        "answer_prefix": plan.renderer.answer_prefix.strip(),
        "chat_template_kwargs": plan.config.data.chat_template_kwargs,
        "chat_template_source": plan.renderer.template_source,
        "max_new_tokens": int(plan.config.eval.max_new_tokens),
        "max_length": plan.max_length,
        **({} if plan.start is None else {"start_from": {"model": plan.start.uri, "digest": plan.start.digest}}),
    }
