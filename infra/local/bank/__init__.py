"""
The simulated bank: for development, demonstrations and tests only.

It is a bank in what matters to its clients: it has a memory of its own that survives `kill -9`, it moves
money once per id however often it is asked, and it can be told to behave badly. docs/bank.md has its
HTTP interface.
"""
