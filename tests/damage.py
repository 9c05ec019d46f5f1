"""What can happen to a file."""


def damages(file):
    """Ways to damage a file, by name."""
    content = file.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) * 2 // 3] ^= 4
    return {
        "deleted": file.unlink,
        "emptied": lambda: file.write_bytes(b""),
        "truncated": lambda: file.write_bytes(content[: len(content) // 2]),
        "overwritten": lambda: file.write_bytes(bytes(reversed(content))),
        "flipped": lambda: file.write_bytes(bytes(flipped)),
    }


KINDS = ("deleted", "emptied", "truncated", "overwritten", "flipped")


def files_of(folder):
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
