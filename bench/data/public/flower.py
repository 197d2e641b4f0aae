"""Oxford 102 Flowers (Nilsback and Zisserman 2008): photographs of 102 kinds of flowers.

The official split; train and validation together are the 2,040 training images of Lee et al. 2023.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.data.public.declare import Archive, Content, InputError, Members, Remote, Source, Task, by_class, class_table
from bench.data.public.readers import FIX, Listed, listed_images, matlab_variables

TEST_IMAGES = class_table(
    """
pink primrose 20, hard-leaved pocket orchid 40, canterbury bells 20, sweet pea 36, english marigold 45, tiger lily 25,
moon orchid 20, bird of paradise 65, monkshood 26, globe thistle 25, snapdragon 67, colt's foot 67, king protea 29,
spear thistle 28, yellow iris 29, globe-flower 21, purple coneflower 65, peruvian lily 62, balloon flower 29,
giant white arum lily 36, fire lily 20, pincushion flower 39, fritillary 71, red ginger 22, grape hyacinth 21,
corn poppy 21, prince of wales feathers 20, stemless gentian 46, artichoke 58, sweet william 65, carnation 32,
garden phlox 25, love in the mist 26, mexican aster 20, alpine sea holly 23, ruby-lipped cattleya 55, cape flower 88,
great masterwort 36, siam tulip 21, lenten rose 47, barbeton daisy 107, daffodil 39, sword lily 110, poinsettia 73,
bolero deep blue 20, wallflower 176, marigold 47, buttercup 51, oxeye daisy 29, common dandelion 72, petunia 238,
wild pansy 65, primula 73, sunflower 41, pelargonium 51, bishop of llandaff 89, gaura 47, geranium 94, orange dahlia 47,
pink-yellow dahlia 89, cautleya spicata 30, japanese anemone 35, black-eyed susan 34, silverbush 32,
californian poppy 82, osteospermum 41, spring crocus 22, bearded iris 34, windflower 34, tree poppy 42, gazania 58,
azalea 76, water lily 174, rose 151, thorn apple 100, morning glory 87, passion flower 231, lotus lotus 117,
toad lily 21, anthurium 85, frangipani 146, clematis 92, hibiscus 111, columbine 66, desert-rose 43, tree mallow 38,
magnolia 43, cyclamen 134, watercress 164, canna lily 62, hippeastrum 56, bee balm 46, ball moss 26, foxglove 142,
bougainvillea 108, camellia 71, mallow 46, mexican petunia 62, bromelia 43, blanket flower 29, trumpet creeper 38,
blackberry lily 28
"""
)
"""How many images of each kind are in the test split; train and validation have 10 of each.

The kinds stand in the order of labels 1 to 102. The files name no classes, these names are in common use.
"""


def read(members: Members, class_names: Sequence[str] = tuple(TEST_IMAGES)) -> Content:
    """Read `setid.mat` (`trnid`, `valid`, `tstid`, from 1) and `imagelabels.mat` (`labels`, from 1).

    `trnid` [4, 2] and `labels` [1, 3, 2, 1] make the training images 00004 of class 0 and 00002 of class 2.
    """
    (labels,) = matlab_variables(members, "imagelabels.mat", "labels")
    keys = {"train": "trnid", "validation": "valid", "test": "tstid"}
    ids = dict(zip(keys, matlab_variables(members, "setid.mat", *keys.values()), strict=True))
    splits: dict[str, list[Listed]] = {}
    for split, numbers in ids.items():
        splits[split] = []
        for i, number in enumerate(map(int, numbers), start=1):
            where = f"setid.mat {keys[split]} entry {i}"
            if not 1 <= number <= len(labels):
                raise InputError(f"{where}: image {number}, but imagelabels.mat labels images 1..{len(labels)}. {FIX}")
            label = int(labels[number - 1])
            if not 1 <= label <= len(class_names):
                raise InputError(
                    f"imagelabels.mat entry {number}: label {label} is out of range; legal: "
                    f"1..{len(class_names)}. {FIX}"
                )
            splits[split].append(Listed(where, f"image_{number:05d}.jpg", label - 1))
    return listed_images(members, class_names, splits)


FOLDER = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"

FLOWER = Source(
    task=Task(name="flower", modality="image", backbone="vit_mae_base", metric="accuracy", training="train+validation"),
    counts=(
        by_class({name: (10, 10, *tested) for name, tested in TEST_IMAGES.items()}, "train", "validation", "test"),
    ),
    licence="none stated",
    files=(
        Archive(
            f"{FOLDER}102flowers.tgz",
            "102flowers.tgz",
            "sha256:2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
            344_862_509,
            top="jpg",
            members=r"image_\d+\.jpg",
        ),
        Remote(
            f"{FOLDER}imagelabels.mat",
            "imagelabels.mat",
            "sha256:4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d",
            502,
        ),
        Remote(
            f"{FOLDER}setid.mat",
            "setid.mat",
            "sha256:46b8678f91fd95d3c8f4feab80d271a6c834a1dd896fe29fd3e6ad9ce5c8dccd",
            14_989,
        ),
    ),
    read=read,
)
