"""The stored road: rows made once, asked any number of times."""
