"""Commands that serve registered models, make API keys and chat."""

__all__ = ["chat", "keys", "serve"]
