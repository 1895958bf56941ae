"""List the files that a source stands for: those of a folder or a pattern, and of other tools' lists of data sets.

The lists are LLaMA-Factory's ``dataset_info.json`` and Axolotl's configuration. ``data/dataset_info.json#identity`` is one data set of
LLaMA-Factory, ``axolotl.yml`` all ``datasets`` of an Axolotl configuration. The room promises that what an entry says about its files and
columns is used, and that what has no equal here is refused by name.
"""

from __future__ import annotations

from mlflow_finetune_plugin.config.dataset_lists.listing import listed_files

__all__ = ["listed_files"]
