"""The playground; built in a later version."""
