import random

import numpy as np
import pytest
import torch
from PIL import Image

from tests import saved_models, tiny_models
from tests.saved_models import FAMILIES, PATCH
from vtw_demo.measurements.patch_grid import PatchGeometry, VisualPatch, find_patches
from vtw_demo.models.loading import VisionLanguageModel, load
from vtw_demo.withdrawal.architectures import find_decoder
from vtw_demo.withdrawal.segments import visual_token_mask

SIZES = [(200, 50), (37, 113), (64, 64), (151, 100)]
SQUARE = 8
ATTENTION_OUTPUTS = (".out_proj", ".o_proj", ".projection_layer", "attn.proj")
ENCODERS = ("vision_tower", "image_tower", "vision_model", "visual")
MERGED = ("internvl", "idefics3", "smolvlm", "gemma3", "mistral3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
"""Families that merge 2 by 2 patches into a visual token, in the models of `saved_models`."""
# How far a resampling kernel reaches, in pixels of the picture or of the model, whichever are larger: 2 for a bicubic
# one, 3 for a Lanczos one, which the Idefics families use twice.
KERNEL = {"idefics3": 6, "smolvlm": 6}


def with_own_pixels_only(vlm):
    """Without what attention brings in, a visual token depends on the pixels of its own patches."""
    vlm.model.float()
    with torch.no_grad():
        for name, module in vlm.model.named_modules():
            if name.endswith(ATTENTION_OUTPUTS) and any(encoder in name for encoder in ENCODERS):
                for parameter in module.parameters():
                    parameter.zero_()
    return vlm


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """A family's small model, loaded from a folder where all that its processor needs is there."""
    name = request.param
    if saved_models.missing_packages(name):
        try:
            return with_own_pixels_only(VisionLanguageModel(name, *saved_models.build(name)))
        except ImportError as error:
            pytest.skip(str(error).strip().splitlines()[0])
    folder = tmp_path_factory.mktemp("model")
    saved_models.save(name, folder)
    loaded = load(str(folder), device="cpu")
    return with_own_pixels_only(VisionLanguageModel(name, loaded.model, loaded.processor))


def noise(size):
    rows, columns = size[1], size[0]
    return Image.fromarray(np.random.default_rng(0).integers(0, 100, (rows, columns, 3), dtype=np.uint8))


def spots(size, count=6):
    """Places of a square's upper left corner: two corners of the picture, its middle, and some anywhere."""
    right, bottom = size[0] - SQUARE, size[1] - SQUARE
    drawn = random.Random(0)
    anywhere = [(drawn.randint(0, right), drawn.randint(0, bottom)) for _ in range(count - 3)]
    return [(0, 0), (right, bottom), (right // 2, bottom // 2), *anywhere]


def prepare(vlm, pictures, nested=True):
    content = [*[{"type": "image"}] * len(pictures), {"type": "text", "text": "Hm?"}]
    prompt = vlm.processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    return dict(
        vlm.processor(
            images=[pictures] if nested else pictures, text=[prompt], add_special_tokens=False, return_tensors="pt"
        )
    )


class DecoderReachedError(Exception):
    pass


def visual_embeddings(vlm, inputs):
    """The visual tokens as they enter the decoder, which doesn't run: (visual tokens, hidden)."""
    entered = {}

    def stop(module, args, kwargs):
        entered.update(kwargs)
        raise DecoderReachedError

    hook = find_decoder(vlm.model).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.no_grad(), pytest.raises(DecoderReachedError):
            vlm.model(**inputs)
    finally:
        hook.remove()
    return entered["inputs_embeds"][visual_token_mask(vlm.model.config, inputs["input_ids"])]


def differing(before, after):
    return ((after - before).abs().amax(1) > 1e-4 * before.std()).numpy()


def changed_tokens(vlm, pictures, number, spots, nested=True):
    """For each spot, which visual tokens change when a white square is put there on one of the pictures."""
    before = visual_embeddings(vlm, prepare(vlm, pictures, nested))
    for spot in spots:
        marked = [picture.copy() for picture in pictures]
        marked[number].paste("white", (*spot, spot[0] + SQUARE, spot[1] + SQUARE))
        yield spot, differing(before, visual_embeddings(vlm, prepare(vlm, marked, nested)))


def places(geometry):
    """Start and end of each token's box on each axis, in pixels of its picture, NaN without one: (tokens, 2) each."""
    sizes = np.array([geometry.sizes[patch.picture] for patch in geometry.patches])
    boxes = np.array([patch.box or (np.nan,) * 4 for patch in geometry.patches])
    return boxes[:, :2] * sizes, boxes[:, 2:] * sizes


def pixel_sizes(geometry, merge):
    """How many pixels of its picture a pixel of the model is, on each axis, at each token: (tokens, 2)."""
    start, end = places(geometry)
    extents = end - start
    ends = np.array([geometry.sizes[patch.picture] for patch in geometry.patches])
    for axis in range(2):
        # What the picture's edge cuts off a box doesn't make the model's pixels smaller.
        whole = np.unique(extents[(start[:, axis] > 0) & (end[:, axis] < ends[:, axis]), axis])
        if len(whole):
            found = np.searchsorted(whole, extents[:, axis] - 1e-6)
            extents[:, axis] = np.maximum(extents[:, axis], whole[np.minimum(found, len(whole) - 1)])
    return extents / (PATCH * merge)


def reaches(geometry, vlm):
    """How far beyond its box a token may see, in pixels of its picture: (tokens, 2)."""
    merge = 2 if vlm.name in MERGED else 1
    pixel = pixel_sizes(geometry, merge)
    # LLaVA-OneVision interpolates between neighbouring patches.
    beside = PATCH * pixel if vlm.name == "llava_onevision" else 0
    return (KERNEL.get(vlm.name, 2) + 0.5) * np.maximum(1, pixel) + beside


def check_square(geometry, vlm, changed, number, spot):
    """Tokens whose boxes overlap the square have changed; those further from it than a kernel reaches haven't."""
    assert len(changed) == len(geometry.patches)
    start, end = places(geometry)
    overlap = np.minimum(end, np.array(spot) + SQUARE) - np.maximum(start, spot)
    own = np.array([patch.picture == number for patch in geometry.patches])
    assert changed[own & (overlap >= 1).all(1)].all()
    assert not changed[~own | (overlap < -reaches(geometry, vlm)).any(1)].any()


@pytest.mark.parametrize("size", SIZES)
def test_a_token_changes_with_what_is_in_its_box(family, size):
    picture = noise(size)
    geometry = find_patches(family, [picture], family.prepare(picture, "Hm?"))
    assert geometry.sizes == (size,)
    without_box = np.array([patch.box is None for patch in geometry.patches])
    for spot, changed in changed_tokens(family, [picture], 0, spots(size), nested=False):
        check_square(geometry, family, changed, 0, spot)
        assert not changed[without_box].any()


@pytest.mark.parametrize("axis", [0, 1])
def test_a_box_is_in_the_middle_of_what_its_token_sees(family, axis):
    size, width = (151, 100), 4
    picture = noise(size)
    geometry = find_patches(family, [picture], prepare(family, [picture]))
    before = visual_embeddings(family, prepare(family, [picture]))
    offsets = np.arange(0, size[axis] - width + 1, 2)
    seen = []
    for offset in offsets:
        stripe = [0, 0, *size]
        stripe[axis], stripe[axis + 2] = int(offset), int(offset) + width
        marked = picture.copy()
        marked.paste("white", tuple(stripe))
        seen.append(differing(before, visual_embeddings(family, prepare(family, [marked]))))
    first = offsets[np.argmax(seen, axis=0)]
    last = offsets[len(offsets) - 1 - np.argmax(seen[::-1], axis=0)] + width
    start, end = (edges[:, axis] for edges in places(geometry))
    reach = reaches(geometry, family)[:, axis]
    # At the picture's edge a token sees less on one side.
    free = (start > reach) & (end < size[axis] - reach)
    assert free.any()
    pixel = np.maximum(1, pixel_sizes(geometry, 2 if family.name in MERGED else 1)[:, axis])
    beside = PATCH * pixel / 2 if family.name == "llava_onevision" else 0
    assert (np.abs((first + last) / 2 - (start + end) / 2) <= pixel + beside)[free].all()
    assert ((first <= start + 1) & (last >= end - 1))[free].all()


@pytest.mark.parametrize("nested", [True, False])
def test_several_pictures_of_one_prompt(family, nested):
    # LLaVA-OneVision cuts pictures into tiles unless they are handed as a list of one prompt's.
    pictures = [noise((200, 50)), noise((37, 113)), noise((64, 64))]
    geometry = find_patches(family, pictures, prepare(family, pictures, nested))
    assert geometry.sizes == ((200, 50), (37, 113), (64, 64))
    assert [patch.picture for patch in geometry.patches] == sorted(patch.picture for patch in geometry.patches)
    for number, picture in enumerate(pictures):
        for spot, changed in changed_tokens(family, pictures, number, spots(picture.size, count=4), nested):
            check_square(geometry, family, changed, number, spot)


def built(name):
    return VisionLanguageModel(name, *saved_models.build(name))


def grid(columns, rows, left=0.0, top=0.0, right=1.0, bottom=1.0):
    """Boxes of equal parts, row by row: (columns x rows, 4)."""
    x, y = np.linspace(left, right, columns + 1), np.linspace(top, bottom, rows + 1)
    return np.array([(x[c], y[r], x[c + 1], y[r + 1]) for r in range(rows) for c in range(columns)])


def boxes_of(geometry):
    return np.array([patch.box for patch in geometry.patches])


@pytest.mark.parametrize(
    ("size", "crop"),
    [
        ((200, 50), (0.375, 0, 0.625, 1)),
        ((50, 200), (0, 0.375, 1, 0.625)),
        ((64, 64), (0, 0, 1, 1)),
        ((3000, 1500), (0.25, 0, 0.75, 1)),
    ],
)
def test_centre_crop(size, crop):
    vlm, picture = built("llava"), Image.new("RGB", size)
    geometry = find_patches(vlm, [picture], vlm.prepare(picture, "Hm?"))
    assert boxes_of(geometry) == pytest.approx(grid(6, 6, *crop), abs=1e-3)


def test_the_embedded_model_squashes_its_pictures(vlm):
    for size in ((500, 30), (224, 224), (40, 333)):
        picture = Image.new("RGB", size)
        geometry = find_patches(vlm, [picture], vlm.prepare(picture, "What is it?"))
        assert boxes_of(geometry) == pytest.approx(grid(14, 14), abs=2e-3)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (2, 2), (5, 3), (4, 400)])
def test_pictures_of_a_few_pixels(vlm, size):
    picture = Image.new("RGB", size)
    geometry = find_patches(vlm, [picture], vlm.prepare(picture, "What is it?"))
    assert boxes_of(geometry) == pytest.approx(grid(14, 14), abs=0.01)


def test_llava_next_is_an_overview_and_rows_of_tiles_that_end_with_a_token_without_a_box():
    vlm, picture = built("llava_next"), Image.new("RGB", (64, 64))
    patches = find_patches(vlm, [picture], vlm.prepare(picture, "Hm?")).patches
    assert len(patches) == 36 + 12 * 13
    ends = [i for i, patch in enumerate(patches) if patch.box is None]
    assert ends == [36 + 13 * row + 12 for row in range(12)]
    boxes = np.array([patch.box for patch in patches if patch.box])
    assert boxes == pytest.approx(np.concatenate([grid(6, 6), grid(12, 12)]), abs=2e-3)


def test_a_class_token_has_no_box():
    vlm = built("llava")
    vlm.model.config.vision_feature_select_strategy = vlm.processor.vision_feature_select_strategy = "full"
    pictures = [Image.new("RGB", (64, 64)), Image.new("RGB", (64, 64))]
    patches = find_patches(vlm, pictures, prepare(vlm, pictures)).patches
    assert [i for i, patch in enumerate(patches) if patch.box is None] == [0, 37]
    assert [patch.picture for patch in patches] == [0] * 37 + [1] * 37


def test_pan_and_scan():
    vlm, picture = built("gemma3"), Image.new("RGB", (100, 200))
    crops = {"min_crop_size": 20, "max_num_crops": 4, "min_ratio_to_activate": 1.2}
    vlm.processor.images_kwargs = {
        **vlm.processor.images_kwargs,
        "do_pan_and_scan": True,
        **{f"pan_and_scan_{name}": value for name, value in crops.items()},
    }
    geometry = find_patches(vlm, [picture], vlm.prepare(picture, "Hm?"))
    halves = grid(3, 3, bottom=0.5), grid(3, 3, top=0.5)
    assert boxes_of(geometry) == pytest.approx(np.concatenate([grid(3, 3), *halves]), abs=2e-3)


def test_a_rotated_photo_counts_upright(vlm):
    photo = Image.new("RGB", (40, 20))
    exif = photo.getexif()
    exif[0x0112] = 6  # "rotate a quarter to the right to show it upright"
    photo.info["exif"] = exif.tobytes()
    assert find_patches(vlm, [photo], vlm.prepare(photo, "What is it?")).sizes == ((20, 40),)


def test_what_is_not_known_is_said(vlm):
    picture, other = Image.new("RGB", (200, 50)), Image.new("RGB", (64, 64))
    unknown = VisionLanguageModel("", tiny_models.build("idefics2").model, None)
    inputs = vlm.prepare(picture, "Hm?")
    with pytest.raises(ValueError, match="visual token of Idefics2ForConditionalGeneration lies in its picture isn't"):
        find_patches(unknown, [picture], inputs)
    with pytest.raises(ValueError, match="one prompt at a time; these are 2"):
        find_patches(vlm, [picture, picture], vlm.prepare_batch([(picture, "a"), (picture, "b")]))
    with pytest.raises(ValueError, match="no pictures"):
        find_patches(vlm, [], inputs)
    for wrong in ([picture, picture], [picture] * 3):
        with pytest.raises(ValueError, match="weren't made from these pictures"):
            find_patches(vlm, wrong, inputs)
    qwen = built("qwen2_vl")
    with pytest.raises(ValueError, match="weren't made from these pictures"):
        find_patches(qwen, [other], qwen.prepare(picture, "Hm?"))
    shortened = {name: value[:, -40:] if value.ndim == 2 else value for name, value in inputs.items()}
    with pytest.raises(ValueError, match="isn't known"):
        find_patches(vlm, [picture], shortened)


GEOMETRY = PatchGeometry(
    ((4, 2), (1, 3)),
    (
        VisualPatch(0, (0.0, 0.0, 0.5, 1.0)),
        VisualPatch(0, (0.5, 0.0, 1.0, 0.5)),
        VisualPatch(0, None),
        VisualPatch(0, (0.125, 0.0, 0.375, 0.5)),
        VisualPatch(1, (0.0, 0.0, 1.0, 0.5)),
    ),
)


def test_shading_by_hand():
    first, second = GEOMETRY.shade([4.0, 2.0, 100.0, 8.0, 3.0], longest_side=4)
    # The first weight is on four cells, the second on two, the fourth on the halves of two that the first is on too.
    assert first == pytest.approx(np.array([[1 + 4, 1 + 4, 1, 1], [1, 1, 0, 0]]))
    assert second == pytest.approx(np.array([[1.5], [1.5], [0], [0]]))


@pytest.mark.parametrize("longest_side", [1, 7, 336])
def test_shading_keeps_the_sum_of_the_weights(longest_side):
    vlm, pictures = built("llava_next"), [Image.new("RGB", (200, 50)), Image.new("RGB", (37, 113))]
    geometry = find_patches(vlm, pictures, prepare(vlm, pictures))
    weights = np.random.default_rng(0).random(len(geometry.patches))
    shaded = geometry.shade(weights, longest_side)
    assert [array.shape for array in shaded] == [
        (max(1, round(longest_side / 4)), longest_side),
        (longest_side, max(1, round(longest_side * 37 / 113))),
    ]
    for number, array in enumerate(shaded):
        placed = [patch.picture == number and patch.box is not None for patch in geometry.patches]
        assert array.sum() == pytest.approx(weights[placed].sum())
        assert array.min() >= 0
