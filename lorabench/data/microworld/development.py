"""Numbers of the accepted candidates of development names, printed by `python -m pretraining development`."""

SUBJECT_DRAWS = {
    "mug_dev1": 24, "mug_dev2": 8,
    "teapot_dev1": 0, "teapot_dev2": 15,
    "vase_dev1": 11, "vase_dev2": 6,
    "lamp_dev1": 0, "lamp_dev2": 7,
    "house_dev1": 1, "house_dev2": 76,
    "car_dev1": 8, "car_dev2": 2,
    "boat_dev1": 10, "boat_dev2": 5,
    "fish_dev1": 23, "fish_dev2": 2,
    "duck_dev1": 5, "duck_dev2": 3,
    "cat_dev1": 13, "cat_dev2": 41,
    "mushroom_dev1": 12, "mushroom_dev2": 13,
    "rocket_dev1": 15, "rocket_dev2": 24,
}  # fmt: skip

STYLE_DRAWS = {
    "poster_dev1": 1, "poster_dev2": 3,
    "ink_dev1": 3, "ink_dev2": 2,
    "halftone_dev1": 2, "halftone_dev2": 0,
    "pencil_dev1": 1, "pencil_dev2": 1,
    "neon_dev1": 0, "neon_dev2": 2,
    "watercolor_dev1": 0, "watercolor_dev2": 0,
    "crayon_dev1": 6, "crayon_dev2": 1,
    "pixel_dev1": 0, "pixel_dev2": 4,
    "glass_dev1": 0, "glass_dev2": 3,
    "woodcut_dev1": 1, "woodcut_dev2": 1,
    "duotone_dev1": 0, "duotone_dev2": 0,
    "clay_dev1": 4, "clay_dev2": 6,
    "chalk_dev1": 1, "chalk_dev2": 1,
    "blueprint_dev1": 0, "blueprint_dev2": 0,
    "gold_dev1": 0, "gold_dev2": 0,
    "stitch_dev1": 0, "stitch_dev2": 0,
}  # fmt: skip
