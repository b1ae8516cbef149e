"""Loading is a gate: a damaged or hostile flow is one clear error, in little time and memory, or sound."""

import hashlib
import inspect
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from catalogue import SMALL
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, TensorDataset

import timm_nfaug as nfa
from benchmarks.reliability.hostile import base_flows, mutate, try_flow
from benchmarks.reliability.mutations import MUTATIONS
from timm_nfaug.config import _SCHEMA, FlowConfig
from timm_nfaug.flows.architectures import ARCHITECTURES
from timm_nfaug.hub import BUNDLED

ROOT = Path(__file__).parents[1]
load = nfa.ConditionalFlow.from_pretrained


@pytest.fixture
def saved(small_flow, tmp_path) -> Path:
    return small_flow.save_pretrained(tmp_path / "flow")


def edit_config(directory: Path, edit) -> None:
    values = json.loads((directory / "config.json").read_text())
    edit(values)
    (directory / "config.json").write_text(json.dumps(values))


def edit_weights(directory: Path, edit) -> None:
    """Changes tensors, and signs the result: past the digest, to what is checked after it."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)
    sign(directory)


def sign(directory: Path) -> None:
    digest = hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()
    edit_config(directory, lambda c: c.update(weights_sha256=digest))


# -- fuzzing ---------------------------------------------------------------------------------------


def test_hostile_flows_are_refused_or_sound(tmp_path):
    bases, found, kinds = base_flows(tmp_path), {}, set()
    for seed in range(300):
        kinds.add(kind := mutate(bases, tmp_path / "hostile", seed))
        found.setdefault(try_flow(tmp_path / "hostile"), []).append((kind, seed))
    assert "raw" not in found and "broken" not in found, found
    assert kinds == MUTATIONS.keys()
    # the fuzzer reaches both sides of the gate
    assert len(found["refused"]) > 150 and len(found["loaded"]) > 30
    outcomes = {seed: o for o, seeds in found.items() for kind, seed in seeds if kind == "nothing"}
    assert set(outcomes.values()) == {"loaded"}


def test_the_fuzzer_tells_sound_from_broken_and_raw(tmp_path, small_flow, monkeypatch):
    """Without the gate the same inputs come out raw or broken."""
    directory = small_flow.save_pretrained(tmp_path / "flow")
    weight = "network.layers.3.weight"
    edit_weights(directory, lambda t: t[weight][0].copy_(t[weight][1] * (1 + 1e-6)))
    assert try_flow(directory) == "refused"
    monkeypatch.setattr(nfa.ConditionalFlow, "check_sound", lambda self: None)
    assert try_flow(directory) == "broken"
    monkeypatch.setattr(nfa.ConditionalFlow, "check_sound", lambda self: {}["x"])
    assert try_flow(directory) == "raw"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([6000, 10**9, 2**63, -1, 0, 1e308]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = sorted(_SCHEMA)


@settings(derandomize=True, deadline=None, max_examples=150, database=None)
@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4))
def test_any_value_in_any_field_is_refused_or_kept(edits):
    own = {"network": {"depth": 1}, "augment": {"p": 0.5}, "latent": {"size": 64}}
    values = FlowConfig("conv_p4_tiny", (3, 8, 8), 2, **own).to_dict()
    for field, value in edits.items():
        part, _, key = field.partition(".")
        if not key:
            values[part] = value
        elif isinstance(values[part], dict):
            values[part][key] = value
    try:
        config = FlowConfig.from_dict(values)
        with torch.device("meta"):
            flow = nfa.ConditionalFlow.from_config(config)
    except ValueError:
        return
    assert FlowConfig.from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False))) == config
    assert all(v.device.type == "meta" for v in flow.state_dict().values())


@settings(derandomize=True, deadline=None, max_examples=60, database=None)
@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda t: t.encode("utf-8", "ignore")))
def test_any_bytes_for_a_config_are_refused(tmp_path_factory, data):
    directory = tmp_path_factory.getbasetemp() / "bytes"
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_bytes(data)
    (directory / "model.safetensors").write_bytes(data)
    assert try_flow(directory) == "refused"


def test_every_argument_of_an_architecture_has_a_rule():
    for builder, *_ in ARCHITECTURES.values():
        arguments = set(inspect.signature(builder).parameters) - {"shape"}
        assert {f"network.{name}" for name in arguments} <= _SCHEMA.keys()


# -- config.json -----------------------------------------------------------------------------------

WRONG = {
    "text for a flag": (
        lambda c: c["prior"].update(low_rank="no"),
        "prior.low_rank must be true or false",
    ),
    "text for names": (
        lambda c: c.update(class_names="abc"),
        "class_names must be a list of texts",
    ),
    "numbers for names": (lambda c: c.update(class_names=[1, 2, 3]), "class_names must be a list"),
    "two names": (lambda c: c.update(class_names=["a", "b"]), "all 3 classes or none, got 2"),
    "NaN": (lambda c: c["network"].update(clamp=float("nan")), "NaN is no number of JSON"),
    "infinity": (lambda c: c["info"].update(x=float("inf")), "Infinity is no number"),
    "1e999": (lambda c: c["network"].update(clamp="1e999"), "network.clamp must be finite"),
    "no clamp": (
        lambda c: c["network"].update(clamp=0),
        "network.clamp must be a number from 0.001",
    ),
    "truth for a number": (
        lambda c: c["network"].update(depth=True),
        "network.depth must be an integer",
    ),
    "float for a number": (lambda c: c.update(bits=8.0), "bits must be an integer from 1 to 8"),
    "deep network": (lambda c: c["network"].update(depth=6000), "depth .*at most 1,024, got 6,000"),
    "a billion classes": (
        lambda c: c.update(num_classes=10**9),
        "num_classes must be at most 1,000,000",
    ),
    "huge image": (
        lambda c: c.update(input_size=[3, 2**20, 2**20]),
        "input_size.*at most 67,108,864",
    ),
    "huge integer": (
        lambda c: c.update(num_classes=10**30),
        "num_classes must be a positive integer",
    ),
    "negative": (
        lambda c: c["prior"].update(num_modes=-1),
        "prior.num_modes must be an integer from 0",
    ),
    "metrics": (lambda c: c["info"].update(metrics=[1]), "info.metrics must be a dict"),
    "settings": (
        lambda c: c.update(augment={"labels": "mine"}),
        "augment.labels must be one of given, posterior, none",
    ),
    "truth for a version": (
        lambda c: c.update(format_version=True),
        "format_version True is not 1",
    ),
    "newer version": (
        lambda c: c.update(format_version=3),
        "format_version 3 .*upgrade timm_nfaug",
    ),
    "digest": (lambda c: c.update(weights_sha256=3), "weights_sha256 must be a text, got int"),
    "surrogate": (lambda c: c["info"].update(data="\ud800"), "surrogates not allowed"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_value_is_named_with_its_file_and_a_remedy(case, saved):
    edit, match = WRONG[case]
    edit_config(saved, edit)
    path = saved / "config.json"
    path.write_text(path.read_text().replace('"1e999"', "1e999"))
    with pytest.raises(ValueError, match=match) as e:
        load(saved)
    assert str(path) in str(e.value) and "download or save the flow again" in str(e.value)


@pytest.mark.parametrize(
    "text, match",
    [
        ("[" * 100_000, "not valid JSON"),
        ('{"info": ' + '{"a":' * 30 + "1" + "}" * 31, "more than 16 deep|lacks"),
        ('{"num_classes": ' + "9" * 100_000 + "}", "not of a timm_nfaug flow"),
        ('{"library": "timm_nfaug", "library": "timm_nfaug"}', "a key stands twice"),
        (" " * (2**24 + 1), "more than 16,777,216 bytes"),
        ("", "not valid JSON"),
    ],
    ids=["unclosed", "nested", "digits", "twice", "large", "empty"],
)
def test_text_that_is_no_config(text, match, saved):
    if '"info"' in text:
        own = json.loads((saved / "config.json").read_text())
        del own["info"]
        text = json.dumps(own)[:-1] + ", " + text[1:]
    (saved / "config.json").write_text(text)
    with pytest.raises(ValueError, match=match):
        load(saved)


def test_an_editors_byte_order_mark_is_no_fault(saved, small_flow):
    path = saved / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load(saved).config == small_flow.config


def test_the_names_of_a_large_dataset_fit(tmp_path):
    names = [f"n{i:08d} a name of forty letters, as in ImageNet" for i in range(21_841)]
    flow = nfa.create_flow(
        "linear",
        input_size=(1, 2, 2),
        num_classes=21_841,
        class_names=names,
        prior={"num_modes": 1},
    )
    assert load(flow.save_pretrained(tmp_path)).config.class_names == names


COST = """
import resource, sys, time
import timm_nfaug as nfa
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
nfa.ConditionalFlow.from_pretrained(sys.argv[1])
for directory in sys.argv[2:]:
    before, start = peak(), time.process_time()
    try:
        nfa.ConditionalFlow.from_pretrained(directory)
    except ValueError as e:
        print(f"{time.process_time() - start:.2f} {(peak() - before) / 1e6:.0f}", e)
"""


def test_a_refusal_takes_little_time_and_memory(small_flow, tmp_path):
    """Also within the bounds of the schema, where only the header of the weights tells."""
    edits = (
        lambda c: c["network"].update(depth=6000),
        lambda c: c.update(num_classes=10**9, class_names=[]),
        lambda c: c.update(num_classes=10**6, class_names=[], prior={"num_modes": 3072}),
        lambda c: c["network"].update(hidden=2**16),
        lambda c: c.update(input_size=[3, 4096, 4096]),
        lambda c: c["network"].update(depth=400),
    )
    directories = []
    for i, edit in enumerate(edits):
        directories.append(small_flow.save_pretrained(tmp_path / str(i)))
        edit_config(directories[-1], edit)
    command = [sys.executable, "-c", COST, BUNDLED / "conv_p4_tiny.digits", *directories]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(edits), done.stdout + done.stderr
    for line in lines:
        seconds, megabytes, *_ = line.split()
        # a network of 400 steps is built without its numbers; each of the others takes milliseconds
        assert float(seconds) < 3 and float(megabytes) < 100, line


# -- model.safetensors -----------------------------------------------------------------------------


def put(key, value, at=0):
    return lambda t: t[key].view(-1).__setitem__(at, value)


def near_singular(tensors):
    w = tensors["network.layers.3.weight"]
    w[0] = w[1] * (1 + 1e-6)


DAMAGE = {
    "NaN in a coupling": (put("network.layers.4.net.2.weight", torch.nan), "layers.4.net.2.weight"),
    "infinity": (put("prior.modes", torch.inf), "prior.modes holds numbers"),
    "overflow of squares": (put("prior.mu", 1e30), "prior.mu holds numbers"),
    "near-singular": (near_singular, "levels off.*network.layers.3.weight"),
    "singular": (lambda t: t["network.layers.3.weight"].zero_(), "layers.3.weight is singular"),
    "scale": (put("network.layers.2.log_scale", 200.0), "network.layers.2.log_scale"),
    "coupling": (lambda t: t["network.layers.4.net.4.weight"].fill_(1e8), "network.layers.4.net"),
    "negative deviation": (put("prior.mode_std", -1.0), "prior.mode_std .*from 0 to"),
    "no variance": (put("log_prior", torch.nan), "log_prior holds numbers"),
    "inverse": (put("network.layers.1.inverse_weight", 9.0), "layers.1.inverse_weight and log_det"),
    "integers": (lambda t: t.update({"prior.mu": t["prior.mu"].long()}), "prior.mu is 'I64'.*floats"),
    "truth values": (lambda t: t.update(log_prior=t["log_prior"] > 0), "log_prior is 'BOOL'"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_weights_are_named(case, saved):
    edit, match = DAMAGE[case]
    edit_weights(saved, edit)
    with pytest.raises(ValueError, match=match) as e:
        load(saved)
    wanted = (str(saved / "model.safetensors"), "download or save the flow again")
    assert all(part in str(e.value) for part in wanted)


def test_variances_out_of_range_are_named(tmp_path):
    flow = nfa.create_flow("linear", input_size=(1, 2, 2), num_classes=2)
    directory = flow.save_pretrained(tmp_path)
    for s in (200.0, -200.0):  # exp leaves float32
        edit_weights(directory, put("prior.s", s))
        with pytest.raises(ValueError, match="prior.s gives variances"):
            load(directory)


def test_modes_that_give_no_covariance_are_named(tmp_path):
    """They would end in a LinAlgError at the first label that is guessed."""
    flow = nfa.create_flow("linear", input_size=(1, 4, 4), num_classes=2, prior={"num_modes": 3})
    directory = flow.save_pretrained(tmp_path)
    edit_weights(directory, lambda t: (t["prior.modes"].fill_(1e3), t["prior.mode_std"].fill_(1e3)))
    with pytest.raises(ValueError, match="prior.modes, mode_std and s give no covariance"):
        load(directory)


def test_a_class_without_images_loads(tmp_path):
    flow = nfa.create_flow("linear", input_size=(1, 2, 2), num_classes=2)
    flow.log_prior[1] = -torch.inf
    assert load(flow.save_pretrained(tmp_path)).log_prior.tolist() == flow.log_prior.tolist()


def test_a_header_of_gigabytes_is_not_read(saved):
    path = saved / "model.safetensors"
    for size in (2**40, 10**8):
        path.write_bytes(size.to_bytes(8, "little") + path.read_bytes()[8:])
        with pytest.raises(ValueError, match="cannot be read as safetensors.*truncated"):
            load(saved)


@pytest.mark.parametrize("name", nfa.list_flows())
def test_random_flows_of_every_architecture_pass(name, tmp_path):
    for seed in range(3):
        torch.manual_seed(seed)
        flow = nfa.create_flow(name, input_size=(3, 16, 16), num_classes=2, **SMALL[name]).eval()
        flow.initialize(2 * torch.rand(32, 3, 16, 16).cumsum(2).cumsum(3) / 256 - 1)
        with torch.no_grad():
            for p in flow.network.parameters():
                p.add_(0.4 * torch.randn_like(p) / max(1, p[0].numel()) ** 0.5)
        flow.save_pretrained(tmp_path)
        found = load(tmp_path)
        for key, tensor in flow.state_dict().items():
            own = found.state_dict()[key]
            assert torch.equal(own, tensor) and own.stride() == tensor.stride(), key


# -- the two files and their digest ----------------------------------------------------------------


def test_saving_twice_gives_the_same_bytes(small_flow, tmp_path):
    read = lambda d: {p.name: p.read_bytes() for p in d.iterdir()}
    first = read(small_flow.save_pretrained(tmp_path / "a" / "flow"))
    for i in range(5):
        again = load(tmp_path / "a" / "flow").save_pretrained(tmp_path / str(i) / "flow")
        assert read(again) == first
    digest = json.loads(first["config.json"])["weights_sha256"]
    assert digest == hashlib.sha256(first["model.safetensors"]).hexdigest()


def test_a_sound_flow_loads_without_a_word(saved):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(saved)
        for name in nfa.list_flows(pretrained=True):
            load(name)


def test_an_older_flow_loads_with_a_warning_that_says_how_to_add_the_digest(saved, small_flow):
    tensors = load_file(saved / "model.safetensors")
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    edit_config(saved, lambda c: c.pop("weights_sha256"))
    with pytest.warns(nfa.NFAWarning, match=r"earlier version; flow.save_pretrained\(.*adds it"):
        flow = load(saved)
    assert torch.equal(flow.prior.mu, small_flow.prior.mu)
    flow.save_pretrained(saved)
    test_a_sound_flow_loads_without_a_word(saved)


@pytest.mark.parametrize("old_has_digest", [True, False])
def test_new_weights_under_an_old_config_are_loaded_with_their_own(
    saved, small_flow, tmp_path, old_has_digest
):
    """A save that was killed between its two files."""
    old = (saved / "config.json").read_text()
    prior = type(small_flow.prior)(2, small_flow.dim, num_modes=1)
    new = small_flow.with_prior(prior, ["x", "y"])
    new.save_pretrained(saved)
    (saved / "config.json").write_text(old)
    if not old_has_digest:
        edit_config(saved, lambda c: c.pop("weights_sha256"))
    with pytest.warns(nfa.NFAWarning, match="config inside .*model.safetensors is taken") as said:
        flow = load(saved)
    assert said[0].filename == __file__
    assert flow.config == new.config and flow.config.class_names == ["x", "y"]


def test_a_flipped_bit_of_the_weights_is_found(saved):
    path = saved / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1  # the last bit of a number: the flow would be sound, and another one
    path.write_bytes(data)
    with pytest.raises(ValueError, match="its numbers are not those that were saved"):
        load(saved)
    edit_config(saved, lambda c: c.pop("weights_sha256"))
    with pytest.raises(ValueError, match="its numbers are not those that were saved"):
        load(saved)


def test_weights_of_another_flow_without_a_config_inside_are_refused(saved):
    path = saved / "model.safetensors"
    tensors = load_file(path)
    tensors["prior.mu"] += 1
    save_file(tensors, path)
    with pytest.raises(ValueError, match="config.json: weights_sha256 is not of the weights"):
        load(saved)


def test_the_weights_bring_the_config(saved, small_flow):
    with safe_open(saved / "model.safetensors", "pt") as f:
        inside = json.loads(f.metadata()["config"])
    assert FlowConfig.from_dict(inside) == small_flow.config


def test_a_config_edited_by_hand_is_taken(saved):
    edit_config(saved, lambda c: c.update(class_names=["x", "y", "z"]))
    assert load(saved).config.class_names == ["x", "y", "z"]


def test_a_flow_that_could_not_be_loaded_is_not_saved(saved, small_flow):
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    with torch.no_grad():
        small_flow.prior.mu[0, 0] = torch.nan
    with pytest.raises(ValueError, match="prior.mu holds numbers"):
        small_flow.save_pretrained(saved)
    with torch.no_grad():
        small_flow.prior.mu.zero_()
    small_flow.config.info["metrics"] = {"bits": float("inf")}
    with pytest.raises(ValueError, match="Infinity is no number of JSON"):
        small_flow.save_pretrained(saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


@pytest.mark.parametrize("room", [50_000, 1_000])
def test_a_full_disk_is_an_error_of_the_system_that_names_the_file(saved, small_flow, room):
    """The disk's end, played by the operating system's limit on the size of a file."""
    resource = pytest.importorskip("resource")
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    with torch.no_grad():
        small_flow.prior.mu.add_(1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(OSError, match=r"cannot write .*model.safetensors: File too large"):
            small_flow.save_pretrained(saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


def test_reading_while_another_process_saves_gives_one_flow_or_the_other(small_flow, tmp_path):
    small_flow.save_pretrained(tmp_path)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_save_for_ever, args=(small_flow, tmp_path), daemon=True)
    process.start()
    seen = set()
    try:
        for _ in range(30):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", nfa.NFAWarning)
                flow = load(tmp_path)
            if "data" in flow.config.info:
                seen.add(flow.config.info["data"])
                assert (flow.prior.mu == float(flow.config.info["data"])).all()
    finally:
        process.kill()
        process.join()
    assert len(seen) > 2


def _save_for_ever(flow, directory):
    for i in range(10**6):
        with torch.no_grad():
            flow.prior.mu.fill_(i)
        flow.config.info["data"] = str(i)
        flow.save_pretrained(directory)


def test_a_killed_save_loses_nothing(small_flow, tmp_path):
    rng, context, saves = random.Random(0), multiprocessing.get_context("fork"), 0
    small_flow.save_pretrained(tmp_path)
    for _ in range(12):
        process = context.Process(target=_save_for_ever, args=(small_flow, tmp_path), daemon=True)
        process.start()
        time.sleep(0.05 + 0.1 * rng.random())
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", nfa.NFAWarning)
            flow = load(tmp_path)
        if "data" in flow.config.info:  # else it was killed before its first save
            saves += 1
            assert (flow.prior.mu == float(flow.config.info["data"])).all()
    assert saves
    small_flow.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    test_a_sound_flow_loads_without_a_word(tmp_path)


# -- dtypes and modes ------------------------------------------------------------------------------


@pytest.mark.parametrize("lower", [lambda m: m.to(torch.bfloat16), lambda m: m.half()])
def test_a_flow_stays_in_float32(small_flow, toy_images, lower):
    images, labels = toy_images[0][:8], toy_images[1][:8]
    augment = nfa.NFAugment(small_flow, strength=1.0, modes=4, p=1.0, seed=0, labels="given")
    wanted = augment(images, labels)[0]
    noise = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with pytest.warns(nfa.NFAWarning, match=r"float32.*set_net_dtype\(torch.bfloat16\)") as said:
        lower(augment)
    assert len([w for w in said if w.category is nfa.NFAWarning]) == 1
    assert {v.dtype for v in small_flow.state_dict().values()} == {torch.float32}
    assert torch.equal(
        nfa.NFAugment(small_flow, 1.0, 4, 1.0, seed=0, labels="given")(images, labels)[0], wanted
    )
    with torch.no_grad():
        # 1/39 of a level; in 16 bits noise came back up to 244 levels off
        assert (small_flow.inverse(small_flow(noise)[0]) - noise).abs().max() < 2e-4
    assert small_flow.double().dtype == torch.float64 and small_flow.float().dtype == torch.float32


def test_no_modes_are_refused_by_that_name(small_flow):
    loader = DataLoader(TensorDataset(torch.zeros(8, 3, 8, 8), torch.arange(8) % 2), 4)
    for make in (
        lambda: nfa.NFAugment(small_flow, modes=0, labels="given"),
        lambda: nfa.NFAugment.to_fit(nfa.create_flow("linear"), modes=0, labels="given"),
        lambda: nfa.NFAugment.from_data(loader, num_classes=2, modes=0, labels="given"),
        lambda: nfa.NFAugment.from_data(loader, num_classes=2, modes=True, labels="given"),
        lambda: nfa.NFAugment.from_data(loader, num_classes=2, modes=2.0, labels="given"),
    ):
        with pytest.raises(ValueError, match="modes must be a positive integer, got"):
            make()
