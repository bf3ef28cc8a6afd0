"""Claims against the truth of a toyshop, by brute force, and against a catalog's attributes."""

from collections import Counter

import numpy as np
import pytest

from mmsrec_jax.data import toyshop
from mmsrec_jax.data.records import Catalog, Item
from mmsrec_jax.data.toyshop import ToyshopSettings
from mmsrec_jax.data.toyshop_items import MATERIALS, OCCASIONS, PRODUCTS, VALUES
from mmsrec_jax.evaluation.claims import Checker, Claim, shares, table

SAID = {name: {value: (value,) for value in values} for name, values in VALUES.items()}
SAID |= {"material": MATERIALS, "occasion": OCCASIONS, "product": PRODUCTS}


@pytest.fixture(scope="module")
def shop():
    settings = ToyshopSettings(num_users=20, num_items=60, num_groups=3, history=(3, 6))
    items, _, world = toyshop.generate(settings)
    return Catalog.from_items(items), world


@pytest.fixture(scope="module")
def checker(shop):
    return Checker(*shop)


def outcomes(claims):
    return Counter(claim.outcome for claim in claims)


def test_every_wording_of_every_value_against_the_truth(shop, checker):
    """Paraphrases count as what they mean; what only the picture shows is known too."""
    _, world = shop
    for item in range(60):
        for name, values in SAID.items():
            true = VALUES[name][world.attributes[name][item]]
            for value, wordings in values.items():
                for wording in (value, *wordings):
                    (claim,) = checker.check(wording.upper(), [item])
                    assert (claim.attribute, claim.value) == (name, value)
                    assert claim.outcome == ("supported" if value == true else "contradicted")


def test_a_summary_against_the_claims_it_was_made_of(shop, checker):
    _, world = shop
    rng = np.random.default_rng(0)
    for _ in range(300):
        item, claimed, said = int(rng.integers(60)), Counter(), []
        for name in rng.permutation(list(SAID))[: rng.integers(1, 6)]:
            value = VALUES[name][rng.integers(len(VALUES[name]))]
            wordings = SAID[name][value]
            said.append(wordings[rng.integers(len(wordings))])
            true = value == VALUES[name][world.attributes[name][item]]
            claimed["supported" if true else "contradicted"] += 1
        if rng.random() < 0.5:
            said.insert(int(rng.integers(len(said) + 1)), "unheard of")
            claimed["unsupported"] += 1
        text = (", ", " and it is for the ", "\n- ", ". ")[rng.integers(4)].join(said)
        assert outcomes(checker.check(text, [item])) == claimed, text


def test_words_that_name_no_value_are_claims_of_their_own(shop, checker):
    catalog, _ = shop
    item = next(i for i, one in enumerate(catalog) if "special price" in one.text["description"])
    product = catalog[item].attributes["product"]
    found = checker.check(f"a {product} with wings at a special price", [item])
    assert found == [
        Claim(product, "product", product, "supported"),
        Claim("wings special price", "", "", "unsupported"),
    ]
    (price,) = checker.check("Special price!", [item])
    assert price.outcome == "supported"
    assert checker.check("", [item]) == checker.check("of the", [item]) == []


def test_fixed_sentences_claim_nothing(shop):
    catalog, world = shop
    chain, color = "Lately likes: {words}. Less than before: {words}.", VALUES["color"][0]
    text = chain.format(words=f"{color} dragons")
    assert len(Checker(catalog, world).check(text, [0])) == 6
    found = Checker(catalog, world, [chain.format(words="")]).check(text, [0])
    assert [claim.words for claim in found] == [color, "dragons"] * 2
    said = catalog[0].attributes["material"]  # a value stays one, whatever stands around it
    assert len(Checker(catalog, world, [f"like {said}"]).check(f"like {said}", [0])) == 1


def test_of_several_items_one_bears_a_claim_out(shop, checker):
    catalog, _ = shop
    colors = [item.attributes["color"] for item in catalog]
    other = next(i for i, color in enumerate(colors) if color != colors[0])
    missing = next(color for color in VALUES["color"] if color not in (colors[0], colors[other]))
    text = f"{colors[0]}, {colors[other]}, {missing}"
    assert [c.outcome for c in checker.check(text, [0, other])] == [
        "supported", "supported", "contradicted"
    ]  # fmt: skip
    assert [c.outcome for c in checker.check(text, [0])][1] == "contradicted"


MOVIES = Catalog.from_items(
    [
        Item("1", {"title": "Toy Story", "abstract": "Toys in Andy's room."}, None, None,
             {"genres": "Adventure Animation Comedy"}),
        Item("2", {"title": "Heat"}, None, "Film", {"genres": "Crime, Thriller", "year": "1995"}),
        Item("3", {"title": "Unknown"}),
    ]
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "item", "expected"),
    [
        ("animation, comedy", 0, ["supported"] * 2),
        ("thriller", 0, ["contradicted"]),  # another genre than its own
        ("1995", 0, ["unsupported"]),  # its year is not known
        ("Andy's toys", 0, ["supported"]),  # by its text
        ("room of Woody", 0, ["unsupported"]),
        ("crime film of 1995", 1, ["supported"] * 3),
        ("crime", 2, ["unsupported"]),
    ],
)
def test_real_items_are_known_by_attributes_and_texts(text, item, expected):
    assert [claim.outcome for claim in Checker(MOVIES).check(text, [item])] == expected


def test_shares_are_counts_over_claims_and_over_what_is_stated():
    checker = Checker(MOVIES)
    texts = ["adventure, comedy, crime", "thriller, dogs", ""]
    found = shares(
        [checker.check(text, [i]) for i, text in enumerate(texts)],
        [checker.stated(i) for i in range(3)],
    )
    assert found["texts"] == 3 and found["claims"] == 5
    assert found["supported"] == 3 / 5
    assert found["contradicted"] == found["unsupported"] == 1 / 5
    assert found["told"] == 3 / 6  # adventure, comedy, thriller of 3 + 3 words
    by_attribute = found["by_attribute"]
    assert by_attribute["genres"]["told"] == 3 / 5 and by_attribute["year"]["told"] == 0
    assert by_attribute["other"]["unsupported"] == 1 and by_attribute["other"]["told"] is None
    lines = table({"summaries": found, "none": shares([], [])}).splitlines()
    assert lines[0].split() == [
        "texts",
        "claims",
        "supported",
        "unsupported",
        "contradicted",
        "told",
    ]
    assert lines[1].split() == ["summaries", "3", "5", "0.6000", "0.2000", "0.2000", "0.5000"]
    assert lines[-1].split() == ["none", "0", "0", "-", "-", "-", "-"]
