"""Generated stand-ins for data that cannot be shipped."""
