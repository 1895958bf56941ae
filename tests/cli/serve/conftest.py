"""The tests of commands that serve share one store per test."""

from store_client import client

__all__ = ["client"]
