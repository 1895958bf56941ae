"""``python -m mlflow_finetune_plugin.cli``."""

import sys

from mlflow_finetune_plugin.cli.main import main

sys.exit(main())
