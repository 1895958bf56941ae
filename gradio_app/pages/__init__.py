"""The tabs of the playground, one file each: the only modules beside ``app`` that import gradio."""
