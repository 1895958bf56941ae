"""Metrics as local ``evaluate`` modules, one file per metric; each file stands alone, so that ``evaluate.load`` works offline."""
