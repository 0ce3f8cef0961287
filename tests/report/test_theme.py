import re

import pytest

from espnet_adaltm.report import theme

PALETTES = {"light": theme.LIGHT, "dark": theme.DARK}


def test_contrast_of_known_pairs():
    assert theme.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert theme.contrast("#ffffff", "#767676") == pytest.approx(4.54, abs=0.005)  # AA's grey
    assert theme.contrast("#0000ff", "#ffffff") == pytest.approx(8.59, abs=0.005)
    assert theme.contrast("#123456", "#123456") == pytest.approx(1)


@pytest.mark.parametrize("name", PALETTES)
def test_everything_can_be_read(name):
    palette = PALETTES[name]
    for behind in (palette.page, palette.card):
        for colour in ("text", "muted", "accent", "good", "bad"):
            assert theme.contrast(getattr(palette, colour), behind) >= 4.5, colour
    for number, colour in enumerate(palette.series):
        assert theme.contrast(colour, palette.card) >= 3, number
    for step in range(theme.HEAT_STEPS):
        background, text = theme.heat(palette, step)
        assert theme.contrast(background, text) >= 4.5, step


def test_heat_goes_from_nothing_to_all():
    assert theme.heat(theme.LIGHT, 0)[0] == theme.LIGHT.card
    assert theme.heat(theme.LIGHT, theme.HEAT_STEPS - 1)[0] == theme.LIGHT.accent
    assert [theme.heat_step(share) for share in (-1, 0, 0.5, 1, 2)] == [0, 0, 5, 10, 10]
    assert theme.mix("#000000", "#ff8000", 0.5) == "#804000"


def test_both_schemes_define_the_same_colours():
    light, dark = theme.stylesheet().split("@media (prefers-color-scheme:dark)")
    names = [re.findall(r"(--\w+):", part) for part in (light, dark.partition("}}")[0])]
    assert set(names[0]) == set(names[1]) >= {"--page", "--text", "--s7", "--h10", "--t10"}
    assert ".s7{--c:var(--s7)}" in dark
