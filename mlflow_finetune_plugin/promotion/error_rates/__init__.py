"""How the tests of a registered model share one error rate: each test has a number, kept as a tag of the model.

The room promises that a test keeps its number, and that a later test never gets a part of the error that an earlier one
has spent. The part that a number stands for is computed by ``gate.statistics.error_budget``.
"""

from mlflow_finetune_plugin.promotion.error_rates.gain_tests import GainTests
from mlflow_finetune_plugin.promotion.error_rates.numbered_test import NumberedTest
from mlflow_finetune_plugin.promotion.error_rates.recording import record_tests
from mlflow_finetune_plugin.promotion.error_rates.vote_pairs import VotePairs

__all__ = ["GainTests", "NumberedTest", "VotePairs", "record_tests"]
