"""Load the methods of a training: an adaptation (how the base is changed) and an objective (what it learns from).

A method is a module. The built-in methods are the files in ``adaptations/`` and ``objectives/``; other packages add
theirs through the entry-point groups ``mlflow_finetune.adaptations`` and ``mlflow_finetune.objectives``
(docs/extending.md). The protocols below are the contract: mypy checks the built-in modules against them, and
``load_method`` checks the modules of other packages when it loads them.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, overload

from mlflow_finetune_plugin.errors import ConfigError, unknown
from mlflow_finetune_plugin.section import Section

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from mlflow_finetune_plugin.base_models.facts import BaseFacts, Reasons

__all__ = [
    "Adaptation",
    "AdaptationModule",
    "Kind",
    "Method",
    "Objective",
    "Serving",
    "built_in_methods",
    "load_method",
    "method_names",
]

Kind = Literal["adaptation", "objective"]
Serving = Literal["vllm", "convertible", "merge", "transformers"]
"""How a trained adapter can be served: vLLM loads it (``vllm``), or loads it after a conversion to plain LoRA
(``convertible``) or after a merge into the base (``merge``); ``transformers`` means only the Transformers engine can.
"""

_PACKAGES: dict[Kind, str] = {
    "adaptation": "mlflow_finetune_plugin.adaptations",
    "objective": "mlflow_finetune_plugin.objectives",
}


class AdaptationModule(Protocol):
    """The members that every adaptation must define."""

    @property
    def Options(self) -> type[Section]:
        """The options that a recipe may set, each field with a description and a default."""

    def resolve(self, options: Any, base: BaseFacts, reasons: Reasons) -> Any:
        """Return the options without any ``auto``. No weights are read yet.

        Args:
            options: an instance of ``Options``.
            base: sizes and layer names of the base model.
            reasons: receives ``options.KEY`` -> "VALUE: why" for every ``auto`` that is replaced.

        Raises:
            BaseModelError: this base cannot be adapted with these options.
        """

    def learning_rate(self, base: BaseFacts) -> tuple[float, str]:
        """Return the ``auto`` learning rate and the reason for it, such as a paper."""

    def serving(self, options: Any) -> Serving:
        """Return how the trained adapter can be served."""

    def apply(self, model: PreTrainedModel, options: Any, *, seed: int, folder: Path) -> PeftModel:
        """Wrap the base model for training. Until the first step it must answer exactly as the base does.

        Args:
            model: the loaded base; on torch's meta device while the plan is made.
            options: resolved options.
            seed: decides every random start value.
            folder: keeps what ``save`` needs later.
        """

    def save(self, model: PeftModel, options: Any, folder: Path, *, start: Path) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors`` to ``folder``, loadable on the untouched
        base.

        Args:
            model: the trained model.
            options: resolved options.
            folder: receives the two files.
            start: the folder that ``apply`` received.
        """


class Adaptation(AdaptationModule, Protocol):
    """An adaptation as ``load_method`` returns it: the optional members have the defaults below where a module omits
    them.
    """

    QUANTIZATION: Literal["nf4", "int8"] | None = None
    """The ``base_model.quantization`` that applies when the recipe sets none."""

    MODEL_CODE: tuple[Path, ...] = ()
    """Python files that are copied into every logged model and imported before its adapter is loaded.

    An adaptation that PEFT does not know registers itself in ``peft.mapping`` there. The files must not import this
    package.
    """

    def optimizer(
        self,
        model: PeftModel,
        options: Any,
        *,
        optimizer_class: type,
        optimizer_kwargs: Mapping[str, Any],
        weight_decay: float,
    ) -> Any | None:
        """Return a torch optimizer, or None for the trainer's."""
        return None

    def has_effect(self, weights: Mapping[str, Any]) -> bool:
        """Return whether the saved tensors change any answer. By default: whether any of them is not zero."""
        return any(bool(tensor.any()) for tensor in weights.values())

    def meta_options(self, options: Any) -> Any:
        """Return options of the same shapes that ``apply`` accepts for a model on torch's meta device, without weights."""
        return options

    def vllm_max_lora_rank(self, options: Any) -> int | None:
        """Return the ``--max-lora-rank`` that vLLM needs for this adapter, or None where vLLM needs no such flag."""
        return None


class Objective(Protocol):
    """The members that every objective must define."""

    @property
    def Options(self) -> type[Section]:
        """The options that a recipe may set, each field with a description and a default."""

    def trainer_class_and_config(self, options: Any) -> tuple[type, type, dict[str, object]]:
        """Return the Trainer class that is used, its config class, and further arguments for that config.

        A subclass of ``training.micro_batches.MicroBatchTrainer`` packs rows, shares a step among several processes and
        divides a step further when memory is short. Any other ``transformers.Trainer`` trains in one process, as it is.
        """


@dataclass(frozen=True)
class Method:
    """An adaptation and an objective, each with its resolved options."""

    adaptation: Adaptation
    adaptation_options: Any
    objective: Objective
    objective_options: Any


def method_names(kind: Kind) -> list[str]:
    """Return all names of this kind, built-in ones first, each once."""
    built_in = built_in_methods(kind)
    return built_in + [point.name for point in _entry_points(kind) if point.name not in built_in]


def built_in_methods(kind: Kind) -> list[str]:
    """Return the names that come with this package."""
    package = importlib.import_module(_PACKAGES[kind])
    return [module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")]


@overload
def load_method(kind: Literal["adaptation"], name: str) -> Adaptation: ...
@overload
def load_method(kind: Literal["objective"], name: str) -> Objective: ...
@overload
def load_method(kind: Kind, name: str) -> Adaptation | Objective: ...
def load_method(kind: Kind, name: str) -> Adaptation | Objective:
    """Return a method that satisfies its contract.

    Raises:
        ConfigError: the name is unknown, or its module cannot be imported or breaks the contract; the message names
            every missing or wrong member.
    """
    if name in built_in_methods(kind):
        return _complete(kind, importlib.import_module(f"{_PACKAGES[kind]}.{name}"))
    for point in _entry_points(kind):
        if point.name == name:
            return _complete(kind, _load_checked(kind, point))
    raise ConfigError([unknown(kind, name, method_names(kind))])


def method_module(method: Adaptation | Objective) -> ModuleType:
    """Return the module behind a method that ``load_method`` returned."""
    return cast(_CompleteMethod, method).module


class _CompleteMethod:
    """A module's members, and for an adaptation the defaults of the optional ones. Read-only."""

    def __init__(self, module: ModuleType, contract: type) -> None:
        members = {name: getattr(module, name) for name in _members(contract) if hasattr(module, name)}
        self.__dict__.update(members, module=module, __doc__=module.__doc__)

    module: ModuleType
    Options = Section  # replaces the protocol's property, which would hide the module's own

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name}: a loaded method is read-only")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _CompleteMethod) and other.module is self.module

    def __hash__(self) -> int:
        return hash(self.module)


class _CompleteAdaptation(_CompleteMethod, Adaptation):
    """Inherits the defaults of the optional members from the protocol."""


def _complete(kind: Kind, module: ModuleType) -> Adaptation | Objective:
    if kind == "adaptation":
        return _CompleteAdaptation(module, Adaptation)  # type: ignore[abstract]
    return cast(Objective, _CompleteMethod(module, Objective))


def _entry_points(kind: Kind) -> importlib.metadata.EntryPoints:
    return importlib.metadata.entry_points(group=f"mlflow_finetune.{kind}s")


def _load_checked(kind: Kind, point: importlib.metadata.EntryPoint) -> ModuleType:
    try:
        module = point.load()
    except Exception as error:  # the code of any package runs here
        raise ConfigError(
            [f"{kind} '{point.name}' from {point.value} cannot be imported: {type(error).__name__}: {error}"]
        ) from error
    faults = list(contract_faults(kind, module))
    if faults:
        raise ConfigError(
            [
                f"{kind} '{point.name}' from {point.value} does not satisfy the contract: {'; '.join(faults)}; "
                "fix: see docs/extending.md"
            ]
        )
    return cast(ModuleType, module)


def contract_faults(kind: Kind, module: object) -> Iterator[str]:
    """Yield a line for every member of the module that is missing or does not fit the contract."""
    if not isinstance(module, ModuleType):
        yield f"it is an instance of {type(module).__name__}, not a module"
        return
    required = _members(AdaptationModule if kind == "adaptation" else Objective)
    optional = [name for name in _members(Adaptation) if name not in required] if kind == "adaptation" else []
    missing = [name for name in required if not hasattr(module, name)]
    if missing:
        yield f"missing: {', '.join(missing)}"
    contract = Adaptation if kind == "adaptation" else Objective
    for name in [*required, *optional]:
        if not hasattr(module, name):
            continue
        value, member = getattr(module, name), getattr(contract, name)
        fault = _ATTRIBUTE_FAULTS[name](value) if name in _ATTRIBUTE_FAULTS else _signature_fault(value, member)
        if fault:
            yield f"{name} {fault}"


def _members(contract: type) -> list[str]:
    """Return the public names that a protocol and its bases declare, in their order."""
    return [name for base in reversed(contract.__mro__[:-1]) for name in vars(base) if not name.startswith("_")]


def _options_fault(value: Any) -> str | None:
    if isinstance(value, type) and issubclass(value, Section):
        return None
    return f"is {value!r}, not a subclass of mlflow_finetune_plugin.section.Section"


def _quantization_fault(value: Any) -> str | None:
    return None if value in ("nf4", "int8", None) else f"is {value!r}, not 'nf4', 'int8' or None"


def _model_code_fault(value: Any) -> str | None:
    if isinstance(value, tuple) and all(isinstance(file, Path) and file.is_file() for file in value):
        return None
    return f"is {value!r}, not a tuple of paths of existing files"


_ATTRIBUTE_FAULTS: dict[str, Callable[[Any], str | None]] = {
    "Options": _options_fault,
    "QUANTIZATION": _quantization_fault,
    "MODEL_CODE": _model_code_fault,
}


def _signature_fault(function: Any, contract: Callable[..., Any]) -> str | None:
    """Return why the function cannot be called like the contract's method, or None."""
    if not callable(function):
        return f"is {function!r}, not a function"
    parameters = list(inspect.signature(contract).parameters.values())[1:]  # without self
    keywords = {parameter.name: None for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    try:
        inspect.signature(function).bind(*[None] * (len(parameters) - len(keywords)), **keywords)
    except TypeError:
        positional = [parameter.name for parameter in parameters if parameter.name not in keywords]
        expected = ", ".join([*positional, *(["*", *keywords] if keywords else [])])
        return f"must accept ({expected}), but it is {inspect.signature(function)}"
    return None
