"""What this package uses of MLflow, Transformers, TRL and PEFT that these do not promise to keep: one module for each library.

The room promises that such names are used nowhere else, and that a version of a library without one of them ends in one
error that names this version. Gradio's are in ``gradio_app.web.gradio_internals``. vLLM's are in the two modules that vLLM loads.
"""

from mlflow_finetune_plugin.internals.required import check_names, required

__all__ = ["check_names", "required"]
