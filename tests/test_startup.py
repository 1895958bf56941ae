"""Packages that are left out of an import are as if not installed for its time, and no longer."""

import gc
import importlib.util
import sys

import pytest

from mlflow_finetune_plugin.startup import without


def test_what_is_left_out_cannot_be_found_until_it_is_over():
    sys.modules.pop("wave", None)
    with without("wave"):
        assert importlib.util.find_spec("wave") is None
        with pytest.raises(ImportError):
            import wave
    import wave

    assert wave.open


def test_what_is_imported_already_stays():
    import json

    with without("json"):
        assert sys.modules["json"] is json
    assert sys.modules["json"] is json


def test_garbage_is_looked_for_again_also_after_an_error():
    def failing():
        with without():
            assert not gc.isenabled()
            raise ImportError

    with pytest.raises(ImportError):
        failing()
    assert gc.isenabled()
