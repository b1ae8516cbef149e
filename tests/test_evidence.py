"""The evidence: arms on equal terms, choices on held-out images alone, and a command that fills a cell."""

import copy
import dataclasses
import statistics
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch

from benchmarks.cifar import quick
from benchmarks.cifar.arms import Arm
from benchmarks.cifar.quick import QuickRecipe
from benchmarks.cifar.training import normalize, train
from benchmarks.core import common, records
from benchmarks.core.schema import validate_file
from benchmarks.core.statistics import (
    Difference,
    compare,
    holm,
    power,
    residual_deviation,
    seeds_for_power,
)
from benchmarks.evidence import answers, cells, changes, choices, cost, plan, questions, run, tables
from benchmarks.evidence.arms import BOTH, ENTRIES, MOVES, grid
from benchmarks.evidence.cells import CELLS, HELD, SEARCH_SEED
from benchmarks.evidence.data import Pool, load, training_images
from benchmarks.evidence.either import EitherOr
from benchmarks.evidence.work import Place
from timm_nfaug.moves import draw_noise
from train_flow.data import Images

SMALL = QuickRecipe(width=4, epochs=1, batch_size=10, views=1)
RECORD = records.suite_file(cells.SUITE)
RUNS = records.read(RECORD)


@pytest.fixture
def data(toy_images) -> Images:
    return Images(*toy_images, ["a", "b", "c"])


# 12 images of a class, a tuning of two, three arms
TOY = cells.Cell(
    "toy", "toy images", 12, 0.6, "tiny classifier", SMALL, tuning=grid(max_lr=(0.05, 0.1)),
    arms=("crop-flip", "crop-flip-long", "pooled"), seeds=(0, 1), corrupted=0,
)  # fmt: skip


@pytest.fixture
def cell(monkeypatch):
    monkeypatch.setitem(CELLS, "toy", TOY)
    return TOY


@pytest.fixture(scope="module")
def filled(image_folder, tmp_path_factory):
    """The record of the toy cell, filled once."""
    folder = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CELLS, "toy", TOY)
        main(image_folder, folder)
    return folder / "r.jsonl"


@pytest.fixture
def runs(cell, filled):
    return records.read(filled)


# ---- what is on record


def test_choices_and_reports_share_no_seed():
    assert all(SEARCH_SEED not in cell.seeds for cell in CELLS.values())


@pytest.mark.parametrize("name", sorted({r["settings"]["cell"] for r in RUNS}))
def test_nothing_reported_was_chosen_on_its_test_images(name):
    """Every run on test images has the recipe and the setting that held-out images of another seed chose."""
    cell = CELLS[name]
    for r in RUNS:
        s = r["settings"]
        if s["cell"] != name:
            continue
        assert r["split"] in ("held", "test")
        if r["split"] == "held":
            assert r["seed"] == SEARCH_SEED
            continue
        assert r["seed"] != SEARCH_SEED
        where = CELLS[cell.tuned_in] if cell.tuned_in else cell
        if len(ENTRIES[r["arm"]].grid) > 1:
            assert None not in choices.searched(RUNS, where, r["arm"]), "the search is not complete"
        wanted = choices.expected(RUNS, cell, r["arm"])
        assert {k: s[k] for k in wanted} == wanted, f"{r['arm']}, seed {r['seed']}"


def test_the_quick_classifier_reaches_what_its_file_claims():
    """On all of CIFAR-10 with crop and flip alone."""
    own = choices.reported(RUNS, cells.WHOLE)["crop-flip"]
    top1 = [r["metrics"]["top1"] for r in own.values()]
    assert min(top1) >= 93.5
    said = f"Claim: {statistics.fmean(top1):.1f}% on the test images, {len(top1)} seeds"
    assert said in " ".join(quick.__doc__.split())


def test_the_held_out_images_are_in_no_training(image_folder):
    cell = dataclasses.replace(CELLS["cifar10-50"], per_class=5)
    pool, splits = load(cell, image_folder)
    assert len(splits["held"]) == round(HELD * 60)
    assert len(pool.images) == 60 - len(splits["held"])
    seen = {tuple(x.flatten().tolist()) for x in pool.pick(5, 0).levels}
    assert not seen & {tuple(x.flatten().tolist()) for x in splits["held"].levels}


# ---- arms


def test_every_search_has_four_settings():
    """Of the same size for every arm of NFA, and no arm has more than RandAugment; crop and flip has the tuning."""
    six = "randaugment", "randaugment-long"
    for name, entry in ENTRIES.items():
        settings = 1 if name.startswith("crop-flip") else 6 if name in six else 4
        assert len(entry.grid) == settings, name
        assert len({tuple(sorted(s.items())) for s in entry.grid}) == len(entry.grid)
    assert len(MOVES) == len(BOTH) == 4


@pytest.mark.parametrize("name", [n for n, e in ENTRIES.items() if not e.flow])
@pytest.mark.parametrize("which", [0, -1])
def test_an_arm_trains(name, which, data):
    entry = ENTRIES[name]
    arm = entry.make(data, entry.grid[which], None)
    model, cost = train(data, arm, SMALL, seed=0)
    assert cost["images_seen"] == 60
    assert all(p.isfinite().all() for p in model.parameters())


def test_arms_change_images_or_labels(data):
    """What an arm makes of a batch differs from crop and flip's."""
    for name, entry in ENTRIES.items():
        if entry.flow or name.startswith("crop-flip"):
            continue
        arm = entry.make(data, entry.grid[0], None)
        changed = arm.policy or arm.before or arm.levels or arm.mix or arm.erase
        assert changed, name


def test_either_or_gives_each_image_one_of_both():
    levels = torch.full((200, 3, 8, 8), 100, dtype=torch.uint8)
    y = torch.zeros(200, dtype=torch.long)
    arm = EitherOr(lambda x, y, g: x + 1, lambda image: image.point(lambda v: v + 2))
    g = torch.Generator().manual_seed(0)
    out = arm.images(arm.before(levels, y, g), y, g)
    kinds = out.flatten(1).unique(dim=1).flatten()
    assert set(kinds.tolist()) == {101, 102}
    assert 70 < int((kinds == 101).sum()) < 130
    assert (levels == 100).all(), "the images of the dataset were changed"


def test_white_noise_has_the_energy_of_the_pooled_modes(data):
    augment = changes.pooled(data, 0.7)
    noise = changes.WhiteNoise(data, 0.7)
    g = torch.Generator().manual_seed(0)
    energies = []
    for change in (augment.change, noise):
        z = draw_noise(2000, change.noise_size, g)
        y = torch.zeros(2000, dtype=torch.long)
        energies.append(float(change.change(None, y, z).square().mean()))
    assert energies[1] == pytest.approx(energies[0], rel=0.05)  # 2,000 draws


def test_colour_pca_moves_as_the_colours_vary(data):
    change = changes.ColourPCA(data, 0.5)
    noise = draw_noise(20000, 3, torch.Generator().manual_seed(0))
    moved = change.change(None, None, noise)
    assert moved.shape == (20000, 3, 32, 32)
    assert torch.equal(moved[:, :, 0, 0], moved[:, :, 17, 5])
    pixels = normalize(data.levels).transpose(0, 1).flatten(1) / 2
    wanted = 0.25 * torch.cov(pixels)
    assert torch.allclose(
        torch.cov(moved[:, :, 0, 0].T), wanted, rtol=0.05, atol=2e-3
    )  # 20,000 draws


def test_pushed_moves_raise_the_loss_and_keep_their_length(data):
    model, _ = train(data, Arm(), dataclasses.replace(SMALL, epochs=3), seed=0)
    inner = changes.pooled(data, 0.5).change
    change = changes.PushedChange(inner, 1.0, 3)
    change.model = model
    x, y = normalize(data.levels) / 2, data.labels
    noise = draw_noise(60, inner.noise_size, torch.Generator().manual_seed(0))
    kept = noise.clone()
    plain, pushed = (
        inner.change(lambda: x, torch.zeros_like(y), noise),
        change.change(lambda: x, y, noise),
    )
    losses = []
    for moved in (plain, pushed):
        with torch.no_grad(), change.evaluated():
            logits = model((x + moved).clamp(-1, 1) * 2)
        losses.append(torch.nn.functional.cross_entropy(logits, y).item())
    assert losses[1] > losses[0]
    assert torch.equal(noise, kept) and not pushed.requires_grad
    assert model.training and all(p.grad is None or p.requires_grad for p in model.parameters())


# ---- the command


KNOWN = {  # what a training adds to its record
    "metrics": {"top1": 1.0, "nll": 1.0, "ece": 1.0}, "images_seen": 1, "seconds": 0.1,
    "flow_seconds": 0.0, "device": "", "versions": {}, "commit": "", "command": "",
}  # fmt: skip


def main(image_folder, tmp_path, *more):
    argv = ["--cell", "toy", "--data-dir", str(image_folder), "--record", str(tmp_path / "r.jsonl")]
    assert run.main([*argv, *more]) == 0
    return records.read(tmp_path / "r.jsonl")


def test_a_cell_is_tuned_searched_and_reported(cell, runs, filled, image_folder):
    stages = [(r["arm"], r["split"], r["seed"]) for r in runs]
    assert stages.count(("crop-flip", "held", SEARCH_SEED)) == 2
    assert stages.count(("pooled", "held", SEARCH_SEED)) == 4
    assert [s for s in stages if s[1] == "test"].__len__() == 6
    best = max(runs[:2], key=lambda r: r["metrics"]["top1"])["settings"]["max_lr"]
    assert all(r["settings"]["max_lr"] == best for r in runs[2:])
    assert {r["settings"]["epochs"] for r in runs if r["arm"] == "crop-flip-long"} == {2}
    assert {r["training_images"] for r in runs} == {36}
    again = main(image_folder, filled.parent)
    assert again == runs, "runs on record were run again"
    text = tables.cell_table(cell, runs)
    assert "crop and flip, twice as long" in text and "NFA linear, pooled modes" in text
    assert tables.search_table(cell, runs).count("**") == 2
    assert tables.tuning_table(cell, runs).count("\n") == 3


def test_the_front_table_has_a_row_for_each_cell_on_record(runs):
    text = answers.answers(runs)
    assert "toy images, 12 images per class, from scratch" in text.splitlines()[-1]
    assert len(text.splitlines()) == 3  # no other cell is among these runs
    assert answers.answers([]) == "Not measured yet."


def test_the_table_of_power_is_that_of_the_statistics(cell, runs):
    values = tables.line(choices.reported(runs, cell))
    deviation, _ = residual_deviation(values)
    row = [c.strip() for c in tables.power_table(runs).splitlines()[-1].strip("|").split("|")]
    assert row[:2] == ["toy", f"{deviation:.2f}"]
    wanted = power(1.0, deviation, 2, 2), seeds_for_power(1.0, deviation, tests=2)
    assert row[4] == f"{wanted[0]:.0%} (2 seeds); 80% needs {wanted[1]}"


def test_a_gain_is_bold_where_it_survives_the_correction():
    sure, open_ = (Difference(1.25, 0.5, 0.001, 5, holm) for holm in (0.01, 0.2))
    shown = [answers.shown(d, cells.FEW, "pooled") for d in (sure, open_, None)]
    assert shown == ["**+1.2 ± 0.5**", "+1.2 ± 0.5", ""]
    few = dataclasses.replace(sure, seeds=2)
    assert answers.shown(few, cells.FEW, "pooled") == "+1.2 ± 0.5", "three seeds are to be run"


def test_a_gain_is_marked_where_the_flow_knows_more_labels_than_the_cell():
    gain = Difference(1.25, 0.5, 0.2, 5, 0.4)
    marked = {
        (cell.name, arm)
        for cell in cells.ALL
        for arm in cell.arms
        if answers.shown(gain, cell, arm).endswith(answers.KNOWS)
    }
    assert {("cifar10-50", "flow-joint"), ("finetune-cifar10-25", "randaugment|flow")} <= marked
    assert not {"tiny-50", "finetune-gtsrb-25", "cifar10-all"} & {name for name, _ in marked}
    assert not {"pooled", "latent-linear", "randaugment|pooled"} & {arm for _, arm in marked}


def test_arms_that_are_still_to_be_run_count_as_comparisons(cell):
    noise = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    values = {
        arm: {s: step + float(noise[i, s]) for s in range(5)}
        for i, (arm, step) in enumerate({"crop-flip": 0, "pooled": 2, "cosine": 3}.items())
    }
    found = tables.differences(values, "crop-flip", cells.TINY)
    p = sorted(compare(values, arm, "crop-flip").p for arm in found)
    arms = len(cells.TINY.arms) - 1
    assert sorted(d.holm for d in found.values()) == [
        arms * p[0],
        max(arms * p[0], (arms - 1) * p[1]),
    ]


def test_each_question_is_answered_by_its_two_arms(cell, runs):
    arms = {arm for pair in questions.QUESTIONS.values() for arm in pair}
    assert arms <= set(ENTRIES)
    values = tables.line(choices.reported(runs, cell))
    found = questions.of_cell(cell, runs)
    assert list(found) == ["Does NFA with modes of pixels help alone?"], (
        "the other arms are not of this cell"
    )
    (difference,) = found.values()
    assert difference == dataclasses.replace(
        compare(values, "pooled", "crop-flip"), holm=difference.p
    )
    line = f"  - toy images, 12 images per class, from scratch: {tables.gain(difference)}, "
    assert questions.questions(runs).startswith(
        f"- **Does NFA with modes of pixels help alone?**\n{line}"
    )
    assert questions.questions([]) == "Not measured yet."


def test_questions_are_corrected_for_being_several(monkeypatch):
    seeds = range(5)
    noise = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    values = {
        arm: {s: 60 + step + float(noise[i, s]) for s in seeds}
        for i, (arm, step) in enumerate({"crop-flip": 0, "pooled": 2, "cosine": 3}.items())
    }
    monkeypatch.setattr(questions, "line", lambda *_: values)
    found = questions.of_cell(cells.FEW, [])
    p = {k: compare(values, *questions.QUESTIONS[k]).p for k in found}
    assert len(p) == 2 and {k: d.holm for k, d in found.items()} == holm(
        p, len(questions.QUESTIONS)
    )
    most = max(d.holm / p[k] for k, d in found.items())
    assert most == pytest.approx(len(questions.QUESTIONS))


def test_what_an_arm_waits_for_is_said(cell, runs, image_folder, tmp_path, capsys):
    """A search cannot begin before the tuning, nor a cell that takes its settings from another before that one."""
    assert main(image_folder, tmp_path, "--arms", "pooled", "--stages", "search", "report") == []
    said = "pooled is not reported yet: 0 of 2 runs of the tuning of toy on record"
    assert said in capsys.readouterr().out
    assert not plan.waiting(cell, cell.arms, runs)
    assert list(plan.waiting(cells.RESNET18, ["crop-flip", "pooled"], runs)) == ["pooled"]


def test_time_is_measured_side_by_side(runs, filled, image_folder, monkeypatch, capsys):
    """Of arms with a chosen setting; the table takes it from the result file, and from nowhere else."""
    for module in (common, tables):
        monkeypatch.setattr(module, "RESULTS", filled.parent)
    how = ["--cell", "toy", "--data-dir", str(image_folder), "--record", str(filled)]
    entry = ENTRIES["pooled"]

    def slow(*given):
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
        return entry.make(*given)

    monkeypatch.setitem(ENTRIES, "pooled", dataclasses.replace(entry, make=slow))
    assert tables.times_on_record(TOY) == {}
    assert "| time |" not in tables.cell_table(TOY, runs)
    assert "| 1.00 |" not in tables.cell_table(TOY, runs)
    cost.main([*how, "--short", "5", "--repeats", "2"])
    seconds = validate_file(filled.parent / "evidence_cost_toy.json")["results"]["seconds"]
    assert list(seconds) == ["crop-flip", "crop-flip-long", "pooled"]
    assert all(len(s["made"]) == len(s["epoch"]) == 2 for s in seconds.values())
    assert seconds["pooled"]["made"][0] > seconds["crop-flip"]["made"][0], "the fit"
    found = tables.times_on_record(TOY)
    assert found == cost.ratios(seconds, SMALL.epochs) and found["crop-flip"] == 1
    assert f"| {found['pooled']:.2f} |" in tables.cell_table(TOY, runs)
    with pytest.raises(SystemExit):
        cost.main([*how, "--device", "cuda"])
    assert "--device cuda: CPU time" in capsys.readouterr().err
    (filled.parent / "evidence_cost_toy.json").unlink()


def test_a_full_training_has_the_making_once_and_every_epoch():
    seconds = {
        "crop-flip": {"made": [0.0, 0.0], "epoch": [1.0, 2.0]},
        "crop-flip-long": {"made": [0.0, 0.0], "epoch": [1.0, 2.0]},
        "pooled": {"made": [5.0, 10.0], "epoch": [1.5, 3.0]},
    }
    assert cost.ratios(seconds, 10) == {"crop-flip": 1, "crop-flip-long": 2, "pooled": 2}


@torch.no_grad()
def test_a_shuffled_flow_keeps_its_weights_its_linear_layers_and_its_inverse(small_flow):
    flow = copy.deepcopy(small_flow)
    changes.shuffle_networks(flow)
    for (name, old), new in zip(small_flow.named_parameters(), flow.parameters(), strict=True):
        assert torch.equal(old.flatten().sort().values, new.flatten().sort().values)
        assert torch.equal(old, new) == (".net." not in name or old.unique().numel() == 1), name
    x = torch.rand(2, *flow.config.input_size) - 0.5
    z, _ = flow(x)
    assert not torch.allclose(z, small_flow(x)[0], atol=1e-3)
    torch.testing.assert_close(flow.inverse(z), x, atol=1e-4, rtol=0)


def test_settings_beside_the_tuned_ones_make_another_recipe(cell, runs):
    """Runs of one file with another batch size choose nothing for this one, and stand in no table of it."""
    other = copy.deepcopy(runs)
    for r in other:
        r["settings"]["batch_size"] = 12
        r["metrics"]["top1"] = 99.0 if r["settings"]["max_lr"] == 0.05 else 1.0
    both = [*other, *runs]
    assert choices.tuned_recipe(both, cell) == choices.tuned_recipe(runs, cell)
    for table in (tables.tuning_table, tables.search_table, tables.cell_table):
        assert table(cell, both) == table(cell, runs)


def test_a_run_outside_of_the_grid_is_shown_and_not_chosen(cell, runs):
    (extra,) = [r for r in copy.deepcopy(runs) if r["settings"]["max_lr"] == 0.1 and
                (r["arm"], r["split"]) == ("crop-flip", "held")]  # fmt: skip
    extra["settings"]["max_lr"], extra["metrics"]["top1"] = 0.2, 99.0
    text = tables.tuning_table(cell, [extra, *runs])
    assert text.splitlines()[-1].startswith("| 0.2 | 99.0 (not in the grid) |")
    assert choices.tuned_recipe([extra, *runs], cell) == choices.tuned_recipe(runs, cell)


def test_an_arm_of_one_setting_is_searched_with_the_tuning(cell, runs):
    assert tables.is_searched(cell, "crop-flip-long", runs)
    assert not tables.is_searched(cell, "crop-flip-long", runs[:1])


def test_an_arm_that_trains_longer_is_searched_at_its_length(cell, runs):
    searched = [r | KNOWN for r in plan.search(cell, "randaugment-long", runs)]
    assert {r["settings"]["epochs"] for r in searched} == {2}
    reports = list(plan.report(cell, "randaugment-long", [*runs, *searched]))
    assert [r["seed"] for r in reports] == [0, 1]
    assert {r["settings"]["epochs"] for r in reports} == {2}


def test_no_training_starts_that_would_end_after_the_time_limit(cell, tmp_path, monkeypatch):
    """Ten seconds an epoch: after one second 12 more are enough for one training of one epoch."""
    clock, started = [0.0], []

    class Pool:  # each training takes its time at once
        def __init__(self, *_):
            pass

        __enter__ = lambda self: self
        __exit__ = lambda *_: None

        def submit(self, _, run):
            started.append((run["arm"], run["settings"]["epochs"]))
            clock[0] += 10.0 * run["settings"]["epochs"]
            done = Future()
            done.set_result(run | KNOWN)
            return done

    monkeypatch.setattr(run, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(run.time, "time", lambda: clock[0])
    how = {"arms": ("crop-flip", "crop-flip-long"), "time_limit": 95.0}
    run.fill(cell, Place(tmp_path), tmp_path / "r.jsonl", **how)
    # two to tune, two seeds of one epoch, two of two: 80 seconds; with 75 the last is left out
    assert len(started) == 6 and clock[0] == 80.0
    clock[0], tuned = 0.0, started.copy()
    started.clear()
    run.fill(cell, Place(tmp_path), tmp_path / "s.jsonl", **how | {"time_limit": 75.0})
    assert started == tuned[:-1]


def test_a_failing_run_loses_none_beside_it(cell, image_folder, tmp_path, monkeypatch):
    """Its error is raised once the others are on record."""
    jobs = {"max_lr": 0.05, "sleep": 0.0}, {"max_lr": 0.1, "sleep": 0.5}

    class Pool:  # threads in the place of processes
        def __init__(self, jobs, *_):
            self.threads = ThreadPoolExecutor(jobs)

        __enter__ = lambda self: self
        __exit__ = lambda self, *_: self.threads.shutdown()

        def submit(self, _, run):
            return self.threads.submit(execute, run)

    def execute(run):
        own = next(j for j in jobs if j["max_lr"] == run["settings"]["max_lr"])
        time.sleep(own["sleep"])
        if not own["sleep"]:
            raise MemoryError("none left")
        return run | KNOWN

    monkeypatch.setattr(run, "ProcessPoolExecutor", Pool)
    with pytest.raises(MemoryError, match="none left"):
        run.fill(cell, Place(image_folder), tmp_path / "r.jsonl", cell.arms, jobs=2)
    (found,) = records.read(tmp_path / "r.jsonl")
    assert found["settings"]["max_lr"] == 0.1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data-dir", "nowhere"], "no directory nowhere"),
        (["--data-dir", "TRAIN"], "no val/ beside train/"),
        (["--data-dir", "DATA", "--weights", "w"], "trains from scratch: drop --weights"),
    ],
)
def test_what_cannot_run_is_said_before_it_starts(flags, said, image_folder, capsys):
    names = {"DATA": str(image_folder), "TRAIN": str(image_folder / "train")}
    flags = [names.get(f, f) for f in flags]
    with pytest.raises(SystemExit) as end:
        run.main(["--cell", "cifar10-50", *flags])
    assert said in f"{end.value}{capsys.readouterr().err}"


def test_a_cut_search_is_not_reported(cell, runs):
    held = [r for r in runs if not (r["arm"] == "pooled" and r["settings"]["p"] == 1.0)]
    assert "pooled" not in choices.reported(held, cell)
    with pytest.raises(LookupError, match="2 of 4 runs of the search of pooled"):
        choices.chosen(held, cell, "pooled")
    assert "not run" in tables.search_table(cell, held)


def test_images_of_a_class_differ_by_seed_and_are_as_many_as_asked(data):
    pool = Pool(data)
    a, b = pool.pick(5, 0), pool.pick(5, 1)
    assert a.labels.bincount().tolist() == b.labels.bincount().tolist() == [5, 5, 5]
    assert not torch.equal(a.levels, b.levels)
    with pytest.raises(ValueError, match="class a has 20 images, not 21"):
        pool.pick(21, 0)


def test_held_out_tracks_are_in_no_training(data, tmp_path):
    """Frames of one track are near-copies: none of them may be on both sides."""
    from PIL import Image

    for k in range(2):
        for track in range(4):
            for frame in range(3):
                for split in ("train", "val"):
                    path = tmp_path / split / f"{k:02d}" / f"{track:05d}_{frame:05d}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.new("RGB", (8, 8), (10 * k, 40 * track, frame)).save(path)
    cell = dataclasses.replace(CELLS["finetune-gtsrb-25"], per_class=3, size=8)
    pool, splits = load(cell, tmp_path)
    held = {(x[0, 0, 0].item(), x[1, 0, 0].item()) for x in splits["held"].levels}
    picked = training_images(pool, cell, 0)
    assert picked.levels.shape == (6, 3, 96, 96) == (6, *splits["test"].levels.shape[1:])
    own = [(x[0, 0, 0].item(), x[1, 0, 0].item()) for x in picked.levels]
    assert len(held) == 2 and not held & set(own)
    assert len(set(own)) == 6, "two frames of one track while another has none"
