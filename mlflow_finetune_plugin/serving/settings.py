"""The settings of a service. Each one has its option, its description and its limits here, for every way to start a service."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.serving.versions.names import is_loopback
from mlflow_finetune_plugin.store.names import BASE

VLLM = "vllm"
TRANSFORMERS = "transformers"
AUTO = "auto"
ENGINES = (AUTO, VLLM, TRANSFORMERS)
DTYPES = ("float32", "bfloat16", "float16")
MAX_RANK = 512  # the largest --max-lora-rank of vLLM
_MAX_PORT = 65535

Kind = Literal["text", "path", "integer", "seconds", "switch"]


@dataclass(frozen=True)
class ServeOption:
    """How a setting is given to ``mlflow-finetune serve`` and to ``mlflow deployments create -C NAME=VALUE``.

    Attributes:
        name: The option's name in ``-C``; the flag of ``serve`` is the same with dashes.
        help: What the setting does, as a phrase without a full stop.
        kind: What its text is read as.
        metavar: The word for the value in the help; None where the choices or a switch say it.
        choices: The texts that are valid; empty where any text of this kind is.
        default_text: What holds without the option, where the default value does not say it.
        earlier_name: A name that the option had in an earlier version, and that is still accepted.
    """

    name: str
    help: str
    kind: Kind = "text"
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    default_text: str | None = None
    earlier_name: str | None = None

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def flags(self) -> tuple[str, ...]:
        """The flag, then the one of an earlier version."""
        earlier = (f"--{self.earlier_name.replace('_', '-')}",) if self.earlier_name else ()
        return (self.flag, *earlier)


def _option(*texts: str, **more: Any) -> dict[str, ServeOption]:
    return {"option": ServeOption(*texts, **more)}  # type: ignore[arg-type]  # the caller passes name, help, kind and metavar


@dataclass(frozen=True)
class EngineLimits:
    """What an engine may hold at once."""

    max_loras: int = field(
        default=4, metadata=_option("max_loras", "adapters in one batch of vLLM", "integer", "NUMBER")
    )
    max_cpu_loras: int = field(
        default=16, metadata=_option("max_cpu_loras", "adapters that vLLM keeps in memory", "integer", "NUMBER")
    )
    max_rank: int | None = field(
        default=None,
        metadata=_option(
            "max_rank",
            "largest LoRA rank that a later version may have",
            "integer",
            "NUMBER",
            default_text="the first version's rank, at least 16",
        ),
    )
    max_model_len: int | None = field(
        default=None,
        metadata=_option(
            "max_model_len",
            "tokens of prompt and answer together",
            "integer",
            "NUMBER",
            default_text="the base's limit",
        ),
    )
    max_num_seqs: int = field(
        default=32, metadata=_option("max_num_seqs", "answers that an engine generates at once", "integer", "NUMBER")
    )


@dataclass(frozen=True)
class ServiceSettings:
    """What a service is started with. ``models`` are the registered models that it serves, by name."""

    models: tuple[str, ...]
    engine: str = field(
        default=AUTO, metadata=_option("engine", "the engine that generates the answers", choices=ENGINES)
    )
    dtype: str | None = field(
        default=None,
        metadata=_option(
            "dtype", "precision of the engines", choices=(AUTO, *DTYPES), default_text="auto: that of each base"
        ),
    )
    host: str = field(
        default="127.0.0.1",
        metadata=_option(
            "host", "the address to listen on; any address but loopback needs API keys", "text", "ADDRESS"
        ),
    )
    port: int = field(default=8000, metadata=_option("port", "the port to listen on", "integer", "NUMBER"))
    api_key_file: Path | None = field(
        default=None,
        metadata=_option(
            "api_key_file",
            "require an API key; FILE holds the keys' hashes (`mlflow-finetune keys add FILE NAME` creates it)",
            "path",
            "FILE",
        ),
    )
    poll_s: float = field(
        default=1.0, metadata=_option("poll", "seconds between two polls of the registry", "seconds", "SECONDS")
    )
    report_every_s: float = field(
        default=60.0,
        metadata=_option(
            "report_every",
            "seconds between two reports of failures and latencies to the registry",
            "seconds",
            "SECONDS",
            earlier_name="tell_every",
        ),
    )
    store: Path = field(
        default_factory=lambda: Path("~/.cache/mlflow-finetune/serving").expanduser(),
        metadata=_option(
            "store", "the folder of fetched adapters", "path", "DIR", default_text="~/.cache/mlflow-finetune/serving"
        ),
    )
    max_store: int | None = field(
        default=None,
        metadata=_option(
            "max_store", "bytes that all fetched adapters may take", "integer", "BYTES", default_text="no limit"
        ),
    )
    base_models: tuple[Path, ...] = field(
        default=(), metadata=_option("base_model", "the folder of a base that has moved since training", "path", "DIR")
    )
    trust_remote_code: bool = field(
        default=False,
        metadata=_option("trust_remote_code", "let bases and tokenizers run Python code of their own", "switch"),
    )
    max_body: int = field(
        default=1_000_000,
        metadata=_option("max_body", "largest request in bytes, without its pictures", "integer", "BYTES"),
    )
    max_loaded: int = field(
        default=64,
        metadata=_option(
            "max_loaded", "versions loaded into engines; more only if aliases refer to more", "integer", "NUMBER"
        ),
    )
    max_engines: int = field(
        default=4,
        metadata=_option(
            "max_engines", "engines that run at once; more only if aliases need more", "integer", "NUMBER"
        ),
    )
    max_connections: int = field(
        default=256,
        metadata=_option(
            "max_connections",
            "connections that one address may hold open; loopback has no limit. Raise it if a proxy on another machine "
            "connects for all clients",
            "integer",
            "NUMBER",
        ),
    )
    allowed_hosts: tuple[str, ...] = field(
        default=(),
        metadata=_option(
            "allowed_host",
            "a host name under which a service without API keys answers, beside those of this machine",
            "text",
            "NAME",
        ),
    )
    limits: EngineLimits = field(default_factory=EngineLimits)
    webhook_secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Setting:
    """A field of ``ServiceSettings`` or ``EngineLimits`` that has an option.

    Attributes:
        field_name: The field.
        option: Its option.
        default: The field's default value.
        is_repeatable: Whether the option may be given several times.
    """

    field_name: str
    option: ServeOption
    default: Any
    is_repeatable: bool

    @property
    def help(self) -> str:
        """The description with the default."""
        text = self.option.default_text
        if text is None and self.default is not None and self.default != () and self.option.kind != "switch":
            text = f"{self.default:g}" if isinstance(self.default, float) else str(self.default)
        repeated = "; may be repeated" if self.is_repeatable else ""
        return f"{self.option.help}{repeated}" + (f" (default: {text})" if text is not None else "")

    def arguments(self, value: Any) -> list[str]:
        """Return the words of a command line that give this value."""
        if self.option.kind == "switch":
            return [self.option.flag] if value else []
        if value is None:
            return []
        values = value if self.is_repeatable else (value,)
        return [word for one_value in values for word in (self.option.flag, str(one_value))]


def _settings_of(kind: type[Any]) -> Iterator[Setting]:
    for each in fields(kind):
        if "option" in each.metadata:
            default = _default(each)
            yield Setting(each.name, each.metadata["option"], default, isinstance(default, tuple))


def _default(setting: Field[Any]) -> Any:
    return setting.default_factory() if setting.default_factory is not MISSING else setting.default


_OF_LIMITS = frozenset(each.name for each in fields(EngineLimits))
SETTINGS: tuple[Setting, ...] = (*_settings_of(ServiceSettings), *_settings_of(EngineLimits))
"""Every setting that has an option, in the order of the help."""


def service_settings(
    models: tuple[str, ...], values: Mapping[str, Any], *, webhook_secret: str | None = None
) -> ServiceSettings:
    """Return the settings that the options of a command line give.

    Args:
        models: Names of registered models; duplicates are removed.
        values: By field name; None or a missing name means the default. Paths are made absolute.
        webhook_secret: None refuses webhooks.
    """
    set_values: dict[str, Any] = {}
    for setting in SETTINGS:
        value = values.get(setting.field_name)
        if value is None or (setting.field_name == "dtype" and value == AUTO):
            continue
        if setting.is_repeatable:
            value = tuple(each.expanduser().resolve() if isinstance(each, Path) else each for each in value)
        elif isinstance(value, Path):
            value = value.expanduser().resolve()
        set_values[setting.field_name] = value
    limits = EngineLimits(**{name: set_values.pop(name) for name in _OF_LIMITS & set_values.keys()})
    return ServiceSettings(
        models=tuple(dict.fromkeys(models)), limits=limits, webhook_secret=webhook_secret, **set_values
    )


def serve_arguments(settings: ServiceSettings) -> list[str]:
    """Return the command line of ``mlflow-finetune serve`` that gives these settings, without the webhook secret."""
    words = ["serve", *settings.models]
    for setting in SETTINGS:
        holder = settings.limits if setting.field_name in _OF_LIMITS else settings
        value = getattr(holder, setting.field_name)
        if value != setting.default:
            words += setting.arguments(value)
    return words


def check_settings(settings: ServiceSettings) -> None:
    """Check what can be checked without the registry. Raises ConfigError with every fault."""
    faults = []
    if not settings.models:
        faults.append("no model to serve; fix: mlflow-finetune serve NAME")
    for name in settings.models:
        if name == BASE or "@" in name or "/" in name:
            faults.append(
                f"{name!r} is not the name of a registered model; fix: give the name alone, all of its aliases are served"
            )
    if settings.engine not in ENGINES:
        faults.append(f"engine {settings.engine!r}: unknown; fix: use one of {', '.join(ENGINES)}")
    if settings.dtype not in (None, *DTYPES):
        faults.append(f"dtype {settings.dtype!r}: unknown; fix: use one of {', '.join(DTYPES)}, or leave it out")
    if settings.api_key_file is None and not is_loopback(settings.host):
        faults.append(
            f"host {settings.host}: other machines need API keys; fix: --api-key-file FILE "
            "(mlflow-finetune keys add FILE NAME creates it), or --host 127.0.0.1"
        )
    if not 0 <= settings.port <= _MAX_PORT:
        faults.append(f"port {settings.port}: not valid; fix: use a number up to {_MAX_PORT}")
    rank = settings.limits.max_rank
    if rank is not None and not 1 <= rank <= MAX_RANK:
        faults.append(f"max rank {rank}: not valid; fix: use a number from 1 to {MAX_RANK}")
    faults += [fault for setting in SETTINGS if (fault := _number_fault(setting, settings)) is not None]
    for folder in settings.base_models:
        if not (folder / "config.json").is_file():
            faults.append(f"base model {folder}: has no config.json; fix: give the folder of a model")
    if faults:
        raise ConfigError(faults)


def _number_fault(setting: Setting, settings: ServiceSettings) -> str | None:
    name, option = setting.field_name, setting.option
    value = getattr(settings.limits if name in _OF_LIMITS else settings, name)
    if value is None or name in ("port", "max_rank"):
        return None
    text = option.name.replace("_", " ")
    if option.kind == "integer" and value < 1:
        return f"{text} {value}: not valid; fix: use a number from 1"
    if option.kind == "seconds" and not 0 < value < math.inf:
        return f"{text} {value}: not valid; fix: use a number of seconds above 0"
    return None
