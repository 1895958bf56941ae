"""What the page is sent without Gradio's own conversion is what that would send."""

import gradio as gr

from gradio_app.pages.compare import chat_payload


def test_messages_are_sent_as_the_component_sends_them():
    messages = [{"role": "user", "content": "why **so**?"}, {"role": "assistant", "content": "because\n\n1. it is <b>"}]
    assert chat_payload(messages) == gr.Chatbot().postprocess(messages).model_dump()
