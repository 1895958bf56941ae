"""The packaged metrics, one local ``evaluate`` module per file. Each file stands alone, so that ``evaluate.load`` works offline."""
