"""The number of compute threads follows the model's width, the cores that are granted and those that are busy."""

import pytest

from mlflow_finetune_plugin.threads import choose_threads, cpu_quota, idle_cores


def chosen(hidden_size, *, cores=8, load=0.0, host_cores=None, **more):
    more.setdefault("environment", {})
    return choose_threads(hidden_size, cores=cores, host_cores=host_cores or cores, load=load, **more)


def test_small_model_gets_one_thread_on_an_idle_machine():
    choice = chosen(128, cores=64)
    assert str(choice) == "1: a hidden size of 128 is too small to divide among 64 cores"


def test_wide_model_gets_every_idle_core():
    assert str(chosen(4096, load=0.3)) == "8: all 8 cores are free (load 0.3)"


def test_middle_model_gets_no_thread_without_work():
    choice = chosen(896, cores=64)
    assert choice.count == 14
    assert "a hidden size of 896 keeps no more of the 64 cores at work" in choice.why


@pytest.mark.parametrize(("load", "count"), [(0.4, 8), (2.6, 5), (7.0, 1), (30.0, 1)])
def test_busy_cores_are_left_to_their_processes(load, count):
    assert chosen(4096, load=load).count == count


def test_load_refers_to_the_whole_machine():
    """Four cores of 64 are granted: 30 busy processes leave them free."""
    assert chosen(4096, cores=4, host_cores=64, load=30.0).count == 4


def test_processes_of_a_training_share_the_cores():
    choice = chosen(4096, processes=3)
    assert choice.count == 2
    assert choice.why.endswith("; shared by 3 processes")


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_number_of_the_user_wins(name):
    assert str(chosen(128, environment={name: "6"})) == f"6: {name} is set"
    assert chosen(128, environment={name: ""}).count == 1
    assert chosen(128, environment={name: "many"}).count == 1


def test_one_core_is_one_thread():
    assert str(chosen(4096, cores=1)) == "1: this process may use one core"
    assert idle_cores(cores=1, host_cores=1, load=5.0).count == 1


@pytest.mark.parametrize(
    ("files", "membership", "quota"),
    [
        ({}, "0::/\n", None),
        ({"cpu.max": "max 100000\n"}, "0::/\n", None),
        ({"cpu.max": "150000 100000\n"}, "0::/\n", 1.5),
        ({"cpu.max": "400000 100000\n", "job/cpu.max": "200000 100000\n"}, "0::/job\n", 2.0),
        ({"cpu.max": "100000 100000\n", "job/cpu.max": "max 100000\n"}, "0::/job\n", 1.0),
        ({"cpu.max": "100000 100000\n"}, "0::/outside/of/this/container\n", 1.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:cpu:/\n", None),
        ({"cpu/a/cpu.cfs_quota_us": "50000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, "4:cpu:/a\n", 0.5),
        (
            {"cpu,cpuacct/cpu.cfs_quota_us": "300000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            "4:cpu,cpuacct:/\n",
            3.0,
        ),
        ({"cpu.max": "broken"}, "", None),
    ],
)
def test_quota_of_control_groups(tmp_path, files, membership, quota):
    for name, text in files.items():
        path = tmp_path / "mount" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "membership").write_text(membership)
    assert cpu_quota(tmp_path / "mount", tmp_path / "membership") == quota
