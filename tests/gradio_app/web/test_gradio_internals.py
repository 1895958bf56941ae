"""Pages that are opened quickly are the pages that Gradio opens."""

import time

import gradio as gr
import pytest
from gradio.state_holder import SessionState, StateHolder

from gradio_app import app
from gradio_app.playground import Playground
from gradio_app.settings import PlaygroundSettings
from gradio_app.web.gradio_internals import PageStates


@pytest.fixture(scope="module")
def blocks() -> gr.Blocks:
    return app.build(Playground(PlaygroundSettings(("http://127.0.0.1:9/v1",))), "bot", lambda name: False)


def opened(kind, blocks):
    holder = kind()
    holder.set_blocks(blocks)
    return holder


def values(page):
    return {key: config.get("props", {}).get("value") for key, config in page.config_values.items()}


def test_a_page_is_what_gradio_makes_of_it(blocks):
    ours, gradios = opened(PageStates, blocks)["page"], SessionState(blocks)
    assert ours.config_values == gradios.config_values
    assert vars(ours).keys() == vars(gradios).keys()
    assert ours.blocks_config.blocks == gradios.blocks_config.blocks
    assert ours.blocks_config.fns == gradios.blocks_config.fns
    assert len(ours.config_values) > 50


def test_what_happens_on_a_page_stays_there(blocks):
    ours, gradios = opened(PageStates, blocks), opened(StateHolder, blocks)
    before = values(ours["other"])
    box = next(key for key, block in blocks.blocks.items() if isinstance(block, gr.Textbox))
    plain = next(key for key, config in ours["page"].config_values.items() if "value" not in config["props"])
    for holder in (ours, gradios):
        page = holder["page"]
        page._update_value_in_config(box, "what was written")
        page._update_value_in_config(plain, 7)
        page[box] = gr.Textbox("a new one", label="another", render=False)
        page._update_config(box)
        page._update_value_in_config(box, "again")
    assert ours["page"].config_values == gradios["page"].config_values
    assert values(ours["page"])[box] == "again"
    assert isinstance(ours["page"][box], gr.Textbox)
    assert ours["page"][box] is not blocks.blocks[box]
    assert values(ours["other"]) == before
    assert values(ours["a third"]) == before
    assert ours["other"][box] is blocks.blocks[box]


def test_state_is_of_one_page():
    with gr.Blocks() as made:
        kept = gr.State([1])
    pages = opened(PageStates, made)
    pages["one"][kept._id].append(2)
    assert pages["one"][kept._id] == [1, 2]
    assert pages["other"][kept._id] == [1]


def test_pages_beyond_the_capacity_are_forgotten_from_the_oldest(blocks):
    pages = opened(PageStates, blocks)
    pages.capacity = 3
    for number in range(5):
        assert pages[str(number)]
    assert list(pages.session_data) == ["2", "3", "4"]


def test_a_page_costs_a_tenth_of_what_gradio_takes_for_it(blocks):
    def took_s(holder):
        assert holder["first"]
        start = time.process_time()
        for number in range(5):
            assert holder[str(number)]
        return time.process_time() - start

    assert took_s(opened(PageStates, blocks)) < took_s(opened(StateHolder, blocks)) / 10
