"""Commands that judge, move and check the champion.

Each parses its options, calls one function of the API and prints the result.
"""

__all__ = ["promote", "rollback", "watch"]
