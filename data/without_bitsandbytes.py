"""Imported first, it keeps bitsandbytes out of a process that has no use for it: for processes that others start."""

from data.exits import hide_bitsandbytes

hide_bitsandbytes()
