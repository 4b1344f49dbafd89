"""Shares of credit per source, their record and payout."""

from whence.shares.answers import Answers, answers_of
from whence.shares.example_facts import ExampleFacts, gradient_lengths, lengths_of, store_texts
from whence.shares.files import content_of
from whence.shares.gaming import Gaming, Sign, gaming_of
from whence.shares.record import check_new, write_shares
from whence.shares.shares import WHOLE, ShareLine, Shares, shares
from whence.shares.sources import named_sources
from whence.shares.verify import ShareCheck, is_share_report, verify_shares

__all__ = [
    "Answers",
    "ExampleFacts",
    "Gaming",
    "ShareCheck",
    "ShareLine",
    "Shares",
    "Sign",
    "WHOLE",
    "answers_of",
    "check_new",
    "content_of",
    "gaming_of",
    "gradient_lengths",
    "is_share_report",
    "lengths_of",
    "named_sources",
    "shares",
    "store_texts",
    "verify_shares",
    "write_shares",
]
