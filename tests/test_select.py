"""One rule for layers and positions, wherever they are named."""

import numpy as np
import pytest
import torch

from logitlens import PromptError
from logitlens.select import layer_label, layer_number, select_layers, select_positions
from tests.models import tiny_gpt2

LABELS = ["embed", "0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("selection", "labels"),
    [
        (None, LABELS),
        (2, ["2"]),
        ("2", ["2"]),
        (-1, ["3"]),
        ("embed", ["embed"]),
        (["embed", 3], ["embed", "3"]),
        ("embed,0,-1", ["embed", "0", "3"]),
        ("0:12:2", ["0", "2"]),
        ("embed, 2:", ["embed", "2", "3"]),
        (":", ["0", "1", "2", "3"]),
        ("-2:", ["2", "3"]),
        ("::-1", ["0", "1", "2", "3"]),
        (slice(1, 3), ["1", "2"]),
        ([2, 1, 2], ["1", "2"]),
        (np.int64(2), ["2"]),
        (np.array([0, -1]), ["0", "3"]),
        (torch.tensor([0, 3]), ["0", "3"]),
        (torch.tensor(3), ["3"]),
        ([True, False, False, False, True], ["embed", "3"]),
        (np.array([False, True, True, False, False]), ["0", "1"]),
        (torch.tensor([False, False, True, False, False]), ["1"]),
    ],
)
def test_a_number_is_a_label(selection, labels):
    assert [LABELS[i] for i in select_layers(selection, LABELS)] == labels


def test_numbers_mean_the_same_where_some_layers_are_absent():
    some = ["embed", "3", "7", "11"]
    assert select_layers(7, some) == [2]
    assert select_layers("0:8", some) == [1, 2]
    assert select_layers(-1, some, 12) == [3]
    assert select_layers(-1, some) == [3]
    with pytest.raises(PromptError, match=r"no layer 5: expected one of embed, 3, 7, 11"):
        select_layers(5, some)


def test_sublayers_have_the_number_of_their_block():
    assert select_layers("1:", ["0.attn", "1.attn", "2.attn", "2"]) == [1, 2, 3]
    assert select_layers("1.attn", ["0.attn", "1.attn", "1"]) == [1]


@pytest.mark.parametrize(
    ("selection", "positions"),
    [
        (None, [2, 4, 9]), (4, [4]), ("2:5", [2, 4]), (-1, [9]), ("-6:", [4, 9]),
        ([True, False, True], [2, 9]), (np.array([4]), [4]),
    ],
)  # fmt: skip
def test_a_position_is_its_place_in_the_prompt(selection, positions):
    at_hand = [2, 4, 9]
    assert [at_hand[i] for i in select_positions(selection, at_hand, 10)] == positions


@pytest.mark.parametrize(
    ("selection", "says"),
    [
        ("9:", "no layer selected: 0 to 3 or embed"), (7, "no layer 7: expected 0 to 3 or embed"),
        (-6, "no layer -6"), ([], "no layer selected"), ("a:b", "cannot read layers from 'a:b'"),
        ("1:2:3:4", "cannot read layers"), ("::0", "cannot read layers from '::0': the step"),
        ("", "no layer ''"), ("1;2", "no layer '1;2': expected numbers like 0,4,-1"), ("٣", "no layer '٣'"),
        (3.0, "no layer 3.0"), ([1.5], "no layer 1.5"), (np.array([1.0]), "no layer 1.0"),
        ([None], "no layer None"), ([True, False], "a mask of layers needs 5 entries, one for each; got 2"),
        (True, "a mask of layers needs 5 entries"), ([0, True], "no layer True"), ({}, "no layer selected"),
        (object(), "no layer <object"), ("9" * 30, "no layer"),
    ],
)  # fmt: skip
def test_what_selects_nothing_is_refused_in_one_line(selection, says):
    with pytest.raises(PromptError, match=says) as caught:
        select_layers(selection, LABELS)
    assert "\n" not in str(caught.value)


def test_labels_and_numbers():
    assert [layer_label(depth) for depth in range(3)] == ["embed", "0", "1"]
    assert [layer_number(label) for label in ("embed", "11", "3.attn")] == [None, 11, 3]


def test_the_number_5_is_the_output_of_block_5_everywhere(monkeypatch):
    """`read`, what it captured, `row`, `first`, `settled` and both pictures mean one layer."""
    import logitlens
    from logitlens.view import figure, terminal

    model = logitlens.load(tiny_gpt2())
    seen = {}
    for i, block in enumerate(model.anatomy.blocks):
        block.register_forward_hook(lambda m, a, out, i=i: seen.update({i: out}))
    ids = [5, 1, 17, 200]
    whole = model.read(ids)
    last = len(model.anatomy.blocks) - 1
    for number in range(last):
        one = model.read(ids, layers=number)
        assert one.layers == [str(number), str(last)]
        residuals = model.capture(ids, layers=number)
        block_output = seen[number][0] if isinstance(seen[number], tuple) else seen[number]
        assert torch.equal(residuals.h[0], block_output[0])
        assert (one.top_ids[0] == whole.top_ids[whole.row(number)]).all()
        assert whole.row(number) == whole.row(str(number)) == number + 1
        drawn = figure.figure(whole, layers=number).axes[0].get_yticklabels()
        assert [label.get_text() for label in drawn] == [str(number)]
        shown = terminal.text(whole, layers=[number]).splitlines()
        assert shown[3].split()[0] == str(number)
    assert whole.row(-1) == last + 1
    assert whole.row("embed") == 0
    token = int(whole.top_ids[-1, -1, 0])
    settled = whole.settled()[-1]
    assert (whole.top_ids[whole.row(settled) :, -1, 0] == token).all()
