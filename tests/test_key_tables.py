"""Names in two formats."""

from mobilesamv2.key_tables import KeyTable


def test_the_first_row_that_begins_a_key_renames_it_in_both_directions() -> None:
    table = KeyTable((("a.{}.mlp.layers.{}.", "b.blocks.{}.fc{}."), ("a.", "b."), ("x", "b.x")))
    pairs = {"a.10.mlp.layers.1.weight": "b.blocks.10.fc1.weight", "a.10.norm": "b.10.norm", "c.a.0": "c.a.0"}
    assert {theirs: table.to_ours(theirs) for theirs in pairs} == pairs
    assert {table.to_theirs(ours): ours for ours in pairs.values()} == pairs
    assert table.to_ours("x") == "b.x"
    assert table.to_theirs("aXb.") == "aXb."  # a dot in a row is a dot
