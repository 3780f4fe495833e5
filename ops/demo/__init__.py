"""
`make demo`: the whole path with real messages, on private services of its own.

`scenario` says what will happen and what must come of it, `stage` runs the services, `clients` are the
shops, their sellers and the buyers' bank orders, `story` plays it, `display` shows it and `checks`
compares what happened with what had to.
"""
