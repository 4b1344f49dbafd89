"""What is written down of answers, so that they can be paid for and proven later: credits, receipts, the log's file, periods."""

from whence.ledger.canonical import canonical, digest_of
from whence.ledger.credits import Credit, credit_of, read_credit
from whence.ledger.keys import Signer, new_key, read_public_key, read_signer
from whence.ledger.log_schema import LOG_VERSION, connected, existing_log, prepared_log
from whence.ledger.payouts import PaidOut, check_payout, paid_out, write_payout
from whence.ledger.periods import Period, check_over, period_of
from whence.ledger.proof_files import is_proof, read_proof, write_proof
from whence.ledger.receipts import FIRST, Chain, Draft, Head, Sealed, chained, drafted, sealed_now
from whence.ledger.sealing import check_chain, next_receipts, note_heads, sealed_answer, unsealed_answers, unsure_receipts
from whence.ledger.verify import ChainCheck, is_chain, verify_chain
from whence.ledger.versions import StoreVersion, VersionRows, known_versions, rows_of_versions, write_version

__all__ = [
    "FIRST",
    "LOG_VERSION",
    "Chain",
    "ChainCheck",
    "Credit",
    "Draft",
    "Head",
    "PaidOut",
    "Period",
    "Sealed",
    "Signer",
    "StoreVersion",
    "VersionRows",
    "canonical",
    "chained",
    "check_chain",
    "check_over",
    "check_payout",
    "connected",
    "credit_of",
    "digest_of",
    "drafted",
    "existing_log",
    "is_chain",
    "is_proof",
    "known_versions",
    "new_key",
    "next_receipts",
    "note_heads",
    "paid_out",
    "period_of",
    "prepared_log",
    "read_credit",
    "read_proof",
    "read_public_key",
    "read_signer",
    "rows_of_versions",
    "sealed_answer",
    "sealed_now",
    "unsealed_answers",
    "unsure_receipts",
    "verify_chain",
    "write_payout",
    "write_proof",
    "write_version",
]
