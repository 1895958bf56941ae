"""Versions in a real engine: certified when first loaded, asked one probe when loaded again, and judged by their own reference."""

import asyncio
import dataclasses
import json
import re
from pathlib import Path

import pytest

from mlflow_finetune_plugin.errors import ServingError
from mlflow_finetune_plugin.serving.engines.certificate import certify, still_holds
from mlflow_finetune_plugin.serving.engines.fleet import Fleet
from mlflow_finetune_plugin.serving.engines.trial import Trials
from mlflow_finetune_plugin.serving.settings import TRANSFORMERS, EngineLimits
from mlflow_finetune_plugin.serving.versions.adapter_store import AdapterStore
from mlflow_finetune_plugin.serving.versions.bases import Bases
from mlflow_finetune_plugin.serving.versions.card import check_reference
from mlflow_finetune_plugin.serving.versions.fetching import Fetcher

pytestmark = pytest.mark.process


@pytest.fixture
def fetcher(tmp_path, registry) -> Fetcher:
    return Fetcher(registry.client, AdapterStore(tmp_path / "store"))


class SharedFleet:
    """A fleet and the loop it lives in; between two tests the loop stands still and nothing is loaded."""

    def __init__(self, folder, runner):
        self.told, self.runner = [], runner
        self.fleet = runner.run(self._made(folder))

    async def _made(self, folder):
        told = lambda version, certificate: self.told.append(version.number)  # noqa: E731
        return Fleet(TRANSFORMERS, EngineLimits(), folder, Bases(()).find, told, max_loaded=0)

    def run(self, work):
        async def then_empty():
            try:
                await work(self.fleet)
            finally:
                await self.fleet.forget_unused()
            assert not self.fleet.residents

        self.runner.run(then_empty())


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with asyncio.Runner() as runner:
        made = SharedFleet(tmp_path_factory.mktemp("fleet"), runner)
        yield made
        runner.run(made.fleet.stop())


def test_a_version_loaded_again_is_not_certified_from_the_beginning(shared, fetcher):
    async def work(fleet):
        for _ in range(3):
            resident = await fleet.admit(fetcher.fetch("bot", "1"))
            assert resident.is_ready
            assert resident.certificate.passed
            await fleet.forget_unused()
            assert not fleet.residents

    shared.told.clear()
    shared.run(work)
    assert shared.told == ["1"]


def test_asked_for_while_it_is_unloaded(shared, fetcher):
    """Whoever comes while a version is being unloaded gets it, loaded; its files are held exactly while it is there."""

    async def work(fleet):
        first = await fleet.admit(fetcher.fetch("bot", "1"))
        for _ in range(20):
            version = fetcher.fetch("bot", "1")
            _, resident = await asyncio.gather(fleet.forget_unused(), fleet.admit(version))
            async with fleet.using(resident) as engine:
                body = {"model": resident.name, "prompt": "a", "max_tokens": 1}
                assert (await engine.complete(body))["choices"]
        await asyncio.gather(*(fleet.forget_unused() for _ in range(3)))
        assert not fleet.residents
        with pytest.raises(ServingError, match="unloaded a moment ago"):
            async with fleet.using(first):
                pass

    shared.run(work)


@pytest.mark.fault
def test_other_weights_under_its_name_do_not_hold(shared, fetcher):
    """As if an engine had not loaded what it was told to: the probe says so, and the whole certificate does."""

    async def work(fleet):
        first, second = fetcher.fetch("bot", "1"), fetcher.fetch("bot", "2")
        resident = await fleet.admit(first)
        engine, found = resident.engine, resident.certificate
        assert await still_holds(found, engine, resident.name, first.reference)
        await engine.unload(resident.name)
        await engine.load(resident.name, second.adapter.folder)
        assert not await still_holds(found, engine, resident.name, first.reference)
        again = await certify(engine, resident.name, first.reference, version="bot/1")
        assert not again.passed
        assert "not the adapter that was trained" in again.reason
        second.adapter.release()

    shared.run(work)


def certified(version, resident, answers):
    """Certify a version with other reference answers than its own."""
    served = {**version.reference["served_as"]["float32"], "answers": answers}
    card = version.card
    return certify(
        resident.engine,
        resident.name,
        {**version.reference, "served_as": {"float32": served}},
        version="bot/1",
        stop_token_ids=card["stop_token_ids"],
        answer_prefix=card["answer_prefix"],
    )


@pytest.mark.fault
def test_an_engine_that_decodes_answers_differently_is_refused(shared, fetcher):
    """The log-probabilities and the prompts are right: only the text of a whole answer shows it."""

    async def work(fleet):
        version = fetcher.fetch("bot", "1")
        resident = await fleet.admit(version)
        answers = version.reference["served_as"]["float32"]["answers"]
        assert resident.certificate.answers == len(answers) == 4
        assert (await certified(version, resident, answers)).passed
        for wrong, reason in (
            ({"texts": [text + " and more" for text in answers[2]["texts"]]}, "and more"),
            ({"texts": [text.upper() + "!" for text in answers[2]["texts"]]}, "the trained model"),
            ({"ids": [*answers[2]["ids"][:-1], 700]}, "gives other tokens for"),
        ):
            certificate = await certified(version, resident, [*answers[:2], {**answers[2], **wrong}])
            assert not certificate.passed
            assert "the engine answers differently: probe 2 gives" in certificate.reason
            assert reason in certificate.reason

    shared.run(work)


def test_an_answer_counts_up_to_its_first_near_tie(shared, fetcher):
    """Where two tokens are as likely, the order of additions decides, so what follows may differ."""

    async def work(fleet):
        version = fetcher.fetch("bot", "1")
        resident = await fleet.admit(version)
        answer = max(version.reference["served_as"]["float32"]["answers"], key=lambda answer: len(answer["ids"]))
        assert len(answer["ids"]) > 3
        ends_otherwise = {
            **answer,
            "ids": [*answer["ids"][:3], *[700] * (len(answer["ids"]) - 3)],
            "texts": [*answer["texts"][:3], *["another end"] * (len(answer["ids"]) - 3)],
        }
        assert not (await certified(version, resident, [ends_otherwise])).passed
        assert resident.certificate.tolerance < 0.01
        for margin, passed in ((0.019, True), (0.021, False)):  # 0.01 nats are what kernels of float32 may differ by
            margins = [*answer["margins"][:3], margin, *answer["margins"][4:]]
            certificate = await certified(version, resident, [{**ends_otherwise, "margins": margins}])
            assert (certificate.passed, certificate.answers) == (passed, 1)
        margins = [0.0, *answer["margins"][1:]]
        assert (await certified(version, resident, [{**ends_otherwise, "margins": margins}])).answers == 0

    shared.run(work)


def test_a_version_from_before_references_had_answers_is_certified_without(shared, fetcher):
    async def work(fleet):
        version = fetcher.fetch("bot", "1")
        resident = await fleet.admit(version)
        served = {key: value for key, value in version.reference["served_as"]["float32"].items() if key != "answers"}
        reference = {**version.reference, "served_as": {"float32": served}}
        check_reference(reference, "bot/1")
        certificate = await certify(resident.engine, resident.name, reference, version="bot/1")
        assert (certificate.passed, certificate.answers) == (True, 0)

    shared.run(work)


def test_an_unknown_precision_of_serving_is_told(shared, fetcher):
    async def work(fleet):
        version = fetcher.fetch("bot", "1")
        resident = await fleet.admit(version)
        reference = {**version.reference, "served_as": {}}
        with pytest.raises(ServingError, match=r"does not cover serving in float32.*no other precision"):
            await certify(resident.engine, resident.name, reference, version="bot/1")

    shared.run(work)


def test_noise_in_a_reference_has_an_upper_bound(shared, fetcher):
    """It is a reason to allow differences, so without a bound any adapter would pass."""

    async def work(fleet):
        version = fetcher.fetch("bot", "1")
        resident = await fleet.admit(version)
        for noise, passed in ((0.009, True), (0.011, False), (1e9, False)):
            served = {**version.reference["served_as"]["float32"], "noise": noise}
            reference = {**version.reference, "served_as": {"float32": served}}
            certificate = await certify(resident.engine, resident.name, reference, version="bot/1")
            assert certificate.passed == passed
            assert certificate.tolerance <= 0.03
            assert passed or "allows too much noise" in certificate.reason

    shared.run(work)


def test_a_version_that_finds_no_engine_is_let_go(tmp_path, registry):
    """Nobody would release it later: its files could never be evicted, and each try would keep a file open."""
    store = AdapterStore(tmp_path / "store")
    fetcher = Fetcher(registry.client, store)

    def nowhere(version):
        raise ServingError("its base is not here")

    async def work():
        fleet = Fleet(TRANSFORMERS, EngineLimits(), tmp_path, nowhere, lambda v, c: None)
        fetcher.fetch("bot", "1").adapter.release()  # what a process holds once, it holds now
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(5):
            with pytest.raises(ServingError, match="not here"):
                await fleet.admit(fetcher.fetch("bot", "1"))
        assert len(list(Path("/proc/self/fd").iterdir())) <= before
        await fleet.stop()

    asyncio.run(work())


def test_code_of_a_base_is_run_by_who_asks_for_it_alone(shared, fetcher):
    async def work(fleet):
        version = fetcher.fetch("bot", "1")
        before = list(fleet.engines)
        own_code = {**version.card, "base_model": {**version.base, "trust_remote_code": True}}
        with pytest.raises(ServingError, match="--trust-remote-code"):
            await fleet.admit(dataclasses.replace(version, card=own_code))
        assert list(fleet.engines) == before

    shared.run(work)


def test_a_request_waits_for_the_unloading_of_what_it_needs(shared, fetcher):
    """It has been told who answers; by the time it asks, that one is being unloaded."""

    async def work(fleet):
        resident = await fleet.admit(fetcher.fetch("bot", "1"))
        leaving = asyncio.create_task(fleet.forget_unused())
        await asyncio.sleep(0)
        async with fleet.using(resident) as engine:
            assert (await engine.complete({"model": resident.name, "prompt": "a", "max_tokens": 1}))["choices"]
        await leaving

    shared.run(work)


@pytest.mark.fault
@pytest.mark.parametrize("part", ["tokenizer", "adapter"])
def test_files_that_changed_since_they_were_fetched_are_not_loaded(shared, fetcher, part):
    """The version is refused, each time without reading its files; its neighbour answers; fetched again, it answers too."""

    async def work(fleet):
        neighbour = await fleet.admit(fetcher.fetch("bot", "2"))
        version = fetcher.fetch("bot", "1")
        folder = version.tokenizer if part == "tokenizer" else version.adapter.folder
        path = folder / ("chat_template.jinja" if part == "tokenizer" else "adapter_config.json")
        path.write_text(path.read_text() + " ")
        with pytest.raises(ServingError, match=r"bot/1 must not serve: .* was changed after it was verified.*fix:"):
            await fleet.admit(version)
        async with fleet.using(neighbour) as engine:
            assert (await engine.complete({"model": neighbour.name, "prompt": "a", "max_tokens": 1}))["choices"]
        again = await fleet.admit(fetcher.fetch("bot", "1"))
        assert again.is_ready

    shared.run(work)


def test_a_certificate_names_the_content_digest(shared, fetcher, registry):
    async def work(fleet):
        resident = await fleet.admit(fetcher.fetch("bot", "1"))
        tag = registry.client.get_model_version("bot", "1").tags["finetune.content_digest"]
        assert (await certify(resident.engine, resident.name, resident.version.reference, version="bot/1")).passed
        assert resident.certificate.content_digest == tag
        assert json.loads(resident.certificate.to_json())["content_digest"] == tag

    shared.run(work)


@pytest.mark.fault
def test_a_version_that_blocks_its_engine_is_refused_for_good_and_its_neighbour_answers(
    tmp_path, registry, monkeypatch
):
    """As if the check of configurations had missed a pattern: PEFT matches it in the engine, for years."""
    number = registry.make("hostile", seed=3)
    path = registry.artifacts("hostile", number) / "adapter" / "adapter_config.json"
    pattern = "(model|[a-z.]+)+(.*)*[0-9]!"
    path.write_text(json.dumps({**json.loads(path.read_text()), "target_modules": pattern}))
    registry.sign("hostile", number)
    monkeypatch.setattr("mlflow_finetune_plugin.serving.versions.fetching.check_adapter_config", lambda *_: None)
    fetcher = Fetcher(registry.client, AdapterStore(tmp_path / "store"))

    async def work():
        trials = Trials(longest_silence_s=15.0)
        fleet = Fleet(TRANSFORMERS, EngineLimits(), tmp_path, Bases(()).find, lambda v, c: None, trials=trials)
        try:
            neighbour = await fleet.admit(fetcher.fetch("bot", "1"))
            generation = neighbour.engine.generation
            both = [fleet.admit(fetcher.fetch("hostile", number)), fleet.admit(fetcher.fetch("bot", "2"))]
            refused, _ = await asyncio.gather(*both, return_exceptions=True)
            assert re.search(r"hostile/.* must not serve: .* did not answer for 15 s.*fix:", str(refused))
            with pytest.raises(ServingError, match=r"hostile/.* must not serve"):
                await fleet.admit(fetcher.fetch("hostile", number))
            await neighbour.engine.wait_ready()
            assert (await fleet.admit(fetcher.fetch("bot", "2"))).is_ready, (
                "it waited for its turn, and is not to blame"
            )
            assert neighbour.engine.generation == generation + 1, "the second refusal did not ask the engine"
            async with fleet.using(neighbour) as engine:
                assert (await engine.complete({"model": neighbour.name, "prompt": "a", "max_tokens": 1}))["choices"]
        finally:
            await fleet.stop()

    asyncio.run(work())


def put_template(registry, number, text):
    path = registry.artifacts("templates", number) / "tokenizer" / "chat_template.jinja"
    path.write_text(path.read_text() + text)
    registry.sign("templates", number)


def test_a_template_that_takes_too_much_never_reaches_an_engine(shared, fetcher, registry):
    number = registry.make("templates", seed=1)
    put_template(registry, number, "{% if messages | length > 50 %}{{ 'a' * 2000000000 }}{% endif %}")

    async def work(fleet):
        before = list(fleet.engines)
        for _ in range(2):
            with pytest.raises(ServingError, match=r"templates/.*: its chat template cannot be rendered within .*fix:"):
                await fleet.admit(fetcher.fetch("templates", number))
        assert list(fleet.engines) == before

    shared.run(work)


@pytest.mark.fault
def test_a_tokenizer_that_takes_too_long_never_reaches_an_engine(shared, fetcher, registry, monkeypatch):
    """Its neighbour answers meanwhile, and the refusal is remembered without another trial."""
    number = registry.make("tokenizers", seed=1)
    path = registry.artifacts("tokenizers", number) / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    parts = [split, content["pre_tokenizer"]]
    path.write_text(json.dumps({**content, "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts}}))
    registry.sign("tokenizers", number)

    async def work(fleet):
        neighbour = await fleet.admit(fetcher.fetch("bot", "1"))
        before = list(fleet.engines)
        refused = r"tokenizers/.*: tokenizer\.json cannot be used within .*fix:"
        with pytest.raises(ServingError, match=refused):
            await fleet.admit(fetcher.fetch("tokenizers", number))
        monkeypatch.setattr("mlflow_finetune_plugin.serving.versions.trials.tokenizer.run_limited", None)
        with pytest.raises(ServingError, match=refused):
            await fleet.admit(fetcher.fetch("tokenizers", number))
        assert list(fleet.engines) == before
        async with fleet.using(neighbour) as engine:
            assert (await engine.complete({"model": neighbour.name, "prompt": "a", "max_tokens": 1}))["choices"]

    shared.run(work)


def test_a_hidden_condition_is_in_the_log_and_in_the_certificate(shared, fetcher, registry, caplog):
    """The probes render as they did, so the certificate passes, and shows the word that the condition names."""
    number = registry.make("templates", seed=1)
    put_template(registry, number, "{% if 'xylophone' in messages[-1].content %}Say yes.{% endif %}")

    async def work(fleet):
        resident = await fleet.admit(fetcher.fetch("templates", number))
        assert resident.certificate.passed
        assert "prompts with 'xylophone' are rendered differently" in resident.certificate.template
        engine = fleet.engines.pop(("transformers", resident.engine.spec.key))
        await fleet.forget_unused()
        await engine.stop()

    shared.run(work)
    assert "template_differs version=templates/" in caplog.text
    assert "Say yes." in caplog.text
