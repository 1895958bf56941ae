"""Compare the installed packages with the versions that were tested together.

``tested_versions.txt`` has one column for each set of versions. tests/jobs/test_versions.py keeps the first equal to
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
_NOT_INSTALLED = "-"


@dataclass(frozen=True)
class PackageVersion:
    """A package, its installed version (None: not installed) and the version that was tested with the others (None: none)."""

    name: str
    installed: str | None
    tested: str | None

    @property
    def is_tested(self) -> bool:
        """Whether the first two numbers of the version agree; a patch release changes nothing that matters here."""
        return (
            self.installed is not None and self.tested is not None and _release(self.installed) == _release(self.tested)
        )

    @property
    def requirement(self) -> str:
        """The requirement of a tested version, for pip."""
        assert self.tested is not None
        return f"'{self.name}=={'.'.join(map(str, _release(self.tested)))}.*'"


def tested_sets() -> dict[str, dict[str, str]]:
    """Return the sets of versions that were tested together, by name: the version of each package that the set has."""
    rows = [
        line.split() for line in TESTED_FILE.read_text(encoding="ascii").splitlines() if line and line[0] not in "# "
    ]
    (_, *names), packages = rows[0], rows[1:]
    return {
        name: {package: versions[column] for package, *versions in packages if versions[column] != _NOT_INSTALLED}
        for column, name in enumerate(names)
    }


def package_versions(names: Sequence[str] | None = None) -> list[PackageVersion]:
    """Return the versions of packages beside those of the tested set that differs from them in the fewest packages.

    Args:
        names: The packages; by default all that were tested.
    """
    sets = list(tested_sets().values())
    names = names or list(dict.fromkeys(name for versions in sets for name in versions))
    installed = {name: installed_version(name) for name in names}
    compared = [[PackageVersion(name, installed[name], versions.get(name)) for name in names] for versions in sets]
    return min(compared, key=lambda packages: len(_untested(packages)))


def untested_note(names: Sequence[str] = TRAINING_PACKAGES) -> str | None:
    """Return a warning that names the packages whose versions were never tested together; None when there are none."""
    untested = _untested(package_versions(names))
    if not untested:
        return None
    listed = ", ".join(
        f"{package.name} {package.installed} (tested: {package.tested or 'none'})" for package in untested
    )
    return f"these versions were never tested together: {listed}; if the run fails, {untested_fix(untested)}"


def untested_fix(untested: Sequence[PackageVersion]) -> str:
    """Return the command that installs the tested versions."""
    requirements = " ".join(package.requirement for package in untested if package.tested is not None)
    return f"fix: pip install {requirements}" if requirements else "fix: use an environment without them"


def is_below(installed: str, floor: tuple[int, ...]) -> bool:
    """Return whether a version is older than ``floor``."""
    return _release(installed) < floor


def installed_version(name: str) -> str | None:
    """Return the version of an installed package; None when it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _untested(packages: Sequence[PackageVersion]) -> list[PackageVersion]:
    return [package for package in packages if package.installed and not package.is_tested]


def _release(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version."""
    return tuple(int(part) for part in version.partition("+")[0].split(".")[:2] if part.isdigit())
