"""What messages may show of addresses."""

import pytest

from mlflow_finetune_plugin.errors import without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://ann:s3cret@mlflow.example.org/x", "https://mlflow.example.org/x"),
        ("postgresql+psycopg2://ann:s3cret@db:5432/mlflow", "postgresql+psycopg2://db:5432/mlflow"),
        ("cannot reach http://ann@a.org and http://bob:x@b.org.", "cannot reach http://a.org and http://b.org."),
        ("postgresql://db/mlflow?user=ann&password=s3cret&sslmode=require", "postgresql://db/mlflow?user=ann&password=***&sslmode=require"),
        ("https://mlflow.example.org/?token=s3cret", "https://mlflow.example.org/?token=***"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
    ],
)  # fmt: skip
def test_an_address_is_shown_without_users_passwords_and_tokens(text, shown):
    assert without_secrets(text) == shown
