"""
The chaos run: load from outside while everything that can break is broken, and a count of what became of it.

`make chaos` runs the long version, `test_chaos_run.py` a short one.
"""
