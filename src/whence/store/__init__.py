"""Rows on disk: format, writer, reader."""

from whence.plain_files import check_name, open_plain, read_plain
from whence.store.commitment import committed
from whence.store.delete import delete_rows, deleted_notes, deleted_since, row_now, with_deleted
from whence.store.disk import DiskBytes, enough_disk, size_text
from whence.store.exchange import check_exchange, exchange_folders
from whence.store.fidelity import Agreement, Controls, Fidelity, fidelity_notes, read_fidelity, write_fidelity
from whence.store.file_sets import altered, new_folder
from whence.store.files import (
    check_writable,
    damaged,
    disk_errors,
    locked,
    read_array,
    read_json,
    read_record,
    read_tensors,
    sha256_of,
    write_bytes,
    write_json,
    write_record,
    write_tensors,
)
from whence.store.format import (
    FORMAT_VERSION,
    Blueprint,
    Seal,
    StoredUnit,
    bits_named,
    curvature_numbers,
    dtype_named,
    row_codec,
    rows_type,
)
from whence.store.leases import Leases, check_shared, leases, starter
from whence.store.left_out import left_out_notes, write_left_out
from whence.store.opening import ALONG_FILE, open_store
from whence.store.proofs import PROOF_FORMAT, Proof, check_proof, prove
from whence.store.reader import Store
from whence.store.remote import is_remote, located
from whence.store.resume import Pending, addition_notes, check_blueprint, check_same, is_growing, listed_files, read_seals
from whence.store.rewritten import name_now, write_anew
from whence.store.take_back import take_back_unfinished
from whence.store.verify import verify_store
from whence.store.writer import Writer, open_writer, write_store
from whence.strict_json import fitted, parse_json, record_of

__all__ = [
    "ALONG_FILE",
    "Agreement",
    "addition_notes",
    "is_growing",
    "name_now",
    "take_back_unfinished",
    "write_anew",
    "Controls",
    "Fidelity",
    "fidelity_notes",
    "altered",
    "read_fidelity",
    "write_fidelity",
    "bits_named",
    "curvature_numbers",
    "DiskBytes",
    "enough_disk",
    "size_text",
    "FORMAT_VERSION",
    "PROOF_FORMAT",
    "Blueprint",
    "Leases",
    "Pending",
    "Proof",
    "Seal",
    "Store",
    "StoredUnit",
    "Writer",
    "check_blueprint",
    "check_proof",
    "check_same",
    "committed",
    "check_shared",
    "check_exchange",
    "check_writable",
    "record_of",
    "read_plain",
    "parse_json",
    "new_folder",
    "open_plain",
    "exchange_folders",
    "fitted",
    "check_name",
    "damaged",
    "delete_rows",
    "deleted_notes",
    "deleted_since",
    "disk_errors",
    "dtype_named",
    "is_remote",
    "leases",
    "left_out_notes",
    "listed_files",
    "located",
    "locked",
    "open_store",
    "open_writer",
    "read_array",
    "prove",
    "read_json",
    "read_record",
    "read_seals",
    "read_tensors",
    "row_codec",
    "row_now",
    "rows_type",
    "sha256_of",
    "starter",
    "verify_store",
    "with_deleted",
    "write_bytes",
    "write_json",
    "write_record",
    "write_left_out",
    "write_store",
    "write_tensors",
]
