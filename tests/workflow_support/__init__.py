"""What the tests of handlers and of the whole path share: events, a desk to run handlers on, books, races."""
