"""Packages that are left out of an import are as if not installed for its time, and no longer."""

import gc
import importlib.metadata
import importlib.util
import subprocess
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


def test_installed_packages_are_listed_once():
    with without():
        assert importlib.metadata.packages_distributions() is importlib.metadata.packages_distributions()
    assert importlib.metadata.packages_distributions() is not importlib.metadata.packages_distributions()


@pytest.mark.process
def test_a_training_imports_no_scipy_before_its_proof():
    """While it cannot be found, as in the worker, an import of it by this package at module level fails."""
    code = (
        "from mlflow_finetune_plugin.startup import without\n"
        "with without('bitsandbytes', 'scipy', 'sklearn'): from mlflow_finetune_plugin import pipeline"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.process
def test_only_messages_that_nobody_can_act_on_are_left_out():
    program = """
import logging, os, warnings
from mlflow_finetune_plugin.startup import quiet_libraries
logging.basicConfig(level=logging.INFO, format="%(message)s")
quiet_libraries(owns_process=True)
warnings.simplefilter("always")
warnings.warn("\\x1b[33mAdd type hints to the `predict` method to enable data validation", UserWarning)
warnings.warn("the data changed", UserWarning)
logging.getLogger("mlflow.store.db.utils").info("Creating initial MLflow database tables...")
logging.getLogger("mlflow.store.db.utils").error("the database is locked")
print(os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"])
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    output = result.stdout + result.stderr
    assert "Add type hints" not in output
    assert "database tables" not in output
    assert "the data changed" in output
    assert "the database is locked" in output
    assert result.stdout == "false\n"
