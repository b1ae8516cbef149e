"""Repositories on the Hugging Face Hub: downloads and uploads in bounded time.

All failures are an `OSError`, or a `ValueError` for an impossible id, that names id and remedy.
"""

import contextlib
import logging
import os
import queue
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ._utils.files import write_atomically
from ._utils.notices import warn
from ._utils.progress import is_hidden

T = TypeVar("T")
COMMIT = re.compile(r"[0-9a-f]{40}")
SLOW = 500_000  # bytes that may take as long as an answer: 50 kB/s at the default 10 s
LOGIN = "log in with `hf auth login` or pass token="


@dataclass(frozen=True)
class Source:
    """Some files of a repository at a revision; `token` and `cache_dir` as in huggingface_hub.

    >>> Source.parse("hf-hub:org/name@v2", ["config.json"]).revision
    'v2'
    """

    id: str
    files: Sequence[str]
    revision: str
    token: str | bool | None = None
    cache_dir: str | None = None
    expected: str = "a flow, as push_to_hub uploads it"  # what the files are

    @classmethod
    def parse(
        cls, name: str, files: Sequence[str], revision=None, token=None, cache_dir=None,
        expected: str = expected,
    ):  # fmt: skip
        """Splits ``org/name[@revision]``; raises ValueError where it cannot be an id."""
        repo, _, at = name.removeprefix("hf-hub:").partition("@")
        revision = revision or at or "main"
        _check_id(repo)
        if ".." in revision or revision.startswith("/"):
            raise ValueError(f"{revision!r} cannot be a revision: name a branch, tag or commit")
        folder = None if cache_dir is None else os.path.expanduser(cache_dir)
        return cls(repo, files, revision, token, folder, expected)

    def __str__(self) -> str:
        return self.id if self.revision == "main" else f"{self.id}@{self.revision}"

    def cached(self, revision: str | None = None) -> Path | None:
        """The local directory with all the files of the revision, if there is one."""
        from huggingface_hub import try_to_load_from_cache

        at = self.cache_dir, revision or self.revision
        found = [try_to_load_from_cache(self.id, file, *at) for file in self.files]
        folders = {Path(p).parent if isinstance(p, str) else None for p in found}
        return folders.pop() if len(folders) == 1 else None


def _check_id(repo: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as e:
        raise ValueError(
            f"{repo!r} cannot be an id on the Hub; expected org/name: {_line(e)}"
        ) from e


def fetch(source: Source, local_files_only: bool = False) -> Path:
    """Returns the local directory of a repository's files, all of one commit, downloaded if needed.

    If the Hub fails a complete local copy is used, with an `NFAWarning`; offline and for
    a commit's full hash it is used without asking. Without a copy it fails after
    HF_HUB_ETAG_TIMEOUT seconds (10) without an answer, after HF_HUB_DOWNLOAD_TIMEOUT seconds (10)
    without a byte of a file, and at less than 50 kB/s on average.

    >>> fetch(Source.parse("org/none", ["config.json"]), local_files_only=True)
    Traceback (most recent call last):
    OSError: cannot load org/none from ...: the mode is offline (local_files_only=True), ...
    """
    from huggingface_hub import constants

    copy, failed = source.cached(), f"cannot load {source} from {constants.ENDPOINT}"
    offline = local_files_only or constants.HF_HUB_OFFLINE
    if copy and (offline or COMMIT.fullmatch(source.revision)):
        return copy
    if offline:
        cause = "local_files_only=True" if local_files_only else "HF_HUB_OFFLINE"
        why = f"the mode is offline ({cause}), and there is no local copy"
        raise OSError(f"{failed}: {why}; load it once with a connection, or name a directory")
    try:
        return _download(source)
    except Exception as e:
        if copy is None or _kinds(e) & {"RevisionNotFoundError", "EntryNotFoundError"}:
            raise OSError(f"{failed}: {_explain(e, source.expected)}") from e
        warn(f"{failed}: {_explain(e)}. The local copy of commit {copy.name} is used instead")
        return copy


def _download(source: Source) -> Path:
    from huggingface_hub import constants

    commit, size = _within(1.5 * constants.HF_HUB_ETAG_TIMEOUT, lambda: _look_up(source))
    if not (folder := source.cached(commit)):
        _within(_patience(size), lambda: _load(source, commit))
        folder = source.cached(commit)
    if folder is None:
        raise FileNotFoundError(f"the cache lost files of commit {commit}")
    pointer = folder.parents[1] / "refs" / source.revision
    if commit != source.revision and not (pointer.is_file() and pointer.read_text() == commit):
        with contextlib.suppress(OSError):  # a cache that is only read
            write_atomically(pointer, lambda p: p.write_text(commit), durable=False)
    return folder


def _look_up(source: Source) -> tuple[str, int]:
    """The commit of the revision, and the bytes of the files there that are not here yet."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    revision, size, wait = source.revision, 0, constants.HF_HUB_ETAG_TIMEOUT
    for file in source.files:
        url = hf_hub_url(source.id, file, revision=revision)
        head = get_hf_file_metadata(url, token=source.token, timeout=wait)
        if not COMMIT.fullmatch(head.commit_hash or ""):
            raise ConnectionError("the answer names no commit, it is not that of a Hub")
        revision = str(head.commit_hash)
        if source.cached(revision):
            return revision, 0
        size += head.size or 0
    return revision, size


def _load(source: Source, commit: str) -> None:
    """Downloads by commit, so that the branch's pointer in the cache moves after all files."""
    from huggingface_hub import hf_hub_download

    own: dict[str, Any] = {"token": source.token, "cache_dir": source.cache_dir}
    with _no_waits(), _bars():
        for file in source.files:
            hf_hub_download(source.id, file, revision=commit, **own)


def _patience(size: int) -> float:
    """Seconds after which the transfer of `size` bytes has failed."""
    from huggingface_hub import constants

    return constants.HF_HUB_DOWNLOAD_TIMEOUT * (1 + size / SLOW)


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Calls in a thread, which may hang in a name server or socket; TimeoutError after `seconds`."""
    done: queue.SimpleQueue = queue.SimpleQueue()

    def work() -> None:
        try:
            done.put((call(), None))
        except BaseException as e:
            done.put((None, e))

    threading.Thread(target=work, daemon=True).start()
    try:
        result, error = done.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"it did not end within {seconds:.0f} s") from None
    if error is not None:
        raise error
    return result


@contextlib.contextmanager
def _bars() -> Iterator[None]:
    """Hides the bars of huggingface_hub where no progress is to be shown."""
    from huggingface_hub import constants
    from huggingface_hub import utils as hub

    decided = constants.HF_HUB_DISABLE_PROGRESS_BARS is not None  # by the user
    if decided or not is_hidden() or hub.are_progress_bars_disabled():
        yield
        return
    hub.disable_progress_bars()
    try:
        yield
    finally:
        hub.enable_progress_bars()


@contextlib.contextmanager
def _no_waits() -> Iterator[None]:
    """Raises where huggingface_hub logs an error to wait for minutes and try again."""
    own = threading.get_ident()

    def stop(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if record.thread == own and re.search(r"timed out|HTTP Error \d+ thrown|\[Retry", text):
            raise sys.exc_info()[1] or ConnectionError(text)
        return True

    names = ("huggingface_hub.file_download", "huggingface_hub.utils._http")
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(stop)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(stop)


def create_repository(repo: str, private=False, revision: str | None = None, token=None) -> str:
    """Makes a repository, and in it a branch, if they are missing; returns its full id.

    >>> create_repository("no id")
    Traceback (most recent call last):
    ValueError: 'no id' cannot be an id on the Hub; expected org/name: ...
    """
    from huggingface_hub import HfApi, constants

    _check_id(repo)
    api, seconds = HfApi(token=token), 1.5 * constants.HF_HUB_ETAG_TIMEOUT
    with _explained(repo):
        made = _within(seconds, lambda: api.create_repo(repo, private=private, exist_ok=True))
        if revision:
            create = lambda: api.create_branch(made.repo_id, branch=revision, exist_ok=True)
            _within(seconds, create)
    return made.repo_id


def upload(folder: Path, repo: str, revision: str | None, token, commit_message: str) -> str:
    """Uploads the files of a directory as one commit; returns its URL.

    >>> upload(Path("no folder"), "org/name", None, None, "Upload flow")
    Traceback (most recent call last):
    FileNotFoundError: ...
    """
    from huggingface_hub import HfApi

    api, size = HfApi(token=token), sum(file.stat().st_size for file in folder.iterdir())

    def send() -> Any:
        with _no_waits():
            return api.upload_folder(
                repo_id=repo, folder_path=folder, revision=revision, commit_message=commit_message
            )

    with _explained(repo):
        info = _within(_patience(size), send)
    return str(getattr(info, "commit_url", info))


@contextlib.contextmanager
def _explained(repo: str) -> Iterator[None]:
    from huggingface_hub import constants

    try:
        yield
    except Exception as e:
        raise OSError(f"cannot upload to {repo} at {constants.ENDPOINT}: {_explain(e)}") from e


def _kinds(e: BaseException) -> set[str]:
    return {c.__name__ for c in type(e).__mro__}  # versions of huggingface_hub move the classes


def _line(e: object) -> str:
    return " ".join(str(e).split())[:300]


def _explain(e: Exception, expected: str = "") -> str:
    """Says what went wrong with the Hub, and what to do."""
    from huggingface_hub import constants

    text, response = _line(e), getattr(e, "response", None)
    logged = re.search(r"HTTP Error (\d+)", text)
    status = getattr(response, "status_code", int(logged[1]) if logged else 0)
    keys = _kinds(e) | {str(min(status, 500))}
    for key, (why, remedy) in KNOWN.items():
        if key in keys:
            file = str(getattr(response, "url", "")).rpartition("/")[2]
            what = f"{why.format(file=file)}{f' (HTTP {status})' if status else ''}"
            return f"{what}; {remedy.format(expected=expected)}"
    if isinstance(e, OSError) and e.errno and not isinstance(e, (ConnectionError, TimeoutError)):
        remedy = "the cache needs room and must be writable; cache_dir= names another"
    else:
        remedy = (
            "check the connection, HF_ENDPOINT and proxy, or, where it is slow, raise "
            "HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT, now "
            f"{constants.HF_HUB_ETAG_TIMEOUT} and {constants.HF_HUB_DOWNLOAD_TIMEOUT} s"
        )
    return f"{type(e).__name__}: {text}; {remedy}"


_UNKNOWN = ("there is no such repository, or it is private", f"check the id or path, or {LOGIN}")
KNOWN = {  # classes of huggingface_hub, and what else has this HTTP status
    "GatedRepoError": ("access to it is restricted", f"ask for access on its page, and {LOGIN}"),
    "RevisionNotFoundError": ("it has no such revision", "name a branch, tag or commit of it"),
    "EntryNotFoundError": ("it has no {file}", "expected {expected}"),
    "LocalTokenNotFoundError": ("there is no token", LOGIN),
    "401": ("it is private, or the token is not valid", f"check the id, and {LOGIN}"),
    "403": ("access to it is forbidden", f"ask for access on its page, and {LOGIN}"),
    "RepositoryNotFoundError": _UNKNOWN,
    "404": _UNKNOWN,
    "429": ("there were too many requests", f"wait some minutes, or {LOGIN}"),
    "500": ("the Hub itself failed", "try again later"),
}
