"""Lists that people write into a text field, such as `1, 10, 50`."""

import re


def whole_numbers(text, where, least, most):
    """The whole numbers in a text, in order, parted by commas, also Chinese ones; none where it is empty.

    Raises ValueError with one sentence that says which item of `where` is wrong.
    """
    if not text.strip():
        return []
    found = []
    for position, item in enumerate(re.split("[,，、]", text), 1):
        item = item.strip()
        if not (item.isascii() and item.isdecimal() and least <= int(item) <= most):
            raise ValueError(
                f"{where}, item {position} is '{item}', expected a whole number from {least} to {most}: write numbers "
                "with commas between them."
            )
        found.append(int(item))
    return found
