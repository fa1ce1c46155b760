"""Shows downloads: one progress bar for all files of a model on a terminal, a few lines elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from meshllm.util.format import megabytes, printable, printable_message

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from meshllm.models.transfer.progress import TransferProgress

WORDS = {
    "waiting": "waiting for another download of this file",
    "connecting": "connecting",
    "downloading": "downloading",
    "extracting": "unpacking",
    "verifying": "verifying",
}

Expect = Callable[[], Mapping[str, int]]
"""Sizes of the files that are still missing, as far as known."""


class DownloadView(Protocol):
    """Shows a download; a context manager."""

    def __enter__(self) -> object: ...

    def __exit__(self, *error: object) -> None: ...

    def expect(self, files: Expect) -> None:
        """These files are downloaded from now on."""

    def report(self, progress: TransferProgress) -> None:
        """Show a step."""


def view(console: Console) -> DownloadView:
    """The view for this console."""
    return ProgressBar(console) if console.is_terminal else ProgressLines(console)


class DownloadTally:
    """Sums up the progress of several files."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._sources: dict[str, Counter[str]] = {}
        self._expected: Expect = dict

    def expect(self, files: Expect) -> None:
        """These files are downloaded too."""
        self._expected = files

    def add(self, progress: TransferProgress) -> None:
        """Add a step of one file."""
        if progress.file not in self._done:
            # The model's files are known by now.
            self._sizes = {**dict(self._expected()), **self._sizes}
        if progress.total:
            self._sizes[progress.file] = progress.total
        self._done[progress.file] = progress.done
        if progress.by_source:
            self._sources[progress.file] = Counter(dict(progress.by_source))
        elif progress.source:
            self._sources[progress.file] = Counter({progress.source: progress.done})

    @property
    def done(self) -> int:
        """Bytes received of all files."""
        return sum(self._done.values())

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(self._sizes.values())

    def place(self, file: str) -> str:
        """Position among several files: "2 of 5"; "" for a single one."""
        number = list(self._done).index(file) + 1 if file in self._done else 1
        return f"{number} of {len(self._sizes)}" if len(self._sizes) > 1 else ""

    def sources(self) -> str:
        """Bytes per source, the largest first."""
        given: Counter[str] = Counter()
        for counted in self._sources.values():
            given.update(counted)
        return ", ".join(f"{source_name(name)} {megabytes(count)}" for name, count in given.most_common(4) if count)


def source_name(name: str) -> str:
    """Short name of a source: a hub's host without its scheme."""
    return printable(urlsplit(name).netloc or name) if "://" in name else printable(name)


class ProgressBar:
    """One moving line on a terminal."""

    def __init__(self, console: Console) -> None:
        from rich import progress as rich

        self._bar: RichProgress = rich.Progress(
            rich.TextColumn("{task.description}", markup=False),
            rich.BarColumn(bar_width=None),
            rich.DownloadColumn(),
            rich.TransferSpeedColumn(),
            rich.TimeRemainingColumn(),
            rich.TextColumn("{task.fields[sources]}", markup=False, style="dim"),
            console=console,
            transient=True,
            expand=True,
        )
        self._console = console
        self._tally = DownloadTally()
        self._task: TaskID | None = None
        self._now = ("", "")
        self._source = ""

    def __enter__(self) -> None:
        self._bar.start()

    def __exit__(self, *error: object) -> None:
        self._bar.stop()
        if self._tally.done and (told := self._tally.sources()):
            self._console.print(f"from {told}", style="dim", markup=False, highlight=False)

    def expect(self, files: Expect) -> None:
        self._tally.expect(files)

    def report(self, progress: TransferProgress) -> None:
        if progress.stage not in WORDS:
            if progress.detail:
                self._console.print(printable_message(progress.detail), style="yellow", markup=False, highlight=False)
            return
        downloading = progress.stage == "downloading"
        if downloading:
            self._tally.add(progress)
        # All downloaded files share one bar; hashing is shown per file.
        now = (progress.stage, "" if downloading else progress.file)
        done, total = (self._tally.done, self._tally.total) if downloading else (progress.done, progress.total)
        place = self._tally.place(progress.file) if downloading else ""
        words = f"{WORDS[progress.stage]} {place}".rstrip()
        if self._task is None or now != self._now:
            if self._task is not None:
                self._bar.remove_task(self._task)
            if progress.stage == "connecting" and progress.source != self._source:
                self._source = progress.source  # once, not for each part
                where = f"{printable(progress.file)} from {source_name(progress.source)}"
                self._console.print(where, markup=False, highlight=False)
            self._now = now
            self._task = self._bar.add_task(words, total=total or None, completed=done, sources="")
        sources = self._tally.sources() if downloading and len(progress.by_source) > 1 else ""
        self._bar.update(self._task, description=words, completed=done, total=total or None, sources=sources)


class ProgressLines:
    """A line per stage, and per tenth of a file."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tally = DownloadTally()
        self._last = ("", "", "", -1)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass

    def expect(self, files: Expect) -> None:
        self._tally.expect(files)

    def report(self, progress: TransferProgress) -> None:
        if progress.stage not in WORDS:
            if progress.detail:
                self._print(printable_message(progress.detail))
            return
        downloading = progress.stage == "downloading"
        if downloading:
            self._tally.add(progress)
        tenth = 10 * progress.done // progress.total if progress.total and downloading else 0
        if (now := (progress.stage, progress.file, progress.source, tenth)) == self._last:
            return
        self._last = now
        way = "to" if progress.stage == "connecting" else "from"
        source = f" {way} {source_name(progress.source)}" if progress.source else ""
        place = self._tally.place(progress.file) if downloading else ""
        share = f" {10 * tenth} %" if downloading else ""
        name = printable(progress.file) + (f" ({place})" if place else "")
        self._print(f"{name}: {WORDS[progress.stage]}{source}{share}")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
