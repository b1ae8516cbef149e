"""Autoencoders: the user's own and diffusers', frozen in float32, by name, directory and Hub id; no file runs code."""

import copy
import json
import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import environment, running_hub
from small_autoencoder import Small
from torch import nn

import timm_nfaug as nfa
from timm_nfaug import autoencoder as module
from timm_nfaug._utils.notices import NFAError
from timm_nfaug.autoencoder import Autoencoder, autoencoder_for, is_code, load_autoencoder

ROOT = Path(__file__).parents[1]
X = torch.rand(5, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def images():
    return torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def fitted(images, autoencoder, **kwargs):
    how = {"size": 32, "modes": 4, "p": 1.0, "seed": 0} | kwargs
    return nfa.NFAugment.from_data([(images, torch.arange(len(images)) % 3)], 3, autoencoder=autoencoder, **how)  # fmt: skip


# -- one of your own -------------------------------------------------------------------------------


def test_it_is_the_module_in_parts():
    own, autoencoder = Small().eval(), Autoencoder(Small())
    assert (autoencoder.channels, autoencoder.factor) == (4, 4)
    with torch.no_grad():
        z = own.encode(X)
        torch.testing.assert_close(autoencoder.encode(X), z)
        torch.testing.assert_close(autoencoder.decode(z), own.decode(z))
    assert autoencoder.encode(X[:0]).shape == (0, 4, 4, 6)
    assert autoencoder.decode(z[:0]).shape == (0, 3, 16, 24)
    assert repr(autoencoder) == "Autoencoder(Small, 4 x H/4 x W/4)"


def test_parts_give_what_one_batch_gives_and_bound_what_is_held(monkeypatch):
    whole = Autoencoder(Small())
    z = whole.encode(X)
    wanted = whole.decode(z)
    monkeypatch.setitem(module.PIXELS, "cpu", 2 * 16 * 24)  # two images
    parts = Autoencoder(Small())
    parts.module.calls.clear()
    # a convolution may add in another order for another number of images
    torch.testing.assert_close(parts.encode(X), z, atol=1e-6, rtol=0)
    torch.testing.assert_close(parts.decode(z), wanted, atol=1e-6, rtol=0)
    assert parts.module.calls == [2, 2, 1]
    monkeypatch.setitem(module.PIXELS, "cpu", 1)
    parts.module.calls.clear()
    parts.decode(z)
    assert parts.module.calls == [1] * 5, "an image is never cut"


def test_the_module_stays_as_it_was():
    own = Small(dropout=0.5).half().train()
    before = {k: v.clone() for k, v in own.state_dict().items()}
    autoencoder = Autoencoder(own)
    assert own.training and own.dropout.training and not own.calls
    for key, value in own.state_dict().items():
        assert value.dtype == torch.float16 and torch.equal(value, before[key])
        assert value.is_contiguous()
    assert all(p.requires_grad for p in own.parameters())
    assert not any(p.requires_grad for p in autoencoder.parameters())
    assert {p.dtype for p in autoencoder.parameters()} == {torch.float32}
    assert not autoencoder.module.training
    out = autoencoder.decode(autoencoder.encode(X))
    assert out.dtype == torch.float32 and not out.requires_grad


class Odd(nn.Module):
    def __init__(self, encode, decode=None):
        super().__init__()
        self.own = encode, decode or (lambda z: z)

    def encode(self, x):
        return self.own[0](x)

    def decode(self, z):
        return self.own[1](z)


@pytest.mark.parametrize(
    ("own", "error", "says"),
    [
        (object(), TypeError, "lacks encode"),
        (Odd(lambda x: x.flatten(1)), ValueError, r"encode must return \(B, c, H/f, W/f\), got \(1, 12288\)"),
        (Odd(lambda x: x[..., :48]), ValueError, r"got \(1, 3, 64, 48\)"),
        (Odd(lambda x: x[..., :0, :0]), ValueError, "encode must return"),
        (Odd(lambda x: (x, x)), ValueError, "expected a tensor from encode, got tuple"),
        (Odd(lambda x: x[..., ::2, ::2]), ValueError, "decode must return images of the size"),
        (Odd(lambda x: x, lambda z: [z]), ValueError, "expected a tensor from decode, got list"),
        (Odd(lambda x: x, lambda z: 1 / 0 if z is None else z[:, :1]), ValueError, "decode must return"),
        (Odd(lambda x: x @ torch.ones(3, 3)), ValueError, "cannot encode and decode an image"),
    ],
)  # fmt: skip
def test_what_is_no_autoencoder_is_refused(own, error, says):
    with pytest.raises(error, match=says):
        Autoencoder(own)


def test_shapes_that_do_not_fit_are_named():
    autoencoder = Autoencoder(Small())
    for x in (X[0], X[:, :1], X[..., :23]):
        with pytest.raises(ValueError, match="sides multiples of 4"):
            autoencoder.encode(x)
    with pytest.raises(TypeError, match="expected floats in"):
        autoencoder.encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    for z in (torch.zeros(1, 3, 4, 4), torch.zeros(4, 4, 4)):
        with pytest.raises(ValueError, match=r"expected latents \(B, 4, h, w\)"):
            autoencoder.decode(z)
    for size in (0, 30, 33.0, -4, None):
        with pytest.raises((ValueError, TypeError)):
            autoencoder.latent_size(size)
    fixed = Autoencoder(Odd(lambda x: x[..., :64, :64], lambda z: z))  # it knows 64 pixels alone
    with pytest.raises(ValueError, match=r"encode must return \(1, 3, 128, 128\)"):
        fixed.encode(torch.zeros(1, 3, 128, 128))


def test_it_stays_in_float32_and_in_evaluation_mode(images):
    """In a model that is converted and trained."""
    augment = fitted(images, Small(dropout=0.5))
    wanted = augment(images, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(augment, nn.BatchNorm2d(3))
    for convert in (nn.Module.half, nn.Module.double, lambda m: m.to(torch.bfloat16)):
        with pytest.warns(nfa.NFAWarning, match="stays in float32"):
            convert(model)
        model.train()
        assert not augment.autoencoder.module.dropout.training
        assert {p.dtype for p in augment.autoencoder.parameters()} == {torch.float32}
        out = augment(images, generator=torch.Generator().manual_seed(0))
        # float64 modes round otherwise
        torch.testing.assert_close(out, wanted, atol=1e-5, rtol=0)


def test_it_has_nothing_to_train_and_ddp_finds_nothing_in_it(images, tmp_path):
    import torch.distributed as dist

    model = nn.Sequential(fitted(images, Small()), nn.Conv2d(3, 2, 1))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/d", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        for _ in range(2):  # a parameter without gradient would end the second
            wrapped(images).mean().backward()
    finally:
        dist.destroy_process_group()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {"1.weight", "1.bias"}
    assert not any(p.requires_grad for p in model[0].parameters())


def replicated(own):
    """What torch.nn.parallel.replicate does, which needs GPUs: copies without parameters."""
    replica = own._replicate_for_data_parallel()
    for name, child in own.named_children():
        setattr(replica, name, replicated(child))
    for name, p in own.named_parameters(recurse=False):
        setattr(replica, name, p.detach().clone())
    return replica


def test_copies_and_replicas_are_whole(images):
    augment = fitted(images, Small())
    wanted = augment(images, generator=torch.Generator().manual_seed(0))
    for again in (copy.deepcopy(augment), pickle.loads(pickle.dumps(augment))):
        assert again.change.autoencoder is again.autoencoder is not augment.autoencoder
        assert again.change.flow is again.flow
        assert torch.equal(again(images, generator=torch.Generator().manual_seed(0)), wanted)
    replica = replicated(augment)
    part = replica.autoencoder
    assert replica.change.autoencoder is part is not augment.change.autoencoder
    assert not list(part.parameters()) and part.device == augment.autoencoder.device
    assert torch.equal(replica(images, generator=torch.Generator().manual_seed(0)), wanted)
    with pytest.raises(AttributeError, match=r"use replace\(autoencoder="):
        augment.autoencoder = Autoencoder(Small())


def test_a_digest_is_of_the_weights_alone():
    one, two = Autoencoder(Small(), "a"), Autoencoder(Small(), "b")
    assert one.digest() == two.digest() != Autoencoder(Small(seed=1)).digest()
    assert one.digest() is one.digest(), "it is not computed anew"
    with torch.no_grad():
        one.module.down.bias.add_(1)
    assert one.digest() != two.digest()


def test_bfloat16_where_it_is_safe(monkeypatch):
    monkeypatch.setattr(module, "has_bfloat16", lambda device: True)
    own = Small()
    own.bfloat16_safe = True
    low, high = Autoencoder(own), Autoencoder(own, bfloat16=False)
    assert low.in_bfloat16 and not high.in_bfloat16
    z = low.encode(X)
    assert z.dtype == torch.float32 and not torch.equal(z, high.encode(X))
    # 8 bits of a number: 2 ** -8 of the largest, by each of the two layers and its input
    torch.testing.assert_close(z, high.encode(X), atol=0.02 * z.abs().max().item(), rtol=0)
    torch.testing.assert_close(low.decode(z), high.decode(z), atol=0.03, rtol=0)
    monkeypatch.setattr(module, "has_bfloat16", lambda device: False)
    assert torch.equal(low.encode(X), high.encode(X)), "it is never emulated"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(low.encode(X), high.encode(X)), "whatever is around it"


# -- by the name of a function ---------------------------------------------------------------------

FILE = """
import torch
class Own(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
    def encode(self, x): return self.scale * torch.nn.functional.avg_pool2d(x, 2)
    def decode(self, z): return torch.nn.functional.interpolate(z, scale_factor=2)
def make(): return Own()
def text(): return "org/name"
def broken(): raise RuntimeError("no weights here")
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / f"own_{tmp_path.name}".replace("-", "_")
    path = path.with_suffix(".py")
    path.write_text(FILE)
    yield path
    sys.modules.pop(path.stem, None)


def doubled(autoencoder, results):
    results.put(autoencoder.decode(autoencoder.encode(torch.ones(1, 3, 4, 4))).mean().item())


def test_a_function_of_a_file_makes_one_that_spawned_processes_get(file):
    autoencoder = load_autoencoder(f"{file}:make")
    assert autoencoder.name == f"{file}:make" and autoencoder.factor == 2
    again = load_autoencoder(f"{file}:make")
    pickle.dumps(autoencoder), pickle.dumps(again)  # the file is not imported a second time
    assert load_autoencoder(f"{file.stem}:make").digest() == again.digest(), "as a module"
    spawn = multiprocessing.get_context("spawn")
    results = spawn.SimpleQueue()
    process = spawn.Process(target=doubled, args=(autoencoder, results))
    process.start()
    process.join(60)
    assert process.exitcode == 0 and results.get() == 1.0


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("{}:missing", "missing"), ("{}:broken", "no weights here"), ("{}:text", "got 'org/name'"),
        ("no.py:make", "no file"), ("no_module:make", "No module named"),
    ],
)  # fmt: skip
def test_a_function_that_makes_none_is_named(file, name, says):
    with pytest.raises(ValueError, match=f"cannot make an autoencoder by .*{says}"):
        load_autoencoder(name.format(file))


def test_a_file_hides_no_other_module(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = {name: sys.modules[name] for name in ("json", "copy")}
    for name in (*known, "wave"):
        (tmp_path / f"{name}.py").write_text(FILE)
        with pytest.raises(ValueError, match=f"another module is called {name}.*rename the file"):
            load_autoencoder(f"{tmp_path / name}.py:make")
    assert all(sys.modules[name] is own for name, own in known.items())


@pytest.mark.parametrize("source", ["", "name", "no/such/one", "./no", "~/no", "local-dir:no/one"])
def test_a_name_that_stands_for_nothing_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError), match="autoencoder"):
        load_autoencoder(source)


# -- a file never runs code ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["{}:make", "{}:make ", " {}:make", "local-dir:{}:make", "hf-hub:{}:make", "hf-hub:{0.stem}:make",
     "{0.stem}:make", "local-dir:{0.stem}:make", "local-dir:{0.parent}", "{0.parent}", "./{0.name}:make",
     "{}:make@main", "{}@main:make", "{}", "{}\n:make", "{0.stem}:make:make", "file://{}:make", "os:getcwd"],
)  # fmt: skip
@pytest.mark.parametrize("revision", [None, "main"])
def test_a_saved_augmentation_runs_no_code(file, tmp_path, images, name, revision, monkeypatch):
    """Whatever name of an autoencoder its config holds."""
    mark = tmp_path / "ran"
    file.write_text(FILE + f"open({str(mark)!r}, 'w').close()\n")
    config = {"_class_name": "own.Own", "auto_map": {"AutoModel": f"{file.stem}.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    augment = fitted(images, Small())
    augment.flow.config.latent |= {"autoencoder": name.format(file), "revision": revision}
    saved = augment.save_pretrained(tmp_path / "saved")
    with pytest.raises((ValueError, OSError), match="(?i)autoencoder|cannot"):
        nfa.NFAugment.from_pretrained(saved, local_files_only=True)
    assert not mark.exists()
    load_autoencoder(f"{file}:make")
    assert mark.exists(), "the user's own word runs it"


def test_weights_other_than_those_of_the_fit_are_refused(images, tmp_path):
    augment = fitted(images, Small())
    assert augment.flow.config.latent["sha256"] == Autoencoder(Small()).digest()
    saved = augment.save_pretrained(tmp_path / "saved")
    with pytest.raises(NFAError, match="of your own, which is not saved with it: pass"):
        nfa.NFAugment.from_pretrained(saved)
    with pytest.raises(NFAError, match="with other weights"):
        nfa.NFAugment.from_pretrained(saved, autoencoder=Small(seed=1))
    again = nfa.NFAugment.from_pretrained(saved, autoencoder=Small())
    g = lambda: torch.Generator().manual_seed(0)
    assert torch.equal(again(images, generator=g()), augment(images, generator=g()))


# -- of diffusers ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_vaes(tmp_path_factory):
    """By class: a small random model of diffusers, and the directory that it is saved in."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    tiny = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), upsampling_scaling_factor=2, scaling_factor=0.5, shift_factor=0.1,
    )  # fmt: skip
    kl = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=2,
        up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.18, shift_factor=0.1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("vaes")
    found = {}
    for model in (tiny, kl):
        name = type(model).__name__
        model.save_pretrained(folder / name)
        found[name] = model.eval(), folder / name
    return found


@pytest.mark.parametrize("kind", ["AutoencoderTiny", "AutoencoderKL"])
def test_it_is_what_diffusers_computes(tiny_vaes, kind):
    model, directory = tiny_vaes[kind]
    autoencoder = load_autoencoder(str(directory))
    autoencoder.in_bfloat16 = False
    assert autoencoder.name == str(directory.resolve()) and autoencoder.revision is None
    assert autoencoder.factor == 2 and autoencoder.channels == 4
    with torch.no_grad():
        found = model.encode(X)
        z = found.latents if kind == "AutoencoderTiny" else found.latent_dist.mode()
        z = (z - 0.1) * model.config.scaling_factor
        x = model.decode(z / model.config.scaling_factor + 0.1).sample
    # channels_last convolutions add in another order
    torch.testing.assert_close(autoencoder.encode(X), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(autoencoder.decode(z), x, atol=1e-5, rtol=1e-5)
    given = load_autoencoder(model)  # as a diffusers user has it
    assert given.digest() == autoencoder.digest() and not given.name
    assert load_autoencoder(f"local-dir:{directory}").name == autoencoder.name
    other = copy.deepcopy(model)
    other.register_to_config(scaling_factor=0.9)
    assert load_autoencoder(other).digest() != given.digest(), "latents of another scale are others"


def damaged(directory, tmp_path, change):
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    change(tmp_path)
    return tmp_path


def rewrite(**values):
    def change(folder):
        config = json.loads((folder / "config.json").read_text()) | values
        text = json.dumps({k: v for k, v in config.items() if v is not None})
        (folder / "config.json").write_text(text)

    return change


def to_bin(folder):
    weights = folder / "diffusion_pytorch_model.safetensors"
    torch.save({}, folder / "diffusion_pytorch_model.bin")
    weights.unlink()


def sharded(folder):
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.rename(folder / "diffusion_pytorch_model-00001-of-00002.safetensors")
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")


def fewer_weights(folder):
    from safetensors.torch import load_file, save_file

    weights = folder / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state.pop(sorted(state)[0])
    save_file(state, weights, {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (to_bin, "holds no diffusion_pytorch_model.safetensors; .* in one file"),
        (sharded, "holds no diffusion_pytorch_model.safetensors; .* in one file"),
        (lambda f: (f / "config.json").unlink(), "holds no config.json"),
        (rewrite(_class_name=None), "has no _class_name; expected one of AutoencoderTiny"),
        (rewrite(_class_name="UNet2DModel"), "has a UNet2DModel; expected one of AutoencoderTiny"),
        (rewrite(_class_name=["AutoencoderTiny"]), "expected one of AutoencoderTiny"),
        (rewrite(quantization_config={"quant_method": "x"}), "quantized"),
        (lambda f: (f / "config.json").write_text("[]"), "is not the config of an autoencoder"),
        (lambda f: (f / "config.json").write_text("{"), "is not the config of an autoencoder"),
        (fewer_weights, "lack 1 tensors"),
        (lambda f: (f / "diffusion_pytorch_model.safetensors").write_bytes(b"no"), "cannot load"),
        (rewrite(latent_channels=5), "cannot load"),
    ],
)  # fmt: skip
def test_files_that_are_no_autoencoder_are_refused(tiny_vaes, tmp_path, change, says):
    with pytest.raises((ValueError, OSError), match=says):
        load_autoencoder(damaged(tiny_vaes["AutoencoderTiny"][1], tmp_path, change))


def test_a_directory_has_no_revision(tiny_vaes):
    with pytest.raises(ValueError, match="drop revision='v1'"):
        load_autoencoder(tiny_vaes["AutoencoderTiny"][1], revision="v1")


def test_without_diffusers_the_extra_is_named(tiny_vaes, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match="needs diffusers: pip install diffusers"):
        load_autoencoder(tiny_vaes["AutoencoderTiny"][1])


FROM_THE_HUB = """
import os, torch, timm_nfaug as nfa
from timm_nfaug.autoencoder import load_autoencoder
x = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
augment = nfa.NFAugment.from_data([x], labels="none", autoencoder="org/vae", size=32, modes=2, p=1.0)
augment.save_pretrained("saved")
print(augment.autoencoder.name, augment.flow.config.latent["revision"])
for name in ("org/bin", "org/none"):
    try:
        load_autoencoder(name)
    except OSError as e:
        print(e)
os.makedirs("org/vae")  # a directory of the name of the id
again, g = nfa.NFAugment.from_pretrained("saved"), lambda: torch.Generator().manual_seed(0)
assert torch.equal(again(x, generator=g()), augment(x, generator=g()))
print(again.autoencoder.revision)
"""


def test_an_id_of_the_hub_is_pinned_and_loaded_again_without_it(tiny_vaes, tmp_path):
    directory = tiny_vaes["AutoencoderTiny"][1]

    (tmp_path / "bin").mkdir()
    only_bin = damaged(directory, tmp_path / "bin", to_bin)
    with running_hub() as hub:
        commit = hub.put("org/vae", directory)
        hub.put("org/bin", only_bin)
        # before the augmentation is loaded again the branch moves on
        hub.before = lambda request: "org/none" in request and hub.put("org/vae", only_bin)
        env = environment(hub.url, tmp_path / "home") | {"PYTHONPATH": str(ROOT)}
        how = {"capture_output": True, "text": True, "cwd": tmp_path, "env": env}
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", FROM_THE_HUB], **how)
    assert done.returncode == 0, done.stderr
    first, *errors, last = done.stdout.splitlines()
    assert first == f"org/vae {commit}" and last == commit
    assert "org/none" in hub.requests[-1], "a commit that is here is not looked up"
    assert "it has no diffusion_pytorch_model.safetensors" in errors[0]
    assert "expected an autoencoder of diffusers" in errors[0] and "a flow" not in errors[0]
    assert "there is no such repository" in errors[1]


def test_a_spelling_is_code_where_it_is_run():
    """What `load_autoencoder` would import is what a saved config may not name."""
    for name in ("a.py:f", "a:f", "a.b:f", "local-dir:a.py:f", "hf-hub:a.py:f", "/a b/c.py:f"):
        assert is_code(name), name
        with pytest.raises(NFAError, match="not saved with it"):
            autoencoder_for({"autoencoder": name, "size": 64})
    for name in ("org/name", "org/name@v1", "/a/b", "a.py", "a:", ":f", "", "hf-hub:org/name:f"):
        assert not is_code(name), name
