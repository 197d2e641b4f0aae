"""Stanford Dogs (Khosla et al. 2011): photographs of 120 breeds.

The official split. Images are whole: the bounding boxes are not used for cropping.
"""

from __future__ import annotations

from bench.data.public.declare import Archive, Content, InputError, Members, Source, Task, by_class, class_table
from bench.data.public.readers import FIX, Listed, listed_images, matlab_variables

TEST_IMAGES = class_table(
    """
Afghan_hound 139, African_hunting_dog 69, Airedale 102, American_Staffordshire_terrier 64, Appenzeller 51,
Australian_terrier 96, Bedlington_terrier 82, Bernese_mountain_dog 118, Blenheim_spaniel 88, Border_collie 50,
Border_terrier 72, Boston_bull 82, Bouvier_des_Flandres 50, Brabancon_griffon 53, Brittany_spaniel 52, Cardigan 55,
Chesapeake_Bay_retriever 67, Chihuahua 52, Dandie_Dinmont 80, Doberman 50, English_foxhound 57, English_setter 61,
English_springer 59, EntleBucher 102, Eskimo_dog 50, French_bulldog 59, German_shepherd 52,
German_short-haired_pointer 52, Gordon_setter 53, Great_Dane 56, Great_Pyrenees 113, Greater_Swiss_Mountain_dog 68,
Ibizan_hound 88, Irish_setter 55, Irish_terrier 69, Irish_water_spaniel 50, Irish_wolfhound 118, Italian_greyhound 82,
Japanese_spaniel 85, Kerry_blue_terrier 79, Labrador_retriever 71, Lakeland_terrier 97, Leonberg 110, Lhasa 86,
Maltese_dog 152, Mexican_hairless 55, Newfoundland 95, Norfolk_terrier 72, Norwegian_elkhound 96, Norwich_terrier 85,
Old_English_sheepdog 69, Pekinese 49, Pembroke 81, Pomeranian 119, Rhodesian_ridgeback 72, Rottweiler 52,
Saint_Bernard 70, Saluki 100, Samoyed 118, Scotch_terrier 58, Scottish_deerhound 132, Sealyham_terrier 102,
Shetland_sheepdog 57, Shih-Tzu 114, Siberian_husky 92, Staffordshire_bullterrier 55, Sussex_spaniel 51,
Tibetan_mastiff 52, Tibetan_terrier 106, Walker_hound 53, Weimaraner 60, Welsh_springer_spaniel 50,
West_Highland_white_terrier 69, Yorkshire_terrier 64, affenpinscher 50, basenji 109, basset 75, beagle 95,
black-and-tan_coonhound 59, bloodhound 87, bluetick 71, borzoi 51, boxer 51, briard 52, bull_mastiff 56, cairn 97,
chow 96, clumber 50, cocker_spaniel 59, collie 53, curly-coated_retriever 51, dhole 50, dingo 56,
flat-coated_retriever 52, giant_schnauzer 57, golden_retriever 50, groenendael 50, keeshond 58, kelpie 53, komondor 54,
kuvasz 50, malamute 78, malinois 50, miniature_pinscher 84, miniature_poodle 55, miniature_schnauzer 54, otterhound 51,
papillon 96, pug 100, redbone 48, schipperke 54, silky_terrier 83, soft-coated_wheaten_terrier 56, standard_poodle 59,
standard_schnauzer 55, toy_poodle 51, toy_terrier 72, vizsla 54, whippet 87, wire-haired_fox_terrier 57
"""
)
"""How many images of each breed are in the test split; in the training split there are 100 of each."""


def read(members: Members) -> Content:
    """Read `{train,test}_list.mat` with `file_list` (`<synset>-<breed>/<file>`) and `labels` (from 1).

    A list with the files `n02-terrier/n02_7.jpg`, `n01-Chihuahua/n01_1.jpg` and the labels 2, 1 makes the classes
    Chihuahua (0) and terrier (1).
    """
    folder_of: dict[int, str] = {}
    splits: dict[str, list[Listed]] = {}
    for split in ("train", "test"):
        file = f"{split}_list.mat"
        paths, labels = matlab_variables(members, file, "file_list", "labels")
        if len(paths) != len(labels):
            raise InputError(f"{file}: {len(paths)} files, but {len(labels)} labels. {FIX}")
        splits[split] = []
        for i, (path, number) in enumerate(zip(paths, map(int, labels), strict=True), start=1):
            where = f"{file} entry {i}"
            folder, slash, _ = str(path).partition("/")
            if not slash or "-" not in folder:
                raise InputError(f"{where}: {path!r} is not <synset>-<breed>/<file>. {FIX}")
            if folder_of.setdefault(number, folder) != folder:
                raise InputError(f"{where}: label {number} is both {folder_of[number]} and {folder}. {FIX}")
            splits[split].append(Listed(where, str(path), number - 1))
    if sorted(folder_of) != list(range(1, len(folder_of) + 1)) or len(set(folder_of.values())) != len(folder_of):
        raise InputError(
            f"train_list.mat and test_list.mat: the labels {sorted(folder_of)} of {len(set(folder_of.values()))} "
            f"breeds are not 1, 2, … with one breed each. {FIX}"
        )
    return listed_images(members, [folder_of[number].partition("-")[2] for number in sorted(folder_of)], splits)


DOGS = Source(
    task=Task(name="dogs", modality="image", backbone="vit_mae_base", metric="accuracy"),
    counts=(by_class({breed: (100, *tested) for breed, tested in TEST_IMAGES.items()}, "train", "test"),),
    licence="none stated; the images are ImageNet's, for non-commercial research",
    files=(
        Archive(
            "http://vision.stanford.edu/aditya86/ImageNetDogs/images.tar",
            "images.tar",
            "sha256:a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58",
            793_579_520,
            top="Images",
            members=r"[^/]+/[^/]+\.jpg",
        ),
        Archive(
            "http://vision.stanford.edu/aditya86/ImageNetDogs/lists.tar",
            "lists.tar",
            "sha256:34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c",
            481_280,
            top="lists",
            members=r"(train|test)_list\.mat",
        ),
    ),
    read=read,
)
