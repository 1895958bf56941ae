"""What requests ask for by number: refused once for a while, and never in the way of a move."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from mlflow_finetune_plugin.errors import EngineChoiceError
from mlflow_finetune_plugin.serving.engines.fleet import Fleet
from mlflow_finetune_plugin.serving.router.follower import Follower, NotReadyError, Target, UnknownModelError
from mlflow_finetune_plugin.serving.settings import TRANSFORMERS, EngineLimits
from mlflow_finetune_plugin.serving.versions.adapter_store import AdapterStore
from mlflow_finetune_plugin.serving.versions.bases import Bases
from mlflow_finetune_plugin.serving.versions.catalog import Catalog
from mlflow_finetune_plugin.serving.versions.fetching import Fetcher
from mlflow_finetune_plugin.store.model_ref import ModelRef

pytestmark = pytest.mark.process


class WatchedFetcher(Fetcher):
    """The real one; tells what it was asked, and lets requests for ``slow`` versions wait."""

    def __init__(self, *arguments, slow=()):
        super().__init__(*arguments)
        self.asked, self.slow, self.go_on = [], slow, threading.Event()

    def fetch(self, model, number):
        self.asked.append(number)
        if number in self.slow:
            assert self.go_on.wait(60)
        return super().fetch(model, number)


def following(tmp_path, registry, fetcher, work):
    async def all_of_it():
        fleet = Fleet(TRANSFORMERS, EngineLimits(), tmp_path, Bases(()).find, lambda v, c: None)
        follower = Follower(Catalog(registry.client, ("asked",)), fetcher, fleet, tmp_path)
        try:
            await work(follower)
        finally:
            await fleet.stop()

    asyncio.run(all_of_it())


def asked(number):
    return ModelRef("asked", version=number)


def test_what_was_refused_is_not_downloaded_again_at_once(tmp_path, registry):
    number = registry.make("asked", seed=1)
    weights = registry.artifacts("asked", number) / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    fetcher = WatchedFetcher(registry.client, AdapterStore(tmp_path / "store"))

    async def work(follower):
        for _ in range(5):
            with pytest.raises(NotReadyError, match="cannot be fetched"):
                await follower.find(asked(number), None)
            with pytest.raises(UnknownModelError, match="no such version"):
                await follower.find(asked("99999"), None)

    following(tmp_path, registry, fetcher, work)
    assert sorted(fetcher.asked) == sorted([number, "99999"])


def test_moves_do_not_stand_behind_requests(tmp_path, registry):
    number = registry.make("asked", seed=2)
    registry.client.set_registered_model_alias("asked", "champion", number)
    slow = [str(90_000 + n) for n in range(8)]
    fetcher = WatchedFetcher(registry.client, AdapterStore(tmp_path / "store"), slow=slow)

    async def work(follower):
        requests = [asyncio.create_task(follower.find(asked(one), None)) for one in slow]
        while not fetcher.asked:
            await asyncio.sleep(0.01)
        await follower.poll()
        target = follower.targets["asked", "champion"]
        await asyncio.wait_for(target.moving, 120)
        assert target.serves == number
        assert not any(task.done() for task in requests)
        fetcher.go_on.set()
        found = await asyncio.gather(*requests, return_exceptions=True)
        assert all(isinstance(error, UnknownModelError) for error in found)

    following(tmp_path, registry, fetcher, work)


def test_a_version_that_the_registry_has_no_more_is_not_served_any_more(tmp_path, registry):
    number = registry.make("asked", seed=3)
    fetcher = Fetcher(registry.client, AdapterStore(tmp_path / "store"), fresh_s=0.0)

    async def work(follower):
        resident, _ = await follower.find(asked(number), None)
        again, _ = await follower.find(asked(number), None)
        assert again is resident
        registry.client.delete_model_version("asked", number)
        with pytest.raises(UnknownModelError, match="no such version"):
            await follower.find(asked(number), None)
        assert not resident.is_loaded

    following(tmp_path, registry, fetcher, work)


def test_a_split_chooses_among_those_that_can_answer(tmp_path, registry):
    """A canary that is still being loaded, or cannot be, costs nobody an answer."""
    good, bad = registry.make("asked", seed=4), registry.make("asked", seed=5)
    weights = registry.artifacts("asked", bad) / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    for alias, number in (("champion", good), ("canary", bad)):
        registry.client.set_registered_model_alias("asked", alias, number)
    registry.client.set_registered_model_tag("asked", "finetune.split", "champion=1, canary=99")

    async def work(follower):
        await follower.poll()
        with pytest.raises(NotReadyError, match=r"asked@c[a-z]+ is not ready"):
            await follower.find(ModelRef("asked"), "somebody")
        champion, canary = (follower.targets["asked", alias] for alias in ("champion", "canary"))
        async with asyncio.timeout(120):
            while champion.resident is None or canary.fault is None:
                await asyncio.sleep(0.05)
        assert {(await follower.find(ModelRef("asked"), f"user {n}"))[1] for n in range(20)} == {"champion"}
        with pytest.raises(NotReadyError, match="asked@canary is not ready"):
            await follower.find(ModelRef("asked", alias="canary"), None)

    try:
        following(tmp_path, registry, Fetcher(registry.client, AdapterStore(tmp_path / "store")), work)
    finally:
        registry.client.delete_registered_model_tag("asked", "finetune.split")


def test_the_version_before_is_the_one_that_a_rollback_would_restore(tmp_path):
    """The champion's is previous, any other version's is the champion, and only while it can answer."""
    follower = Follower(Catalog(None, ("bot",)), None, None, tmp_path)

    def serves(alias, number, *, is_ready=True):
        resident = SimpleNamespace(version=SimpleNamespace(number=number), is_ready=is_ready)
        follower.targets["bot", alias] = Target("bot", alias, number, resident)
        return resident

    assert follower.version_before("bot", "3") is None
    champion, previous = serves("champion", "3"), serves("previous", "2")
    assert follower.version_before("bot", "3") is previous
    assert follower.version_before("bot", "4") is champion
    assert follower.version_before("other", "3") is None
    serves("previous", "2", is_ready=False)
    assert follower.version_before("bot", "3") is None
    serves("previous", "3")
    assert follower.version_before("bot", "3") is None, "a version is not compared with itself"


def test_a_service_ends_only_if_no_alias_has_a_version_that_its_engine_can_serve(tmp_path):
    follower = Follower(Catalog(None, ("bot",)), None, None, tmp_path)
    follower._check_hope()
    hopeless = {"fault": "bot/3: engine vllm cannot serve it; fix: --engine auto", "is_hopeless": True}
    follower.targets["bot", "champion"] = Target("bot", "champion", "3", **hopeless)
    follower.targets["bot", "challenger"] = Target("bot", "challenger", "4", fault="its base is not here")
    follower._check_hope()
    follower.targets["bot", "challenger"] = Target("bot", "challenger", "3", **hopeless)
    with pytest.raises(EngineChoiceError, match=r"^nothing can be served: bot/3: engine vllm .*--engine auto$"):
        follower._check_hope()
    follower._has_served = True
    follower._check_hope()
