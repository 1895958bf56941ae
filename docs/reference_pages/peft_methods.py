"""The page on the methods of PEFT: those that are offered, and those that are not, with their reasons."""

from __future__ import annotations

from mlflow_finetune_plugin.adaptations._peft import METHODS, REFUSED, PeftMethod
from reference_pages.markdown import code, page, sentence, table

_INTRODUCTION = """
These adaptations are [PEFT](https://github.com/huggingface/peft)'s own. They take the entry points and data of `lora`:

```
mlflow run my-bot -b finetune -e lora -P adaptation=vera
```

`mlflow-finetune methods` and the [configuration](configuration.md) list their options. Every method was tested with peft 0.21.2 on bases with random weights (Llama;
GPT-2, where its layers are supported): it starts as the base, learns, is saved, loads back with equal logits, continues, and merges.

"Below hidden size 512" is a rate at which tiny bases learned in trials of 20 steps. Other rates were not compared, except for `c3a`: after 60 steps on the embedded base
the loss of held-out answers fell from 9.82 to 2.73 at 0.1 and to 1.03 at 0.3 (`lora` at 2e-3: 0.23; `python benchmarks/peft_rates.py METHOD RATE`, 2 cores, CPU,
2026-11-25). Set `learning_rate` where the result matters.
"""

_PRECISIONS = """
"Bases" lists the quantisations and precisions on which the method trains. Others are refused before any weight is read. "GPT-2" says whether
layers that are stored as (inputs, outputs) can be adapted.
"""

_SERVING = """
The Transformers engine serves every method. vLLM loads none of them: it serves a method after `mlflow-finetune export --lora`
([conversion](../guides/prove.md#export)), which measures its error in nats and refuses more than 0.05, or after `export --merged`. An exact conversion has the rank that the table names. Other errors are the
largest difference on a token after 20 steps on the embedded base, whose layers have a rank of 128 (`python benchmarks/peft_conversion.py METHOD`, 2 cores, CPU, 2026-11-25).
"""


def render() -> str:
    """Return the page."""
    return page(
        "Methods of PEFT",
        _INTRODUCTION,
        "## What is trained, and how fast",
        table(
            ("adaptation", "method", "what it trains", "options", "learning rate", "below hidden size 512"),
            map(_training, METHODS),
        ),
        "## Bases",
        _PRECISIONS,
        table(("adaptation", "quantised", "precisions", "GPT-2"), map(_bases, METHODS)),
        "## Serving",
        _SERVING,
        table(("adaptation", "vLLM after", "as plain LoRA"), map(_serving, METHODS)),
        "## Not offered",
        "PEFT has these methods, too. An error that names one of them gives the reason.",
        table(("method", "reason"), ((code(name), sentence(reason)) for name, reason in REFUSED.items())),
    )


def _training(method: PeftMethod) -> tuple[str, ...]:
    options = ", ".join([*(code(option.name) for option in method.options), code("target_modules")])
    large = f"{method.rate.value:g}: {method.rate.reason}"
    return (
        code(method.name),
        f"{method.title}: {method.summary} ({method.paper})",
        method.trains,
        options,
        large,
        f"{method.small_rate.value:g}",
    )


def _bases(method: PeftMethod) -> tuple[str, ...]:
    quantised = ", ".join(map(code, method.quantizations)) or "no"
    return code(method.name), quantised, ", ".join(map(code, method.dtypes)), "yes" if method.takes_transposed else "no"


def _serving(method: PeftMethod) -> tuple[str, ...]:
    after = {"convertible": "a conversion, or a merge", "merge": "a merge"}[method.serving]
    return code(method.name), after, method.conversion
