"""Which environment variables a scoring process gets."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

_SECRET_NAME = re.compile(
    r"(?:^|_)(?:AUTH|CREDENTIALS?|KEYS?|PASS|PASSPHRASE|PASSWD|PAT|SECRETS?|TOKENS?)(?:_|$)"
    r"|(?:APIKEY|KEY_ID|PASSWORD|PASSWD|SECRET|TOKEN)S?(?:_|$)",
    re.IGNORECASE,
)
_ADDRESS_WITH_PASSWORD = re.compile(r"://[^/\s@]+@")


def without_secret_variables(environment: Mapping[str, str], allowed: Collection[str]) -> dict[str, str]:
    """Return the variables that are in ``allowed`` or look like no secret, by their name and by their value."""
    return {
        name: value
        for name, value in environment.items()
        if name in allowed or not (_SECRET_NAME.search(name) or _ADDRESS_WITH_PASSWORD.search(value))
    }
