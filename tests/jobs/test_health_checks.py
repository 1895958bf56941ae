"""What doctor says of the device and of the tracking store."""

import pytest

from mlflow_finetune_plugin.jobs.health_checks import device_check, examine


@pytest.mark.parametrize(
    ("build", "gpus", "has_gpu", "is_good", "parts"),
    [
        ("12.8", 2, True, True, ["trains on: H100, 2 visible"]),
        ("cpu", 0, False, True, ["trains on: the CPU, 4 cores"]),
        ("12.8", 0, False, True, ["trains on: the CPU", "GPU build", "--torch-backend=cpu torch"]),
        ("cpu", 0, True, False, ["was built without GPU support; fix:", "--torch-backend=auto torch"]),
        ("12.8", 0, True, False, ["was built for CUDA 12.8, which the driver refuses; fix:"]),
    ],
)
def test_torch_that_does_not_fit_the_machine_comes_with_the_fix(build, gpus, has_gpu, is_good, parts):
    check = device_check("2.13.0", build, gpus, "H100" if gpus else "", has_gpu=has_gpu, cores=4)
    assert check.is_good == is_good
    for part in parts:
        assert part in check.text


@pytest.mark.process
def test_no_store_is_created_where_there_is_none(tmp_path, monkeypatch):
    import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: f"sqlite:///{tmp_path}/mlflow.db")
    checks = list(examine(reap=False))
    assert checks[-1].is_good
    assert checks[-1].text.endswith("mlflow.db: does not exist yet; the first run creates it")
    assert not (tmp_path / "mlflow.db").exists()
