"""``python -m mlflow_finetune_plugin.cli``."""

import sys

from mlflow_finetune_plugin.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
