"""Integer codes one number at a time, as docs/format.md describes them."""


def value_of(code_bytes, column, width, bits):
    """The whole number in some column of a row's bytes."""
    if bits == 8:
        return code_bytes[column] - 256 if code_bytes[column] > 127 else code_bytes[column]
    if bits == 4:
        nibble = code_bytes[column // 2] // (16 if column % 2 else 1) % 16
        return nibble - 16 if nibble > 7 else nibble
    if bits == 2:
        return 2 * (code_bytes[column // 4] >> 2 * (column % 4) & 3) - 3
    return 1 if code_bytes[column // 8] >> (column % 8) & 1 else -1


def decoded(codes, scales, width, bits):
    """Rows of numbers from rows of bytes and one scale each."""
    return [
        [value_of([byte % 256 for byte in row], column, width, bits) * scale for column in range(width)]
        for row, scale in zip(codes, scales, strict=True)
    ]


def best_codes(row, scale, bits):
    """The nearest code of every number of a row for a given scale, by trying all."""
    most = {8: 127, 4: 7}.get(bits)
    choices = {1: (-1, 1), 2: (-3, -1, 1, 3)}[bits] if most is None else range(-most, most + 1)
    return [min(choices, key=lambda code: abs(code * scale - number)) for number in row]
