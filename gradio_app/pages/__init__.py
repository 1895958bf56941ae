"""What people see: layout and handlers, one file a tab. The only rooms that import Gradio, with ``app`` and ``__main__``."""
