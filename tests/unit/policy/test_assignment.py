import pytest

from policy.assignment import assign, fill, quotas


def test_shares_follow_the_weights_by_largest_remainder():
    assert quotas({"fra": 60, "ams": 40}, 8, {}) == {"fra": 5, "ams": 3}
    assert quotas({"fra": 1, "ams": 1, "sin": 1}, 16, {}) == {"ams": 6, "fra": 5, "sin": 5}


def test_an_idc_without_weight_gets_nothing():
    assert set(assign({"fra": 1, "ams": 0}, 16, {})) == {"fra"}


def test_what_fits_already_stays_where_it_is():
    current = dict(enumerate(assign({"fra": 60, "ams": 40}, 64, {})))
    assert dict(enumerate(assign({"fra": 60, "ams": 40}, 64, current))) == current


def test_a_tie_goes_to_the_idc_that_would_have_to_give_a_shard_away():
    assert assign({"ams": 1, "fra": 1}, 1, {0: "fra"}) == ("fra",)
    assert assign({"ams": 1, "fra": 1}, 1, {}) == ("ams",)


def test_only_the_shards_of_an_owner_that_lost_its_weight_move():
    current = dict(enumerate(assign({"fra": 1, "ams": 1}, 16, {})))
    after = assign({"fra": 1, "sin": 1}, 16, current)
    assert [after[shard] for shard, idc in current.items() if idc == "fra"] == ["fra"] * 8


@pytest.mark.parametrize("weights", [{}, {"fra": 0}, {"fra": 2, "ams": -1}])
def test_weights_that_say_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        assign(weights, 4, {})


def test_filling_leaves_what_is_kept_and_gives_the_rest_to_whom_most_is_missing():
    assert fill({"fra": 1, "ams": 1}, 4, {0: "fra", 1: "fra"}) == ("fra", "fra", "ams", "ams")
    assert fill({"fra": 1, "ams": 1}, 4, {0: "gone", 2: "fra"}) == ("gone", "ams", "fra", "ams")
    assert fill({"fra": 0, "ams": 1}, 3, {0: "fra"}) == ("fra", "ams", "ams")
