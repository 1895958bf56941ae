"""Commands that judge, move and watch the champion."""
