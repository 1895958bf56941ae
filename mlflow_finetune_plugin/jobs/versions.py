"""Compare the installed packages with the versions that were tested together.

The tested versions are in ``tested_versions.txt``, which tests/jobs/test_versions.py keeps equal to
``constraints.txt``.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TESTED_FILE = Path(__file__).with_name("tested_versions.txt")

TRAINING_PACKAGES = (
    "mlflow",
    "torch",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "datasets",
    "evaluate",
    "bitsandbytes",
)
REQUIRED_FOR_TRAINING = tuple(name for name in TRAINING_PACKAGES if name != "bitsandbytes")


@dataclass(frozen=True)
class PackageVersion:
    """A package, its installed version (None: not installed) and the version that was tested with the others."""

    name: str
    installed: str | None
    tested: str

    @property
    def is_tested(self) -> bool:
        """Whether the first two numbers of the version agree; a patch release changes nothing that matters here."""
        return self.installed is not None and _release(self.installed) == _release(self.tested)

    @property
    def requirement(self) -> str:
        """The requirement of a tested version, for pip."""
        return f"'{self.name}=={'.'.join(map(str, _release(self.tested)))}.*'"


def tested_versions() -> dict[str, str]:
    """Return the tested version of each package."""
    lines = TESTED_FILE.read_text(encoding="ascii").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def package_versions(names: Sequence[str] | None = None) -> list[PackageVersion]:
    """Return the versions of packages, by default of all that are named in the file."""
    tested = tested_versions()
    return [PackageVersion(name, installed_version(name), tested[name]) for name in (names or tested)]


def untested_note(names: Sequence[str] = TRAINING_PACKAGES) -> str | None:
    """Return a warning that names the packages whose versions were never tested together; None when there are none."""
    untested = [package for package in package_versions(names) if package.installed and not package.is_tested]
    if not untested:
        return None
    listed = ", ".join(f"{package.name} {package.installed} (tested: {package.tested})" for package in untested)
    requirements = " ".join(package.requirement for package in untested)
    return f"these versions were never tested together: {listed}; if the run fails, fix: pip install {requirements}"


def is_below(installed: str, floor: tuple[int, ...]) -> bool:
    """Return whether a version is older than ``floor``."""
    return _release(installed) < floor


def installed_version(name: str) -> str | None:
    """Return the version of an installed package; None when it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _release(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version."""
    return tuple(int(part) for part in version.partition("+")[0].split(".")[:2] if part.isdigit())
