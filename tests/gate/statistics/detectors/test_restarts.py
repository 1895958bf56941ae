import math

import numpy as np
import pytest

from mlflow_finetune_plugin.gate.statistics.detectors.restarts import evidence_of, restarted, share


def test_the_shares_add_up_to_one():
    assert sum(share(number) for number in range(1, 100_000)) == pytest.approx(1 - 1 / np.log(99_999 + np.e))
    assert all(share(number) > share(number + 1) > 0 for number in range(1, 1000))


def test_each_batch_starts_a_test_and_continues_the_earlier_ones():
    capitals = restarted((), 1, np.log([2.0, 3.0]))
    assert evidence_of(capitals) == pytest.approx(share(1) * 2.5)
    capitals = restarted(capitals, 2, np.log([5.0, 7.0]))
    assert np.exp(capitals) == pytest.approx([(share(1) * 2 + share(2)) * 5, (share(1) * 3 + share(2)) * 7])
    assert evidence_of(()) == 0
    assert math.isfinite(evidence_of((1e6,)))
