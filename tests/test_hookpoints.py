"""Names print and parse back; slices are Python's; what cannot be read is refused with a hint."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import (
    KEYS,
    SITES,
    HookPoint,
    NodeId,
    Position,
    hook_points,
    is_hook,
    parse_layers,
    parse_pins,
    position_order,
)

layers = st.integers(0, 99)
hooks = st.one_of(
    st.just(HookPoint(0, "embed")),
    st.builds(HookPoint, layers, st.sampled_from([site for site in SITES if site != "embed"])),
)
numbers = st.integers(0, 10**6)
spans = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,9}", fullmatch=True)
nodes = st.builds(NodeId, hooks, st.none() | numbers, st.none() | numbers | spans)


@given(hooks)
def test_a_hook_point_is_what_its_text_parses_to(hook: HookPoint):
    assert HookPoint.parse(str(hook)) == hook


@given(nodes)
def test_a_node_is_what_its_text_parses_to(node: NodeId):
    assert NodeId.parse(str(node)) == node
    assert NodeId.parse(node.feature) == NodeId(node.hook, node.index)
    assert node.is_error == ("/error" in str(node))


@given(st.lists(st.none() | numbers | spans, unique=True), st.lists(spans, unique=True))
def test_positions_sort_as_numbers_then_as_the_graph_names_its_spans_then_by_name(
    some: list[Position], names: list[str]
):
    numbers_first = sorted(position for position in some if isinstance(position, int))
    named = [name for name in names if name in some]
    others = sorted(position for position in some if isinstance(position, str) and position not in names)
    expected = [*([None] if None in some else []), *numbers_first, *named, *others]
    assert sorted(some, key=lambda position: position_order(position, names)) == expected


def test_a_named_span_is_no_number_of_a_position():
    assert NodeId.parse("mlp_in.9/331@4").number == 4
    assert NodeId.parse("mlp.9/error").number is None
    with pytest.raises(InputError, match=r"mlp.9/error@verb is at a named span"):
        NodeId.parse("mlp.9/error@verb").number


@given(st.lists(hooks, min_size=2))
def test_hook_points_sort_in_the_order_in_which_the_model_computes_them(some: list[HookPoint]):
    for before, after in pairwise(sorted(some)):
        first, second = ((hook.site != "embed", hook.layer, SITES.index(hook.site)) for hook in (before, after))
        assert first <= second


def test_sites_of_one_block_are_in_the_order_of_the_design():
    block = [HookPoint(4, site) for site in ("resid_pre", "attn_in", "attn", "resid_mid", "mlp_in", "mlp", "resid")]
    assert sorted(reversed(block)) == block
    assert block[-1] < HookPoint(5, "resid_pre")
    assert HookPoint(0, "embed") < HookPoint(0, "resid_pre")


@given(nodes, nodes)
def test_nodes_have_one_order_and_errors_come_after_the_features_beside_them(one: NodeId, other: NodeId):
    assert (one.order == other.order) == (one == other)
    if (one.hook, one.position) == (other.hook, other.position) and other.is_error and not one.is_error:
        assert one.order < other.order


@pytest.mark.parametrize(
    "text", ["", "resid", "resid.", "resid.x", "resid.-1", "9", "head.3", "resid.9.1", "resid .9", "embed.1x"]
)
def test_what_is_no_hook_point_is_refused(text: str):
    with pytest.raises(SettingsError) as caught:
        HookPoint.parse(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        *("", "output", "resid.9", "resid.9/", "resid.9/x", "resid.9/1@", "resid.9/1@-1", "/3", "head.1/3"),
        *("resid.9/1@_verb", "resid.9/1@4th", "resid.9/1@the verb", "resid.9/1@é", "resid.9/1@verb@4", "resid.9/verb"),
        "resid.9/1@" + 65 * "a",
    ],
)
def test_what_names_no_feature_is_refused(text: str):
    with pytest.raises(SettingsError):
        NodeId.parse(text)


bounds = st.none() | st.integers(-12, 12)


@given(bounds, bounds, st.none() | st.integers(1, 4), st.integers(1, 12))
def test_layers_are_a_python_slice(start: int | None, stop: int | None, step: int | None, n_layers: int):
    text = ":".join("" if number is None else str(number) for number in (start, stop))
    text += "" if step is None else f":{step}"
    expected = list(range(n_layers))[slice(start, stop, step)]
    inside = all(number is None or -n_layers <= number <= n_layers for number in (start, stop))
    if expected and inside:
        assert parse_layers(text, n_layers=n_layers) == expected
    else:
        with pytest.raises(SettingsError) as caught:
            parse_layers(text, n_layers=n_layers)
        assert f"0 to {n_layers - 1}" in caught.value.hint


@given(st.integers(1, 12), st.data())
def test_a_single_number_is_one_layer_counted_from_either_end(n_layers: int, data: st.DataObject):
    number = data.draw(st.integers(-n_layers, n_layers - 1))
    assert parse_layers(f" {number} ", n_layers=n_layers) == [range(n_layers)[number]]


@pytest.mark.parametrize("text", ["", "a", "1:2:3:4", "3:1", "1:5:-1", "1:5:0", "0-3", "1.5", "99", "4", ":99", "3,4"])
def test_what_is_no_slice_of_four_layers_is_refused(text: str):
    with pytest.raises(SettingsError):
        parse_layers(text, n_layers=4)


def test_hook_points_are_all_sites_of_all_layers_and_the_embedding_once():
    assert [str(hook) for hook in hook_points([2, 1], ["resid", "embed", "attn"])] == [
        "embed",
        "attn.1",
        "resid.1",
        "attn.2",
        "resid.2",
    ]


@given(st.dictionaries(hooks, st.lists(numbers, min_size=1, unique=True), min_size=1))
def test_pins_are_what_their_text_says(pins: dict[HookPoint, list[int]]):
    texts = [f"{hook}:{','.join(map(str, indices))}" for hook, indices in pins.items()]
    assert parse_pins(texts) == {hook: tuple(indices) for hook, indices in pins.items()}


def test_pins_of_a_bare_layer_are_of_the_residual_stream_and_several_add_up():
    assert parse_pins(["6:8339,14104", "resid.6: 7, 8339", "attn.6:12"]) == {
        HookPoint(6, "attn"): (12,),
        HookPoint(6, "resid"): (8339, 14104, 7),
    }


@pytest.mark.parametrize("text", ["", "6", "6:", "6:a", "6:1,", "6:-1", ":1", "head.6:1", "6:1;2"])
def test_what_is_no_pin_is_refused(text: str):
    with pytest.raises(SettingsError) as caught:
        parse_pins([text])
    assert caught.value.hint


def test_keys_of_gpt_circuits_are_hook_points_wherever_one_is_named():
    """A model of four blocks has five places between blocks; each has one name."""
    stream = [HookPoint.parse(f"{layer}_act") for layer in range(5)]
    assert [str(hook) for hook in stream] == ["resid_pre.0", "resid.0", "resid.1", "resid.2", "resid.3"]
    assert stream == [HookPoint.parse(f"{layer}_residpre") for layer in range(5)] == sorted(stream)
    assert stream[1:] == [HookPoint.parse(f"{layer}_residpost") for layer in range(4)]
    keys = ("attnin", "attnout", "residmid", "mlpin", "mlpout")
    assert [str(HookPoint.parse(f"2_{key}")) for key in keys] == [
        "attn_in.2",
        "attn.2",
        "resid_mid.2",
        "mlp_in.2",
        "mlp.2",
    ]
    assert str(NodeId.parse("0_mlpin/12@3")) == "mlp_in.0/12@3"
    assert parse_pins(["1_residmid:5,6"]) == {HookPoint(1, "resid_mid"): (5, 6)}


@pytest.mark.parametrize("text", ["0_mlp", "0_", "_act", "0_act.1", "x_act", "0_ACT", "-1_act"])
def test_keys_that_are_none_are_refused_with_those_that_there_are(text: str):
    with pytest.raises(SettingsError) as caught:
        HookPoint.parse(text)
    assert not is_hook(text)
    if text in ("0_mlp", "0_ACT"):
        assert all(f"0_{key}" in str(caught.value.hint) for key in KEYS)


def test_only_what_prints_so_is_the_name_of_a_hook_point():
    assert is_hook("resid.3") and is_hook("embed")
    assert not any(map(is_hook, ("3_act", "resid.03", "resid", "")))
