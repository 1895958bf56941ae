"""The tests of the promotion commands share one store per test."""

from store_client import client

__all__ = ["client"]
