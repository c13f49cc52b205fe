"""Exact and near duplicates, against plain sets."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from tidecell.data import dedup
from tidecell.data.dedup import DedupParams
from tidecell.data.pipeline import ExactStep, NearStep

PARAMS = DedupParams()


def words(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 9))) for _ in range(count)]


def edited(base: list[str], num_edits: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    out = list(base)
    for at in rng.sample(range(len(base)), num_edits):
        out[at] = f"edit{seed}x{at}"
    return out


def plain_shingles(text: str, n: int = 5) -> set[tuple[str, ...]]:
    found = re.findall(r"[a-z0-9_]+", text.lower())
    return {tuple(found[i : i + n]) for i in range(max(1, len(found) - n + 1))}


def plain_jaccard(a: str, b: str) -> float:
    x, y = plain_shingles(a), plain_shingles(b)
    return len(x & y) / len(x | y)


def dropped(texts: list[str], params: DedupParams = PARAMS) -> dict[int, int]:
    found = dedup.near_duplicates(
        dedup.signatures(texts, params),
        lambda i: np.unique(dedup.shingles([texts[i]], params.ngram)[0]),
        params,
    )
    return {index: kept for index, (kept, _) in found.items()}


def test_shingle_sets_have_the_jaccard_similarity_of_plain_word_sets() -> None:
    base = words(1, 300)
    for edits in (0, 3, 20, 100):
        a, b = " ".join(base), "\n".join(edited(base, edits, edits))
        left, right = (np.unique(dedup.shingles([t], 5)[0]) for t in (a, b))
        assert dedup.jaccard(left, right) == pytest.approx(plain_jaccard(a, b), abs=1e-12)


def test_shingles_of_a_text_do_not_depend_on_its_neighbours() -> None:
    texts = ["one two three four five six", "", "short", "Ünï çödé wörds ärè fïnè too", "a b c d e f g"]
    together, begin = dedup.shingles(texts, 5)
    for i, text in enumerate(texts):
        alone, _ = dedup.shingles([text], 5)
        assert np.array_equal(together[begin[i] : begin[i + 1]], alone)


def test_order_of_words_matters_and_case_and_punctuation_do_not() -> None:
    hashes = [
        dedup.shingles([t], 5)[0][0] for t in ("a b c d e", "A, b! (c) d; E.", "b a c d e", "ab c d e f")
    ]
    assert hashes[0] == hashes[1]
    assert len({int(h) for h in hashes}) == 3


def test_signatures_estimate_jaccard_similarity_without_bias() -> None:
    errors = []
    for seed in range(40):
        base = words(seed, 600)
        a, b = " ".join(base), " ".join(edited(base, 20, seed))
        one, two = dedup.signatures([a, b], PARAMS)
        errors.append(float((one == two).mean()) - plain_jaccard(a, b))
    # With 112 hashes one estimate at 0.73 has a standard error of 0.042, the mean of 40 one of 0.007.
    assert abs(float(np.mean(errors))) < 0.02
    assert float(np.std(errors)) < 0.06
    assert (one.dtype, one.shape) == (np.dtype(np.uint32), (112,))


def test_near_duplicates_are_dropped_for_the_first_of_them() -> None:
    base = words(3, 400)
    texts = [
        " ".join(words(9, 400)),
        " ".join(base),
        " ".join(edited(base, 4, 1)),
        " ".join(edited(base, 5, 2)),
    ]
    assert plain_jaccard(texts[1], texts[2]) > 0.85
    assert dropped(texts) == {2: 1, 3: 1}


def test_nothing_below_the_threshold_is_dropped_however_often_bands_agree() -> None:
    base = words(4, 400)
    texts = [" ".join(base), *(" ".join(edited(base, 14, seed)) for seed in range(30))]
    similarity = [plain_jaccard(texts[0], t) for t in texts[1:]]
    assert 0.65 < min(similarity) <= max(similarity) < 0.8
    assert len(dedup.candidate_pairs(dedup.signatures(texts, PARAMS), PARAMS)) > 0
    assert dropped(texts) == {}


def test_a_page_copied_a_thousand_times_is_one_group_with_few_comparisons() -> None:
    text = " ".join(words(5, 30))
    signature = dedup.signatures([text] * 1000, PARAMS)
    assert len(dedup.candidate_pairs(signature, PARAMS)) < 35 * 1000
    assert dropped([text] * 1000) == dict.fromkeys(range(1, 1000), 0)


def test_dedup_of_nothing_and_of_one() -> None:
    assert dropped([]) == {}
    assert dropped(["alone"]) == {}


def test_exact_step_keeps_the_first_but_for_case_and_spacing() -> None:
    step = ExactStep()
    texts = ["B", "Tide  comes\n in", "b", "tide comes in", "tide came in"]
    found = step.decide(step.observe(texts), texts.__getitem__, lambda i: f"doc{i}")
    assert {i: r.detail for i, r in found.items()} == {2: "same as doc0", 3: "same as doc1"}


def test_near_step_says_how_much_is_shared_and_with_what() -> None:
    base = words(6, 300)
    texts = [" ".join(base), " ".join(edited(base, 2, 1))]
    step = NearStep(PARAMS)
    found = step.decide(step.observe(texts), texts.__getitem__, lambda i: f"doc{i}")
    share = plain_jaccard(*texts)
    assert found[1].detail == f"{share:.2f} of 5-grams shared, group of doc0"
