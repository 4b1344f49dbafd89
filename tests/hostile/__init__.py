"""Folders that somebody damaged, or made to do harm: see `__main__`."""
