"""Commands that compare versions: the playground, its users, and votes."""
