"""Versions with tokenizers of their own need engines of their own; those that nobody needs end."""

import asyncio

import psutil
import pytest
from served_models import VersionMaker

from mlflow_finetune_plugin.errors import EngineError
from mlflow_finetune_plugin.serving.engines.fleet import Fleet
from mlflow_finetune_plugin.serving.settings import TRANSFORMERS, EngineLimits
from mlflow_finetune_plugin.serving.versions.adapter_store import AdapterStore
from mlflow_finetune_plugin.serving.versions.bases import Bases
from mlflow_finetune_plugin.serving.versions.fetching import Fetcher

pytestmark = pytest.mark.process


@pytest.fixture
def numbers(registry):
    """Three versions of one base whose tokenizers differ."""
    maker = VersionMaker(registry.uri)
    template, versions = maker.tokenizer.chat_template, []
    for number in range(3):
        maker.tokenizer.chat_template = template + "{# " + str(number) + " #}"  # renders the same
        versions.append(maker.make("tokenizers", seed=number))
    return versions


@pytest.mark.bad_input
def test_engines_without_an_alias_end_before_another_one_starts(tmp_path, registry, numbers):
    fetcher = Fetcher(registry.client, AdapterStore(tmp_path / "store"))

    async def scenario():
        fleet = Fleet(TRANSFORMERS, EngineLimits(), tmp_path, Bases(()).find, lambda v, c: None, max_engines=1)

        async def admit(number):
            return await fleet.admit(fetcher.fetch("tokenizers", number))

        try:
            champion = await admit(numbers[0])
            champion.pins += 1
            second = await admit(numbers[1])
            process = psutil.Process(second.engine.pid)
            assert len(fleet.engines) == 2, "the aliases' engines and one more"
            async with fleet.using(second):
                with pytest.raises(EngineError, match=r"all 2 engines are answering requests; fix: .*--max-engines"):
                    await admit(numbers[2])
            third = await admit(numbers[2])
            assert third.is_ready
            assert not process.is_running()
            assert set(fleet.engines.values()) == {champion.engine, third.engine}
            assert set(fleet.residents.values()) == {champion, third}
            async with fleet.using(champion) as engine:
                assert (await engine.complete({"model": champion.name, "prompt": "a", "max_tokens": 1}))["choices"]
            assert (await admit(numbers[1])).is_ready, "asked for again it comes back"
            assert len(fleet.engines) == 2
        finally:
            await fleet.stop()

    asyncio.run(scenario())
