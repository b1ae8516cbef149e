"""ClassGaussians against torch.distributions, ClassMoments against scikit-learn's PCA, in float64 where it can be."""

import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

import timm_nfaug as nfa
import timm_nfaug.flows.moments
from timm_nfaug._utils.checks import check_choice, check_labels
from timm_nfaug.flows.moments import ClassMoments
from timm_nfaug.flows.prior import ClassGaussians

K, D, R = 3, 7, 2


def make_gaussians(low_rank: bool = False, **kwargs) -> ClassGaussians:
    """Random Gaussians in float64; with `low_rank`, modes of unequal length that are orthonormal."""
    g = torch.Generator().manual_seed(0)
    prior = ClassGaussians(
        K, D, num_modes=R if low_rank else 0, low_rank=low_rank, **kwargs
    ).double()
    with torch.no_grad():
        prior.mu.copy_(torch.randn(K, D, generator=g))
        prior.s.copy_(2 * torch.randn(K, D, generator=g))
    if low_rank:
        modes = torch.linalg.qr(torch.randn(K, D, R, generator=g).double())[0].transpose(1, 2)
        prior.set_modes(modes, torch.tensor([[3.0, 1.0], [2.0, 0.5], [1.0, 0.0]]).double())
    return prior.requires_grad_(False)


def as_distributions(prior: ClassGaussians) -> list[MultivariateNormal]:
    """The slow twin: D x D covariances spelled out."""
    covariance = torch.diag_embed(prior.variance)
    if prior.low_rank:
        factor = prior.modes * prior.mode_std.unsqueeze(2)
        covariance = covariance + factor.transpose(1, 2) @ factor
    return [MultivariateNormal(m, c) for m, c in zip(prior.mu, covariance)]


@pytest.fixture(params=[False, True], ids=["diagonal", "low_rank"])
def prior(request):
    return make_gaussians(request.param)


def test_densities(prior):
    z = 2 * torch.randn(11, D, generator=torch.Generator().manual_seed(1)).double()
    y = torch.arange(11) % K
    expected = torch.stack([d.log_prob(z) for d in as_distributions(prior)], dim=1)  # (B, K)
    # float64 against a Cholesky factorisation of 7 x 7: rounding only
    torch.testing.assert_close(prior.log_prob_all(z), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(
        prior.log_prob(z, y), expected[torch.arange(11), y], rtol=0, atol=1e-9
    )


def test_both_densities_agree_in_float32_at_full_length():
    """log_prob_all expands the square; at D = 3072 and float32 it must still rank classes as log_prob does."""
    g = torch.Generator().manual_seed(0)
    prior = ClassGaussians(K, 3072).requires_grad_(False)
    prior.mu.normal_(generator=g)
    prior.s.normal_(generator=g)
    z = prior.sample(torch.arange(K).repeat(4), generator=g)
    one_by_one = torch.stack([prior.log_prob(z, torch.full((len(z),), k)) for k in range(K)], dim=1)
    # sums of 3,072 float32 terms of a total near 5,000 nats: 1e-6 relative
    torch.testing.assert_close(prior.log_prob_all(z), one_by_one, rtol=0, atol=2e-2)


def test_pairwise_kl():
    prior = make_gaussians()
    normals = [Independent(Normal(m, v.sqrt()), 1) for m, v in zip(prior.mu, prior.variance)]
    expected = torch.stack([torch.stack([kl_divergence(p, q) for q in normals]) for p in normals])
    torch.testing.assert_close(
        prior.pairwise_kl(), expected, rtol=1e-12, atol=1e-9
    )  # rounding of float64


def test_gradients_reach_means_and_variances(prior):
    prior.requires_grad_(True)
    z = torch.randn(4, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = torch.tensor([0, 1, 2, 0])
    found = torch.autograd.grad(prior.log_prob(z, y).sum(), [prior.mu, prior.s])
    twins = as_distributions(prior)
    expected = torch.autograd.grad(
        sum(twins[k].log_prob(v) for v, k in zip(z, y)), [prior.mu, prior.s]
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)  # rounding of float64


@pytest.mark.parametrize("a, c", [(1.0, 0.25), (2.0, 0.1)])
def test_variance_stays_in_its_range(a, c):
    prior = ClassGaussians(K, D, a=a, c=c).double().requires_grad_(False)
    assert torch.equal(prior.mu, torch.zeros_like(prior.mu))
    torch.testing.assert_close(
        prior.variance, torch.full((K, D), a / 2 + c).double()
    )  # 0.75 with the defaults
    prior.s.copy_(torch.linspace(-50, 50, K * D).view(K, D))
    assert prior.variance.min() >= c and prior.variance.max() <= a + c
    wanted = torch.linspace(c + 0.01, a + c - 0.01, K * D).view(K, D).double()
    prior.set_variance(wanted)
    torch.testing.assert_close(prior.variance, wanted, rtol=1e-12, atol=0)
    prior.set_variance(torch.full((K, D), 100.0).double())
    torch.testing.assert_close(
        prior.variance, torch.full((K, D), a + c).double(), rtol=2e-4, atol=0
    )  # 1e-4 inside


def test_free_variance():
    prior = ClassGaussians(K, D, a=None).double().requires_grad_(False)
    wanted = torch.logspace(-6, 4, K * D).view(K, D).double()
    prior.set_variance(wanted)
    torch.testing.assert_close(prior.variance, wanted, rtol=1e-12, atol=0)


def test_randomize():
    prior = ClassGaussians(10, 500).requires_grad_(False)
    prior.randomize(torch.Generator().manual_seed(0))
    assert -1 <= prior.mu.min() < -0.99 and 0.99 < prior.mu.max() <= 1
    assert 0.25 < prior.variance.min() and prior.variance.max() < 1.25
    # of U(0.125, 1.25), the ninth below c = 0.25 sits at its lower end: mean (1/9) 0.25 + (8/9) 0.75, +-4 standard errors
    assert prior.variance.mean().item() == pytest.approx(0.6944, abs=4 * 0.32 / 5000**0.5)
    again = ClassGaussians(10, 500).requires_grad_(False)
    again.randomize(torch.Generator().manual_seed(0))
    assert torch.equal(again.mu, prior.mu) and torch.equal(again.s, prior.s)


def test_samples_have_the_distribution(prior):
    n = 20000
    for k, twin in enumerate(as_distributions(prior)):
        z = prior.sample(torch.full((n,), k), generator=torch.Generator().manual_seed(k))
        cov = torch.cov(z.T)
        scale = cov.diagonal().sqrt()
        # 5 standard errors of a mean, 1/sqrt(n), and of a correlation or a relative variance, at most sqrt(2/n)
        assert ((z.mean(0) - twin.loc).abs() / scale).max() < 5 / math.sqrt(n)
        assert (
            (cov - twin.covariance_matrix).abs() / (scale[:, None] * scale)
        ).max() < 5 * math.sqrt(2 / n)


def test_temperature_and_mean_scale(prior):
    y = torch.tensor([2, 0])
    still = prior.sample(y, temperature=0, mean_scale=1.3)
    torch.testing.assert_close(still, 1.3 * prior.mu[y], rtol=1e-15, atol=0)
    draw = lambda t: (
        prior.sample(y, temperature=t, generator=torch.Generator().manual_seed(3)) - prior.mu[y]
    )
    torch.testing.assert_close(draw(0.5), 0.5 * draw(1.0), rtol=1e-12, atol=1e-12)  # rounding
    with pytest.raises(ValueError, match="temperature must be at least 0, got -1"):
        prior.sample(y, temperature=-1)


def test_labels_are_checked():
    y = check_labels(torch.tensor([0, 2], dtype=torch.uint8), K, torch.device("cpu"))
    assert y.dtype == torch.int64
    for wrong in (
        torch.zeros(2),
        torch.tensor([True]),
        torch.zeros(2, 3, dtype=torch.int64),
        [0, 1],
    ):
        with pytest.raises(TypeError, match="integer tensor of shape"):
            check_labels(wrong, K, torch.device("cpu"))
    for wrong in ([-1, 0], [0, 3]):
        with pytest.raises(ValueError, match=r"labels must be in 0\.\.2"):
            check_labels(torch.tensor(wrong), K, torch.device("cpu"))


def test_choices_are_checked():
    assert check_choice("kind", "pca", ("pca", "axes")) == "pca"
    expected = r"^kind must be one of pca, axes \(did you mean 'axes'\?\), got 'axis'$"
    with pytest.raises(ValueError, match=expected):
        check_choice("kind", "axis", ("pca", "axes"))
    with pytest.raises(ValueError, match=r"^kind must be one of pca, axes, got 3$"):
        check_choice("kind", 3, ("pca", "axes"))


def test_wrong_arguments_are_refused():
    for kwargs, match in (
        ({"num_classes": 0, "dim": 3}, "must be positive"),
        ({"num_classes": 3, "dim": 3, "a": -1.0}, "a > 0"),
        ({"num_classes": 3, "dim": 3, "low_rank": True}, "num_modes >= 1"),
    ):
        with pytest.raises(ValueError, match=match):
            ClassGaussians(**kwargs)


# -- moments -----------------------------------------------------------------------------------------------------------


def codes(n: int, dim: int, seed: int, decay: float = 1.0) -> np.ndarray:
    """n rows whose standard deviations fall as 1 / i^decay along random axes, far from the origin."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    spectrum = 1 / np.arange(1, dim + 1) ** decay
    return rng.normal(size=(n, dim)) * spectrum @ axes + 3 * rng.normal(size=dim)


def moments_of(
    data: list[np.ndarray],
    modes: int,
    seed: int = 0,
    largest_batch: int = 60,
    shrinkage: float = 0.0,
) -> tuple:
    """Moments of the classes' rows, shuffled together and streamed in batches of random size."""
    rng = np.random.default_rng(seed)
    rows, labels = np.concatenate(data), np.repeat(np.arange(len(data)), [len(d) for d in data])
    order = rng.permutation(len(rows))
    found = ClassMoments(len(data), rows.shape[1], modes, shrinkage=shrinkage)
    while len(order):
        n = rng.integers(1, largest_batch + 1)
        part, order = order[:n], order[n:]
        found.update(torch.from_numpy(rows[part]), torch.from_numpy(labels[part]))
    return [t.numpy() for t in found.finish()]


def largest_angle(a: np.ndarray, b: np.ndarray) -> float:
    """Largest principal angle, in radians, between the spaces spanned by the rows of a and of b."""
    return float(np.arccos(np.clip(np.linalg.svd(a @ b.T)[1].min(), -1, 1)))


@pytest.mark.parametrize("n", [30, 200])  # fewer and more images than the sketch has rows
def test_moments_are_exact_where_the_sketch_holds_all(n):
    data = [codes(n, 20, seed=k) for k in range(2)]
    mean, variance, modes, std = moments_of(data, modes=5)  # 26 sketch rows for 20 dimensions
    for k, rows in enumerate(data):
        pca = PCA(5, svd_solver="full").fit(rows)
        np.testing.assert_allclose(mean[k], rows.mean(0), atol=1e-6)  # float32 results
        np.testing.assert_allclose(variance[k], rows.var(0, ddof=1), rtol=1e-5)
        np.testing.assert_allclose(std[k], np.sqrt(pca.explained_variance_), rtol=1e-5)
        np.testing.assert_allclose(
            np.abs(modes[k] @ pca.components_.T), np.eye(5), atol=1e-3
        )  # float32 rows in the sketch
        np.testing.assert_allclose(modes[k] @ modes[k].T, np.eye(5), atol=1e-5)
        assert (modes[k][np.arange(5), np.abs(modes[k]).argmax(1)] > 0).all()  # the sign is fixed


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_moments_are_close_on_long_spectra(decay):
    """300 dimensions through a sketch of 32 rows: truncated at every fold, and still the right modes."""
    rows = codes(3000, 300, seed=0, decay=decay)
    mean, variance, modes, std = moments_of([rows], modes=8)
    pca = PCA(8, svd_solver="full").fit(rows)
    np.testing.assert_allclose(
        mean[0], rows.mean(0), atol=1e-5
    )  # means and variances are not sketched
    np.testing.assert_allclose(variance[0], rows.var(0, ddof=1), rtol=1e-4)
    # what the truncations drop is at most the energy beyond row 32 of the sketch
    np.testing.assert_allclose(std[0], np.sqrt(pca.explained_variance_), rtol=0.03)
    assert largest_angle(modes[0][:3], pca.components_[:3]) < math.radians(10)
    # energy of the data inside the 8 modes, against the best any 8 directions can hold
    held = ((rows - rows.mean(0)) @ modes[0].T).var(0, ddof=1).sum()
    assert held > 0.97 * pca.explained_variance_.sum()


def test_the_order_of_the_batches_does_not_matter():
    data = [codes(600, 120, seed=k) for k in range(2)]
    first, second = (
        moments_of(data, modes=4, seed=1),
        moments_of(data, modes=4, seed=2, largest_batch=500),
    )
    np.testing.assert_allclose(first[0], second[0], atol=1e-5)
    np.testing.assert_allclose(first[1], second[1], rtol=1e-4)
    np.testing.assert_allclose(
        first[3], second[3], rtol=0.01
    )  # both are sketches; the test above allows 3%
    for k in range(2):
        assert largest_angle(first[2][k], second[2][k]) < math.radians(5)


def test_without_modes_moments_are_exact():
    data = [codes(n, 50, seed=n) for n in (1, 2, 70)]
    mean, variance, modes, std = moments_of(data, modes=0)
    assert modes.shape == (3, 0, 50) and std.shape == (3, 0)
    for k, rows in enumerate(data):
        np.testing.assert_allclose(mean[k], rows.mean(0), atol=1e-6)
        if len(rows) > 1:
            np.testing.assert_allclose(variance[k], rows.var(0, ddof=1), rtol=1e-5)
    assert (variance[0] == 0).all()


def test_classes_of_few_images():
    data = [codes(n, 40, seed=n) for n in (1, 2, 4, 100)]
    _, _, modes, std = moments_of(data, modes=6)
    for k, n in enumerate((0, 1, 3, 6)):  # n images span n - 1 directions
        assert (std[k][:n] > 0).all() and (std[k][n:] == 0).all() and (modes[k][n:] == 0).all()
        np.testing.assert_allclose(modes[k][:n] @ modes[k][:n].T, np.eye(n), atol=1e-5)
    assert all(np.isfinite(t).all() for t in (modes, std))


@pytest.mark.parametrize("counts", [(30, 25, 4), (3, 2, 1), (2000, 5, 900)])
def test_shrinkage_mixes_a_class_with_the_spread_within_all(counts):
    data = [codes(n, 20, seed=k) for k, n in enumerate(counts)]
    _, variance, modes, std = moments_of(
        data, modes=5, shrinkage=10.0
    )  # 26 sketch rows for 20 dimensions
    scatters = [(rows - rows.mean(0)).T @ (rows - rows.mean(0)) for rows in data]
    within = sum(scatters) / (sum(counts) - len(counts))
    for k, n in enumerate(counts):
        covariance = (scatters[k] + 10 * within) / (n - 1 + 10)
        values, vectors = np.linalg.eigh(covariance)
        np.testing.assert_allclose(variance[k], np.diag(covariance), rtol=1e-4)
        kept = min(
            5, sum(counts) - len(counts)
        )  # no more directions than all classes span about their means
        np.testing.assert_allclose(std[k][:kept], np.sqrt(values[::-1][:kept]), rtol=1e-4)
        np.testing.assert_allclose(
            np.abs(modes[k][:kept] @ vectors[:, ::-1][:, :kept]), np.eye(kept), atol=2e-3
        )
        assert (std[k][kept:] == 0).all()


def test_shrinkage_through_a_sketch_of_many_classes():
    """More classes than are kept at a time, in more dimensions than a sketch has rows; and little of it changes little."""
    data = [codes(12, 60, seed=k) for k in range(40)]
    scatters = [(rows - rows.mean(0)).T @ (rows - rows.mean(0)) for rows in data]
    within = sum(scatters) / (12 * 40 - 40)
    _, _, modes, std = moments_of(data, modes=3, shrinkage=1000.0)
    for k in (0, 17, 39):
        values = np.linalg.eigvalsh((scatters[k] + 1000 * within) / 1011)
        np.testing.assert_allclose(std[k], np.sqrt(values[::-1][:3]), rtol=0.03)
    _, _, own, own_std = moments_of(data, modes=3)
    _, _, near, near_std = moments_of(data, modes=3, shrinkage=1e-4)
    np.testing.assert_allclose(near_std, own_std, rtol=1e-4)
    assert largest_angle(near[5], own[5]) < math.radians(1) < largest_angle(modes[5], own[5])


def test_shrinkage_has_a_range():
    for wrong in (-1.0, math.inf, math.nan):
        with pytest.raises(
            ValueError, match="shrinkage must be a finite number of images of at least 0"
        ):
            ClassMoments(2, 5, 2, shrinkage=wrong)


def test_an_empty_class_is_named():
    moments = ClassMoments(4, 5, 2)
    moments.update(torch.randn(3, 5), torch.tensor([0, 0, 3]))
    with pytest.raises(ValueError, match=r"class 1 .*of 2 such"):
        moments.finish()


def test_an_empty_class_may_be_allowed():
    rows = codes(60, 20, seed=0)
    moments = ClassMoments(4, 20, 3, allow_empty=True)
    moments.update(torch.from_numpy(rows), torch.arange(60) % 2 * 2)
    mean, variance, modes, std = moments.finish()
    assert (
        moments.empty == [1, 3]
        and (std[[1, 3]] == 0).all()
        and (modes[[1, 3]] == 0).all()
        and (std[[0, 2]] > 0).all()
    )
    for k in (1, 3):  # the law of total variance
        np.testing.assert_allclose(mean[k], rows.mean(0), atol=1e-5)
        within = (rows[::2].var(0, ddof=1) + rows[1::2].var(0, ddof=1)) / 2
        between = ((rows[::2].mean(0) - rows[1::2].mean(0)) / 2) ** 2
        np.testing.assert_allclose(variance[k], within + between, rtol=1e-4)
    with pytest.raises(ValueError, match="no image of class 0"):
        ClassMoments(2, 5, 2, allow_empty=True).finish()


def test_rows_that_wait_are_bounded_and_cost_no_accuracy(monkeypatch):
    """Many classes, sorted: each leaves rows behind that wait for their fold, up to a bound on all together."""
    data = [codes(150, 20, seed=k) for k in range(6)]
    monkeypatch.setattr(timm_nfaug.flows.moments, "WAITING", 100 * 20)
    found, waiting = ClassMoments(6, 20, 5), []
    for k, rows in enumerate(data):
        for part in torch.from_numpy(rows).split(40):
            found.update(part, torch.full((len(part),), k))
            waiting.append(found._waiting)
    assert 40 < max(waiting) <= 100
    std = found.finish()[3].numpy()
    for k, rows in enumerate(data):  # 26 sketch rows hold all of 20 dimensions
        np.testing.assert_allclose(
            std[k], np.sqrt(PCA(5, svd_solver="full").fit(rows).explained_variance_), rtol=1e-5
        )


def test_labels_that_are_not_one_a_code_are_refused():
    with pytest.raises(ValueError, match="one for each image, got 2 labels for 3 images"):
        ClassMoments(2, 5, 2).update(torch.randn(3, 5), torch.tensor([0, 1]))


def test_moments_without_modes_fit_no_prior_that_stores_some():
    moments = ClassMoments(2, 5, 0)
    moments.update(torch.randn(8, 5), torch.arange(8) % 2)
    with pytest.raises(
        ValueError,
        match="these moments have no modes, 3 a class are wanted; gather them with num_modes=3",
    ):
        ClassGaussians(2, 5, num_modes=3).set_moments(moments)
    prior = ClassGaussians(2, 5)
    prior.set_moments(moments)
    assert torch.equal(prior.mu, moments.finish()[0])


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_outside_the_classes_is_refused(label):
    with pytest.raises((ValueError, IndexError)):
        ClassMoments(2, 5, 2).update(torch.randn(3, 5), torch.tensor([0, 1, label]))


@pytest.mark.parametrize("rank", [3, 9])
def test_closed_form_fit_keeps_every_coordinates_variance(rank):
    """diag(U l U' + rest) is the sample variance, except where the modes leave less than the floor of 2%."""
    dim = 9
    data = [codes(400, dim, seed=k) for k in range(2)]
    prior = (
        ClassGaussians(2, dim, a=None, num_modes=rank, low_rank=True).double().requires_grad_(False)
    )
    found = ClassMoments(2, dim, rank)
    for k, rows in enumerate(data):
        found.update(torch.from_numpy(rows), torch.full((400,), k))
    prior.set_moments(found)
    for k, rows in enumerate(data):
        pca = PCA(rank, svd_solver="full").fit(rows)
        low = pca.components_.T * pca.explained_variance_ @ pca.components_
        variance = rows.var(0, ddof=1)
        covariance = low + np.diag(np.maximum(variance - low.diagonal(), 0.02 * variance.mean()))
        twin = MultivariateNormal(torch.from_numpy(rows.mean(0)), torch.from_numpy(covariance))
        z = torch.from_numpy(rows[:20])
        # moments are handed over in float32: 1e-6 relative on the variances, at worst 9 terms of it and of d^2 / var
        torch.testing.assert_close(
            prior.log_prob(z, torch.full((20,), k)), twin.log_prob(z), rtol=0, atol=1e-3
        )


@pytest.mark.parametrize("low_rank", [False, True])
def test_pooled_gaussian_has_the_moments_of_the_mixture(low_rank):
    prior = ClassGaussians(5, 12, a=None, num_modes=2, low_rank=low_rank).double()
    g = torch.Generator().manual_seed(0)
    modes = torch.linalg.qr(torch.randn(5, 12, 2, generator=g, dtype=torch.float64))[0].mT
    prior.set_modes(modes, torch.rand(5, 2, generator=g, dtype=torch.float64) + 1)
    prior.mu.data = 0.1 * torch.randn(5, 12, generator=g, dtype=torch.float64)
    prior.set_variance(torch.rand(5, 12, generator=g, dtype=torch.float64))
    weight = torch.tensor([0.1, 0.0, 0.4, 0.3, 0.2], dtype=torch.float64)

    factor = modes * prior.mode_std.unsqueeze(2)  # the slow twin: dense covariances
    mean = (weight.unsqueeze(1) * prior.mu).sum(0)
    between = torch.einsum("k,kd,ke->de", weight, prior.mu - mean, prior.mu - mean)
    along = torch.einsum("k,kra,krb->ab", weight, factor, factor) + between
    values, vectors = torch.linalg.eigh(along)
    diagonal = (weight.unsqueeze(1) * prior.variance).sum(0)
    total = diagonal + (along if low_rank else between).diagonal()

    pooled = prior.pooled(weight)
    assert pooled.num_classes == 1
    torch.testing.assert_close(pooled.mu[0], mean)
    torch.testing.assert_close(pooled.mode_std[0].square(), values.flip(0)[:2], rtol=1e-5, atol=0)
    cosine = (pooled.modes[0] * vectors.T.flip(0)[:2]).sum(1).abs()
    torch.testing.assert_close(cosine, torch.ones(2, dtype=torch.float64), rtol=1e-5, atol=0)
    kept = (pooled.modes[0] * pooled.mode_std[0].unsqueeze(1)).square().sum(0)
    whole = pooled.variance[0] + (kept if low_rank else 0)
    torch.testing.assert_close(whole, total, rtol=1e-5, atol=0)


def test_many_classes_are_pooled_some_at_a_time():
    prior = ClassGaussians(700, 20, num_modes=3)
    g = torch.Generator().manual_seed(0)
    modes = torch.linalg.qr(torch.randn(700, 20, 3, generator=g))[0].mT
    prior.set_modes(modes, torch.rand(700, 3, generator=g))
    prior.mu.data.normal_(generator=g)
    rows = torch.cat(
        [modes * prior.mode_std.unsqueeze(2), (prior.mu - prior.mu.mean(0)).unsqueeze(1)], 1
    )
    expected = torch.linalg.svdvals(rows.flatten(0, 1).double() / 700**0.5)[:3]
    pooled = prior.pooled(torch.full((700,), 1 / 700))
    torch.testing.assert_close(pooled.mode_std[0].double(), expected, rtol=1e-5, atol=0)


def test_a_pooled_flow_leaves_the_flow_of_classes_as_it_is():
    flow = nfa.ConditionalFlow.from_pretrained("conv_p4_tiny.digits")
    flow.config.augment, before = {"strength": 1.0}, dict(flow.config.info)
    pooled = flow.pooled()
    assert flow.config.info == before and flow.config.augment and flow.num_classes == 10
    assert "metrics" not in pooled.config.info and not pooled.config.augment
    assert pooled.num_classes == 1 and not pooled.config.class_names
