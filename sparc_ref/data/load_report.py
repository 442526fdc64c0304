"""One summary of what was kept, converted and skipped while files were read, and the error for an unusable file."""

from collections import Counter


class Unusable(ValueError):
    """Why one file or one line cannot be used.   The message is the reason, the same for all that share it; note says more."""

    def __init__(self, reason: str, note: str = ""):
        super().__init__(f"{reason} ({note})" if note else reason)
        self.reason, self.note = reason, note


class LoadReport:
    """Counts by reason, with the first few names for each.   strict: the first thing to skip raises ValueError instead

    kept, converted and skipped are Counters; notes are sentences; str() is the summary and as_dict() its JSON-able form.
    page is where the reasons are explained.
    """

    def __init__(self, source: str, strict: bool = False, page: str = ""):
        self.source, self.strict, self.page = source, strict, page
        self.notes: list[str] = []
        self.kept: Counter[str] = Counter()
        self.converted: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.names: dict[str, list[str]] = {}

    def convert(self, reason: str, name: str) -> None:
        """Something was used after a change."""
        self.converted[reason] += 1
        self._remember(reason, name)

    def skip(self, reason: str, name: str, note: str = "", count: int = 1, fatal: bool = True) -> None:
        """Something was left out.   fatal False: not even strict mode stops at it"""
        name = f"{name}: {note}" if note else name
        if self.strict and fatal:
            more = f"; see {self.page}" if self.page else ""
            raise ValueError(f"{self.source}: {reason}: {shortened(name)} (strict){more}")
        self.skipped[reason] += count
        self._remember(reason, name)

    def _remember(self, reason: str, name: str) -> None:
        names = self.names.setdefault(reason, [])
        if len(names) < 3:
            names.append(shortened(name))

    def as_dict(self) -> dict:
        return {"kept": dict(self.kept), "converted": dict(self.converted), "skipped": dict(self.skipped), "names": self.names,
                "notes": self.notes}

    def __str__(self) -> str:
        lines = [f"{self.source}: kept " + (", ".join(f"{n} {what}" for what, n in self.kept.items()) or "nothing")]
        lines += [f"  {note}" for note in self.notes]
        for title, counter in (("converted", self.converted), ("skipped", self.skipped)):
            for reason, n in counter.most_common():
                names = self.names.get(reason, [])
                lines.append(f"  {title} {n}, {reason}: {', '.join(names)}{', ...' if n > len(names) else ''}")
        if self.page and (self.converted or self.skipped):
            lines.append(f"  what each means: {self.page}")
        return "\n".join(lines)


def shortened(name: str, length: int = 160) -> str:
    """A name fit to print: control characters and lone surrogates escaped, at most `length` characters."""
    name = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name[:length + 1])
    return name if len(name) <= length else name[:length] + "..."
