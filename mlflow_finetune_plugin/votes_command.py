"""``mlflow-finetune votes``."""
