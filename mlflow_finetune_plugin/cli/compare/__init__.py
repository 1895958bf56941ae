"""Commands that compare versions: the playground, its users, and votes."""

__all__ = ["playground", "users", "votes"]
