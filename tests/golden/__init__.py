"""Scores and bytes kept from before a redesign, that the code after it has to give again."""
