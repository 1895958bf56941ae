"""Delay wrong passwords, so that they can neither be guessed fast nor lock out a user."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from gradio_app.web.access import parsed_address

LONGEST_DELAY_S = 8.0
_WINDOW_S = 15 * 60.0
_MOST_REMEMBERED = 10_000


@dataclass(frozen=True)
class _Limit:
    """How many wrong passwords are not delayed, and how many attempts may wait at once."""

    undelayed: int
    at_once: int


_OF_PAIR, _OF_ADDRESS = _Limit(undelayed=5, at_once=4), _Limit(undelayed=30, at_once=32)


@dataclass
class _WrongPasswords:
    count: int = 0
    last_at: float = 0.0


class Attempts:
    """The delay of each login attempt, by the wrong passwords before it.

    Wrong passwords count for the pair of name and address, so that no client delays a user at another address, and for the
    address alone, so that it cannot try one password on every name. The delay comes before the password is checked,
    because a client could otherwise drop attempts that are not answered at once. It doubles up to eight seconds and
    never becomes a refusal. An attempt counts when it begins, so that concurrent attempts cannot pass the delay.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wrong: OrderedDict[str, _WrongPasswords] = OrderedDict()
        self._waiting: Counter[str] = Counter()
        self._lock = threading.Lock()

    def begin(self, name: str, address: str) -> float | None:
        """Count an attempt; ``end`` must follow.

        Returns:
            Seconds to wait before the password is checked; None if too many attempts wait, and this one must not begin.
        """
        now = self._clock()
        with self._lock:
            limits = _limits(name, address)
            if any(self._waiting[key] >= limit.at_once for key, limit in limits):
                return None
            delay_s = max(self._delay_s(key, limit, now) for key, limit in limits)
            for key, _ in limits:
                self._waiting[key] += 1
                wrong = self._wrong.setdefault(key, _WrongPasswords())
                wrong.count, wrong.last_at = wrong.count + 1, now
                self._wrong.move_to_end(key)
            while len(self._wrong) > _MOST_REMEMBERED:
                self._wrong.popitem(last=False)
        return delay_s

    def end(self, name: str, address: str, *, is_right: bool) -> None:
        """End an attempt that has begun. A right password ends the delay of its pair, but not that of the address."""
        (of_pair, _), (of_address, _) = _limits(name, address)
        with self._lock:
            for key in (of_pair, of_address):
                self._waiting[key] -= 1
                if not self._waiting[key]:
                    del self._waiting[key]
            if is_right:
                self._wrong.pop(of_pair, None)
                if wrong := self._wrong.get(of_address):
                    wrong.count -= 1

    def _delay_s(self, key: str, limit: _Limit, now: float) -> float:
        wrong = self._wrong.get(key)
        if wrong is not None and now - wrong.last_at >= _WINDOW_S:
            del self._wrong[key]
            return 0.0
        if wrong is None or wrong.count < limit.undelayed:
            return 0.0
        return min(LONGEST_DELAY_S, 2.0 ** min(wrong.count - limit.undelayed, 10))


def _limits(name: str, address: str) -> tuple[tuple[str, _Limit], tuple[str, _Limit]]:
    neighbourhood = _neighbourhood(address)
    return (f"pair {neighbourhood} {name}", _OF_PAIR), (f"address {neighbourhood}", _OF_ADDRESS)


def _neighbourhood(address: str) -> str:
    """Return the address, or the /64 network of an IPv6 address, because one client owns all of it."""
    parsed = parsed_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(parsed), 64), strict=False))
    return address
