"""A page with all that the guard has to let through and hold off, served as the playground is."""

import asyncio
import sys
import tempfile

from gradio_app.web.server import Page

LOOK = {
    "css": ".mf-x { color: red }",
    "js": "() => { window.mfLoaded = true; }",
    "head": "<script>\n  window.mfHead = 'é';\n</script>",
}


def build(settings, access):
    import gradio as gr

    def who(request: gr.Request):
        return f"{request.username} {'promotes' if access.may_promote(request.username) else 'watches'}"

    running, most = 0, 0

    async def count(upto):
        nonlocal running, most
        running += 1
        most = max(most, running)
        for number in range(int(upto)):
            yield str(number)
            await asyncio.sleep(0.02)
        running -= 1

    def write(text):
        with tempfile.NamedTemporaryFile("w", suffix=".html", delete=False) as made:
            made.write(text)
        return made.name

    async def close():
        print("the page was closed", file=sys.stderr)

    def say(text, history):
        return [*history, {"role": "user", "content": text}, {"role": "assistant", "content": text}]

    with gr.Blocks(title="small") as blocks:
        name = gr.Textbox(label="name", elem_id="name")
        gr.Button("Who", elem_id="who").click(who, None, name, api_name="who")
        text = gr.Textbox(label="text", elem_id="text")
        chat = gr.Chatbot(elem_id="chat")
        gr.Button("Say", elem_id="say").click(say, [text, chat], chat, api_name="say")
        gr.Button("Count", elem_id="count").click(count, text, name, api_name="count")
        gr.Button("Js", elem_id="js").click(None, None, name, js="() => 'from js'")
        file = gr.File(label="file")
        gr.Button("Make").click(lambda file: file and str(file), file, name, api_name="file")
        gr.Button("Write").click(write, text, file, api_name="write")
        gr.Button("Most").click(lambda: most, None, name, api_name="most")
        blocks.load(who, None, name, api_visibility="private")
    return Page(blocks, LOOK, close)


if __name__ == "__main__":
    from gradio_app.__main__ import main

    sys.exit(main(sys.argv[1:], build))
