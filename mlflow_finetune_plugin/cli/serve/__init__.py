"""Commands that serve registered models, make API keys and chat."""
