"""The scenarios of ``gate_audit.py``, one module for each part of the gate.

They use public functions of the gate only, and run with the gate of the first preview too, whose commit ``gate_audit.py`` names.
"""
