"""What is written down of answers, so that they can be paid for and proven later: credits, the log's file, periods."""

from whence.ledger.canonical import canonical, digest_of
from whence.ledger.credits import Credit, credit_of, read_credit
from whence.ledger.log_schema import LOG_VERSION, connected, prepared_log
from whence.ledger.payouts import PaidOut, check_payout, paid_out, write_payout
from whence.ledger.periods import Period, check_over, period_of

__all__ = [
    "LOG_VERSION",
    "Credit",
    "PaidOut",
    "Period",
    "canonical",
    "check_over",
    "check_payout",
    "connected",
    "credit_of",
    "digest_of",
    "paid_out",
    "period_of",
    "prepared_log",
    "read_credit",
    "write_payout",
]
