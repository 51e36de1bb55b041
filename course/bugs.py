"""For teachers: wrong solutions, and the bugs of A5 and A6, as edits of the code. Keep it from the students.

bugs.json has a line for each: the text that stands in the file once, and what takes its place. `loses` says
which points it costs where a student hands it in; tests/test_course.py holds that. `hidden_in` and `silent`
are the bugs of A5 and A6. Which of them a student gets follows from the secret and the student's name.
"""

import hashlib
import hmac
import json
import unicodedata
from pathlib import Path

BUGS = {
    bug["name"]: bug for bug in json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
}
WRONG = [(name, *pair) for name, bug in BUGS.items() for pair in bug.get("loses", {}).items()]
SILENT = [name for name, bug in BUGS.items() if "silent" in bug]
HIDDEN = {}  # A5: function -> the bugs that it may have
for name in [name for name, bug in BUGS.items() if "hidden_in" in bug]:
    HIDDEN.setdefault(BUGS[name]["hidden_in"], []).append(name)


def edited(name: str, source: str) -> str:
    """The source of the bug's file with the bug in it. ValueError if the code has moved on."""
    old = BUGS[name]["old"]
    if source.count(old) != 1:
        raise ValueError(f"{name}: its old text stands {source.count(old)} times in the file, not once")
    return source.replace(old, BUGS[name]["new"])


def plant(name: str, tree: Path) -> None:
    path = tree / BUGS[name]["file"]
    path.write_text(edited(name, path.read_text(encoding="utf-8")), encoding="utf-8")


def drawn(names: list[str], student: str, secret: str, what: str) -> str:
    """One of the names, by the secret and the student's name, whatever its capitals, blanks and accents."""
    letters = unicodedata.normalize("NFKD", student).casefold()
    name = "".join(letter for letter in letters if letter.isalnum())
    if not name:
        raise ValueError("whose bug? give --student=NAME")
    digest = hmac.new(secret.encode(), f"{what}/{name}".encode(), hashlib.sha256).digest()
    return names[int.from_bytes(digest, "big") % len(names)]


def hidden_bugs(student: str, secret: str) -> dict[str, str]:
    """A5: function -> its bug."""
    return {where: drawn(names, student, secret, f"A5/{where}") for where, names in HIDDEN.items()}


def silent_bug(student: str, secret: str) -> str:
    """A6: the bug of a student."""
    return drawn(SILENT, student, secret, "A6")
