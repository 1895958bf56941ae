"""Fine-tuning of open language models as an MLflow project backend."""

__version__ = "0.1.0"
