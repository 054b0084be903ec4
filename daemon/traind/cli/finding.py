"""One answer of `doctor`."""

GOOD, NOTE, BAD = "ok", "note", "WRONG"


class Finding:
    """One answer: how it is, and for what is not in order how to mend it."""

    def __init__(self, check: str, level: str, sentence: str, mend: str = "") -> None:
        self.check = check
        self.level = level
        self.sentence = sentence
        self.mend = mend
