"""The tests of stages that end in the registry share one store per test."""

from store_client import client

__all__ = ["client"]
