"""The tab in a real server: what programs are told, and what a person sees in a browser while votes come in."""

from __future__ import annotations
