"""The public data sets of the papers, one file each; a new one is a file here and its line below.

Planning imports this package, so nothing in it imports an array library before something is read.
"""

from bench.data.public import aircraft, chest_xray, cifar100, cub, dogs, dtd, flower, glue, scibert, twitter_emotion
from bench.data.public.declare import Source

SOURCES: dict[str, Source] = {
    source.task.name: source
    for source in (
        # Lee et al. 2023: Table 1 and Figure 3. Their Table 7 counts training examples: where a validation split is
        # official, they train on both.
        cub.CUB,
        chest_xray.CHEST_XRAY,
        dtd.DTD_75_25,
        dogs.DOGS,
        cifar100.CIFAR100,
        aircraft.AIRCRAFT,
        dtd.DTD,
        flower.FLOWER,
        # Lee et al. 2023: Table 2, with its metrics.
        scibert.SCIERC,
        scibert.ACL_ARC,
        twitter_emotion.TWITTER_EMOTION,
        scibert.CHEMPROT,
        *glue.GLUE,
    )
}
"""All of them by the names of their tasks."""
