"""Eight processes at once on one model."""

from __future__ import annotations

import signal

import pytest
from alias_moves import (
    aliases_of,
    evidence,
    faults_after_settling,
    hold_in_turn,
    moves_of,
    processes,
    promote_in_turn,
    register_versions,
)

from mlflow_finetune_plugin.promotion.moves.lease import Lease, lease_name
from mlflow_finetune_plugin.promotion.moves.move import promote_version

pytestmark = pytest.mark.process


def run_together(target, arguments):  # type: ignore[no-untyped-def]
    started = [processes().Process(target=target, args=each) for each in arguments]
    for process in started:
        process.start()
    for process in started:
        process.join(240)
    return [process.exitcode for process in started]


@pytest.mark.fault
def test_one_process_at_a_time_holds_the_lease_also_where_holders_die(workplace, tmp_path):
    times, uri = 4, workplace.tracking_uri
    workplace.client().create_registered_model("bot")
    codes = run_together(hold_in_turn, [(uri, "bot", str(tmp_path), times, n < 4) for n in range(8)])
    assert codes == [-signal.SIGKILL] * 4 + [0] * 4
    assert len((tmp_path / "turns").read_text().splitlines()) == 8 * times
    with Lease(workplace.client(), "bot"):
        pass
    assert not workplace.client().search_registered_models(f"name = '{lease_name('bot')}'")


@pytest.mark.fault
def test_eight_promote_at_once_and_the_history_is_one_chain(workplace):
    times, client = 2, workplace.client()
    register_versions(client, "bot", 4)
    promote_version(client, "bot", "1", evidence=evidence(None))
    codes = run_together(promote_in_turn, [(workplace.tracking_uri, "bot", 4, times)] * 8)
    assert codes == [0] * 8
    assert faults_after_settling(client, "bot") == []
    assert len(moves_of(client, "bot")) == 8 * times + 1
    assert aliases_of(client, "bot")[0] == moves_of(client, "bot")[0].to_version
