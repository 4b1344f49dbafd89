"""Shares of credit per source, their record and payout."""

from whence.shares.answers import Answers, answers_of
from whence.shares.files import content_of
from whence.shares.record import check_new, write_shares
from whence.shares.shares import WHOLE, ShareLine, Shares, shares
from whence.shares.sources import named_sources
from whence.shares.verify import ShareCheck, is_share_report, verify_shares

__all__ = [
    "Answers",
    "ShareCheck",
    "ShareLine",
    "Shares",
    "WHOLE",
    "answers_of",
    "check_new",
    "content_of",
    "is_share_report",
    "named_sources",
    "shares",
    "verify_shares",
    "write_shares",
]
