"""Flows over real HTTP from a Hub that fails: one error with id and remedy, in bounded time, or the local copy."""

import copy
import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import environment, running_hub

ROOT = Path(__file__).parents[1]
SECONDS = 1  # HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT
CLIENT = """
import json, sys, time, warnings
import torch
import timm_nfaug as nfa

CALLS = {
    "load": lambda **own: nfa.ConditionalFlow.from_pretrained(**own),
    "augment": lambda **own: nfa.NFAugment.from_pretrained(**own, labels="given").flow,
    "run": lambda name, code: exec(code, {}) or "ran",
    "push": lambda name, **own: nfa.ConditionalFlow.from_pretrained(name).push_to_hub(**own),
}
for line in sys.stdin:
    call, own = json.loads(line)
    answer, start = {}, time.monotonic()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = CALLS[call](**own)
            answer["value"] = found if isinstance(found, str) else round(float(found.prior.mu[0, 0]))
        except Exception as e:
            answer |= {"error": str(e), "kinds": [c.__name__ for c in type(e).__mro__]}
    answer["warnings"] = [str(w.message) for w in said if w.category is nfa.NFAWarning]
    answer["seconds"] = time.monotonic() - start
    print(json.dumps(answer), flush=True)
"""


class Client:
    """A process of a user, which loads flows on request."""

    def __init__(self, env: dict[str, str]):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
        self.process = subprocess.Popen([sys.executable, "-c", CLIENT], env=env, **pipes)

    def ask(self, call: str, **own) -> dict:
        own = {k: str(v) if isinstance(v, Path) else v for k, v in own.items()}
        self.process.stdin.write(json.dumps([call, own]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def load(self, name="org/flow", call="load", **own) -> int:
        """Loads without a warning; returns the number of the flow."""
        answer = self.ask(call, name=name, **own)
        assert "error" not in answer and not answer["warnings"], answer
        return answer["value"]

    def fail(self, name="org/flow", call="load", kind="OSError", **own) -> str:
        """Fails with one line that names the id; returns it."""
        answer = self.ask(call, name=name, **own)
        assert kind in answer.get("kinds", []) and not answer["warnings"], answer
        assert own.get("repo_id", name) in answer["error"] and "\n" not in answer["error"], answer
        assert answer["kinds"][0] == kind and answer["seconds"] < 5 * SECONDS, answer
        return answer["error"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def server():
    with running_hub() as server:
        yield server


def start(url: str, home: Path, **more: str):
    times = dict.fromkeys(("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"), str(SECONDS))
    client = Client(environment(url, home, **times, **more))
    yield client
    client.process.stdin.close()
    assert client.process.wait(60) == 0, "a stalled request holds up the end of the process"


@pytest.fixture(scope="module")
def client(server, home):
    yield from start(server.url, home)


@pytest.fixture(scope="module")
def offline_client(server, home):
    yield from start(server.url, home, HF_HUB_OFFLINE="1")


@pytest.fixture(scope="module")
def flows(_small_flow, tmp_path_factory) -> list[Path]:
    """Three saved flows, whose first mean is their number."""
    flow, folders = copy.deepcopy(_small_flow), []
    for i in range(3):
        with torch.no_grad():
            flow.prior.mu[0, 0] = i
        folders.append(flow.save_pretrained(tmp_path_factory.mktemp("flow") / str(i)))
    return folders


@pytest.fixture
def hub(server, flows):
    """The server without faults, and with flow 1 as org/flow."""
    server.released.set()
    for values in (server.faults, server.repos, server.requests, server.tokens):
        values.clear()
    server.before = lambda request: None
    server.put("org/flow", flows[1])
    server.released.clear()
    yield server
    server.released.set()


# -- what works --------------------------------------------------------------------------------------------------------


def test_few_requests_and_none_for_a_commit_that_is_here(client, hub, tmp_path):
    assert client.load(cache_dir=tmp_path) == 1
    asked = lambda: [request for request in hub.requests if "/org/flow/" in request]
    assert len(asked()) == 6, hub.requests  # two to find out, two for each file
    hub.requests.clear()
    assert client.load(cache_dir=tmp_path) == 1
    assert len(asked()) == 1, hub.requests
    commit = hub.repos["org/flow"]["main"]
    hub.requests.clear()
    assert client.load(revision=commit, cache_dir=tmp_path) == 1 and not hub.requests
    assert client.load(f"hf-hub:org/flow@{commit}", cache_dir=tmp_path) == 1 and not hub.requests


@pytest.mark.parametrize("call", ["load", "augment"])
def test_keyword_arguments_are_those_of_huggingface_hub(client, hub, tmp_path, home, call):
    hub.tokens["org/flow"] = "hf_secret"
    assert "HTTP 401" in client.fail(call=call, cache_dir=tmp_path)
    assert "HTTP 401" in client.fail(call=call, cache_dir=tmp_path, token="hf_wrong")
    assert client.load(call=call, cache_dir=tmp_path, token="hf_secret") == 1
    assert list(tmp_path.rglob("model.safetensors")) and not list(home.rglob("model.safetensors"))
    hub.requests.clear()
    assert client.load(call=call, cache_dir=tmp_path, local_files_only=True) == 1
    assert "local_files_only=True" in client.fail(
        "org/none", call=call, cache_dir=tmp_path, local_files_only=True
    )
    assert not hub.requests
    assert "token" in client.fail(call=call, cache_dir=tmp_path / "new", token=True)


def test_a_branch_that_moves_does_not_mix_two_flows(client, hub, flows, tmp_path):
    """Whichever request it moves before: config and weights are of one commit."""
    loaded = set()
    for n in range(7):
        hub.put("org/flow", flows[1])
        hub.requests.clear()
        move = lambda request, n=n: len(hub.requests) == n and hub.put("org/flow", flows[2])
        hub.before = move
        cache = tmp_path / str(n)
        loaded.add(client.load(cache_dir=cache))
        (snapshot,) = cache.glob("models--org--flow/snapshots/*")
        files = hub.commits[snapshot.name]
        for file in ("config.json", "model.safetensors"):
            assert (snapshot / file).read_bytes() == files[file], (n, file)
    assert loaded == {1, 2}


def test_a_moved_branch_is_followed(client, hub, flows, tmp_path):
    assert client.load(cache_dir=tmp_path) == 1
    hub.put("org/flow", flows[2])
    assert client.load(cache_dir=tmp_path) == 2
    assert client.load(cache_dir=tmp_path, local_files_only=True) == 2
    hub.put("org/flow", flows[0], "refs/pr/1")
    assert client.load("org/flow@refs/pr/1", cache_dir=tmp_path) == 0
    assert client.load("org/flow", revision="refs/pr/1", cache_dir=tmp_path) == 0


def test_a_cache_that_is_only_read(client, hub, tmp_path):
    assert client.load(cache_dir=tmp_path) == 1
    (tmp_path / "models--org--flow" / "refs" / "main").unlink()  # as if it were of another branch
    folders = [p for p in tmp_path.rglob("*") if p.is_dir()]
    for folder in folders:
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert client.load(cache_dir=tmp_path) == 1
    finally:
        for folder in folders:
            folder.chmod(stat.S_IRWXU)


# -- what fails --------------------------------------------------------------------------------------------------------

CONFIG, WEIGHTS = "config.json", "model.safetensors"
NETWORK = "check the connection, HF_ENDPOINT and proxy.* HF_HUB_DOWNLOAD_TIMEOUT"
FAULTS = {  # where, what, and what is said
    "reset": ("HEAD", CONFIG, "reset", NETWORK),
    "reset of the second file": ("HEAD", WEIGHTS, "reset", NETWORK),
    "reset of a body": ("GET", WEIGHTS, "reset", NETWORK),
    "no answer": ("HEAD", CONFIG, "stall", f"(?i)timed out.*{NETWORK}"),
    "no answer for the second file": ("HEAD", WEIGHTS, "stall", f"(?i)timed out.*{NETWORK}"),
    "no answer for a body": ("GET", WEIGHTS, "stall", f"(?i)timed out.*{NETWORK}"),
    "endless answer": ("HEAD", CONFIG, "drip", f"did not end within .* s.*{NETWORK}"),
    "stalled body": ("GET", WEIGHTS, "half", f"(?i)timed out.*{NETWORK}"),
    # which older versions of huggingface_hub follow without end
    "redirect loop": ("HEAD", CONFIG, "loop", f"(?i)(redirects|did not end).*{NETWORK}"),
    "redirect loop of a body": ("GET", WEIGHTS, "loop", f"(?i)redirects.*{NETWORK}"),
    "page of a hotel": ("HEAD", CONFIG, "portal", f"not that of a Hub.*{NETWORK}"),
    "401": ("HEAD", CONFIG, 401, "token is not valid.*HTTP 401.*check the id, and log in"),
    "gated": ("HEAD", CONFIG, "gated", "restricted.*HTTP 403.*ask for access"),
    "403": ("HEAD", CONFIG, 403, "forbidden.*HTTP 403.*ask for access"),
    "429": ("HEAD", CONFIG, 429, "too many requests.*HTTP 429.*wait"),
    "429 of a body": ("GET", WEIGHTS, 429, "too many requests.*HTTP 429.*wait"),
    "500": ("HEAD", CONFIG, 500, "the Hub itself failed.*HTTP 500.*try again later"),
    "500 of a body": ("GET", WEIGHTS, 500, "the Hub itself failed.*HTTP 500.*try again later"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_one_error_or_the_local_copy(client, hub, flows, tmp_path, case):
    *where, fault, said = FAULTS[case]
    hub.faults[tuple(where)] = fault
    error = client.fail(cache_dir=tmp_path)
    assert re.search(said, error) and hub.url in error, error

    hub.faults.clear()
    hub.requests.clear()
    assert client.load(cache_dir=tmp_path) == 1
    commit = hub.repos["org/flow"]["main"]
    hub.put("org/flow", flows[2])
    hub.faults[tuple(where)] = fault
    for _ in range(2):  # the first failure must not spoil the copy for the second
        hub.requests.clear()
        answer = client.ask("load", name="org/flow", cache_dir=tmp_path)
        assert answer.get("value") == 1, answer
        (message,) = answer["warnings"]
        assert re.search(said, message), message
        assert "org/flow" in message and f"local copy of commit {commit} is used" in message
    assert client.load(cache_dir=tmp_path, local_files_only=True) == 1
    hub.faults.clear()
    hub.requests.clear()
    assert client.load(cache_dir=tmp_path) == 2


def test_a_body_that_ends_early(client, hub, tmp_path):
    """huggingface_hub tries again a second later, as a connection may break: five times here."""
    hub.faults["GET", WEIGHTS] = "cut"
    answer = client.ask("load", name="org/flow", cache_dir=tmp_path)
    assert re.search(f"org/flow.*{NETWORK}", answer["error"]) and answer["kinds"][0] == "OSError"
    assert answer["seconds"] < 8
    assert not list(tmp_path.rglob("*/model.safetensors"))


def test_refused_connections(client, hub, tmp_path):
    with hub.refusing():
        assert re.search(NETWORK, client.fail(cache_dir=tmp_path))
    assert client.load(cache_dir=tmp_path) == 1
    with hub.refusing():
        answer = client.ask("load", name="org/flow", cache_dir=tmp_path)
    (message,) = answer["warnings"]
    assert answer["value"] == 1 and "refused" in message
    assert client.load(cache_dir=tmp_path) == 1


def test_a_cache_that_cannot_be_written(client, hub, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cache_dir= names another" in client.fail(cache_dir=tmp_path / "file" / "cache")


def test_what_is_not_there(client, hub, tmp_path):
    cache = {"cache_dir": tmp_path}
    assert client.load(**cache) == 1  # of which no local copy may be taken
    missing = "there is no such repository, or it is private.*check the id or path"
    assert re.search(missing, client.fail("org/none", **cache))
    revision = r"org/flow@v9.*no such revision.*branch, tag or commit"
    assert re.search(revision, client.fail(revision="v9", **cache))
    assert re.search(revision, client.fail("org/flow@v9", **cache))
    for file in (CONFIG, WEIGHTS):
        files = hub.commits[hub.repos["org/flow"]["main"]]
        hub.repos["org/part"] = {"main": hub.commit({k: files[k] for k in files.keys() - {file}})}
        assert re.search(f"it has no {file}.*expected a flow", client.fail("org/part", **cache))


@pytest.mark.parametrize(
    "name", ["org/na me", "org/--x", "hf-hub:a/b/c", "hf-hub:", "org/" + 100 * "x", "org/x@../y"]
)
def test_a_malformed_id_asks_nobody(client, hub, name):
    answer = client.ask("load", name=name)
    assert answer["kinds"][0] == "ValueError" and "\n" not in answer["error"], answer
    assert re.search(
        "cannot be an id on the Hub; expected org/name|cannot be a rev", answer["error"]
    )
    assert not hub.requests


def test_offline(client, offline_client, hub, flows, tmp_path):
    hub.put("org/off", flows[1])
    assert client.load("org/off", cache_dir=tmp_path) == 1
    hub.requests.clear()
    assert offline_client.load("org/off", cache_dir=tmp_path) == 1
    error = offline_client.fail("org/none", cache_dir=tmp_path)
    assert re.search("offline .HF_HUB_OFFLINE.*no local copy.*load it once", error)
    assert "no local copy" in offline_client.fail("org/off", cache_dir=tmp_path, revision="v9")
    assert "HF_HUB_OFFLINE" in offline_client.fail(str(flows[0]), "push", repo_id="org/new")
    assert not [request for request in hub.requests if "/org/flow/" not in request]


# -- uploads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "fault", "said"),
    [
        (("POST", "create"), 401, "HTTP 401.*log in"),
        (("POST", "create"), 500, "HTTP 500.*try again later"),
        (("POST", "create"), "stall", "did not end within"),
        (("POST", "create"), "reset", NETWORK),
        (("POST", "branch/v2"), 403, "HTTP 403"),
        (("POST", "preupload/v2"), 429, "HTTP 429.*wait"),
        (("POST", "commit/v2"), "stall", "did not end within"),
        (("POST", "commit/v2"), 403, "HTTP 403"),
    ],
)
def test_an_upload_that_fails(client, hub, flows, where, fault, said):
    hub.faults[where] = fault
    own = {"repo_id": "org/new", "revision": "v2", "token": "hf_secret"}
    assert re.search(f"cannot upload to org/new.*{said}", client.fail(str(flows[0]), "push", **own))
    hub.faults.clear()
    assert "/org/new/commit/" in client.ask("push", name=str(flows[0]), **own)["value"]


def test_a_malformed_id_is_not_uploaded_to(client, hub, flows):
    error = client.fail(str(flows[0]), "push", "ValueError", repo_id="org/na me")
    assert "expected org/name" in error and not hub.requests


@pytest.mark.parametrize("revision", [None, "v2"])
def test_the_code_of_an_uploaded_card_runs(client, hub, flows, revision):
    client.ask("push", name=str(flows[2]), repo_id="org/new", revision=revision)
    card = hub.commits[hub.repos["org/new"][revision or "main"]]["README.md"].decode()
    (code,) = re.findall("```python\n(.*?)```", card, re.S)
    name = "org/new@v2" if revision else "org/new"
    assert code.count(f'from_pretrained("{name}"') == 2 and "# org/new\n" in card
    answer = client.ask("run", name="", code=code)
    assert answer.get("value") == "ran", answer


# -- commands ----------------------------------------------------------------------------------------------------------

PREVIEW = ["timm_nfaug.preview", "--flow", "org/none", "--samples"]
TRAIN = ["timm_nfaug.train", "tests/toy_train.py", "--aug", "nfa-lgiven", "--nfa-flow", "org/none"]


def test_commands_end_in_one_line(hub, tmp_path):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    refusing, running = "http://127.0.0.1:1", []
    for url, command in ((hub.url, PREVIEW), (refusing, PREVIEW), (hub.url, TRAIN)):
        env, flags = environment(url, tmp_path), ["--data-dir", "tests"] if command is TRAIN else []
        command = [sys.executable, "-m", *command, *flags]
        running.append(subprocess.Popen(command, env=env, **pipes))
    ends = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [2, 2, 1]
    for (out, err), said in zip(ends, ("check the id or path", NETWORK, "check the id")):
        assert not out and "Traceback" not in err
        assert re.search(f"error: cannot load org/none from .*{said}", err.splitlines()[-1]), err
    assert [len(err.splitlines()) for _, err in ends[:2]] == [
        1,
        1,
    ]  # the third has argparse's usage
