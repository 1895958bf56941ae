"""Commands that start a project, check its data, plan and run it, and export its result."""

__all__ = ["data", "export", "init", "plan", "reference", "run"]
